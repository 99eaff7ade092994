"""On only where questions that chose nothing say so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from probes.advise import advise, can_advise
from probes.replacement import run
from probes.replacement.grid import Grid
from probes.report import write_report
from probes.statistics.outcomes import bits, outcomes_of
from probes.statistics.protocols import mildest_first, settings_of
from tccd.__main__ import app
from tccd.errors import ConfigError, DataError
from tests.probes.probed import probed


def command(*args):
    return CliRunner().invoke(app, ["probe", "advise", *map(str, args)], prog_name="tccd")


def test_a_setting_that_helps_is_recommended_with_its_evidence():
    result = probed(helped=0.6, harmed=0.02)
    advice = advise(result)
    assert advice["on"]
    assert advice["settings"]["alpha_cd"] == 1.0
    held_out = advice["held_out"]
    assert held_out["ci95"][0] > 0
    assert held_out["delta"] == pytest.approx(held_out["accuracy"] - held_out["baseline"])
    assert held_out["n"] == sum(row["n"] for row in held_out["by_task"]) == 200
    assert held_out["helped"] - held_out["harmed"] == round(200 * held_out["delta"])
    assert sum(chosen["folds"] for chosen in advice["chosen"]) == 5
    # What was chosen on the very questions that it is judged on is no less.
    assert advice["in_sample_delta"] >= held_out["delta"] - 1e-12


def test_settings_that_only_harm_are_off_and_say_so():
    advice = advise(probed(helped=0.0, harmed=0.3))
    assert not advice["on"]
    assert advice["settings"] is None
    assert "no setting answered more questions right" in advice["reason"]
    assert advice["held_out"]["delta"] == 0


def test_contrast_that_does_nothing_is_off_though_its_best_setting_gains():
    """Of eight settings of noise the best looks like a gain; the held-out folds don't believe it."""
    recommended, flattered = 0, 0
    for seed in range(40):
        result = probed(seed=seed, n=160, helped=0.0, harmed=0.0)
        # On average as many are put right as are made wrong.
        generator = np.random.default_rng(seed)
        plain = outcomes_of(result["questions"]["competing"]["right"])
        for cell in result["tccd_cells"]:
            turned = generator.random(len(plain)) < np.where(plain, 0.1, 0.1 * plain.mean() / (1 - plain.mean()))
            cell["right"] = bits(plain ^ turned)
        advice = advise(result)
        recommended += advice["on"]
        flattered += advice["in_sample_delta"] > 0.02
    assert recommended <= 3
    assert flattered >= 20


def test_the_order_of_questions_and_settings_makes_no_difference():
    result = probed()
    other = probed()
    order = np.random.default_rng(1).permutation(200)
    questions = other["questions"]["competing"]
    for name, column in questions.items():
        kept = [column[i] for i in order]
        questions[name] = "".join(kept) if isinstance(column, str) else kept
    for cell in other["tccd_cells"]:
        cell["right"] = "".join(cell["right"][i] for i in order)
    other["tccd_cells"].reverse()
    before, after = advise(result), advise(other)
    assert (before["on"], before["settings"]) == (after["on"], after["settings"])
    assert before["held_out"] == after["held_out"]


def test_of_equals_the_mildest_is_recommended():
    result = probed()
    best = max(result["tccd_cells"], key=lambda cell: cell["right"].count("1"))["right"]
    for cell in result["tccd_cells"]:
        cell["right"] = best
    settings = advise(result)["settings"]
    assert (settings["alpha_cd"], settings["alpha_interp"], settings["layer"]) == (0.5, 0.4, 2)
    assert settings_of(mildest_first(result["tccd_cells"])[0]) == settings
    assert "gate_threshold" not in settings, "a threshold of no gate is no setting"


def test_what_is_missing_is_told():
    bare = {key: value for key, value in probed().items() if key not in ("tccd_cells", "questions")}
    assert not can_advise(bare, "competing")
    with pytest.raises(DataError, match="--alpha-cd"):
        advise(bare)
    with pytest.raises(DataError, match="name one of them"):
        advise(probed(), "another")
    with pytest.raises(ConfigError, match="at least 2"):
        advise(probed(), n_folds=1)
    with pytest.raises(DataError, match="at least one image a fold"):
        advise(probed(n=16), n_folds=9)


def test_the_command_tells_text_and_json(tmp_path):
    write_report(probed(), tmp_path / "on")
    write_report(probed(helped=0.0, harmed=0.3), tmp_path / "off")
    told = command(tmp_path / "on")
    assert told.exit_code == 0, told.output
    assert "Contrast for competing: on" in told.output
    assert "alpha_cd = 1.0" in told.output
    assert "oracle upper bound" in told.output
    assert "Contrast for competing: off" in command(tmp_path / "off" / "report.json").output
    machine = json.loads(command(tmp_path / "on", "--json").output)
    assert machine["advice"] == [advise(probed())]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("{", 1, "is not JSON"),
        ("[]", 2, "report of schema None"),
        ('{"schema": "tccd-report/1"}', 2, "expected 'tccd-report/3'"),
        ('{"schema": "tccd-report/3"}', 2, "lacks title"),
        ("\ud800", 1, "is not JSON"),
    ],
)
def test_a_report_that_is_none_is_one_line(tmp_path, text, code, message):
    file = tmp_path / "report.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = command(file)
    assert found.exit_code == code
    assert message in found.stderr
    assert str(file) in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    missing = command(tmp_path / "nowhere")
    assert missing.exit_code == 1
    assert "nowhere" in missing.stderr


@pytest.mark.slow
def test_a_real_competing_model_is_on_and_its_null_is_off():
    from eval.banks import fit_banks
    from eval.zoo import load
    from tccd.data import load_samples

    model, processor = load("llava-competing")
    train = list(load_samples("easy-vqa", split="train", limit=300, seed=0))
    test = list(load_samples("easy-vqa", split="test", limit=500, seed=0))
    bank = fit_banks(model, processor, train, [4])[4]
    result = run(
        *(model, processor, test, bank),
        Grid(layers={"text": [0], "vision": []}, alpha_cd=[0.5, 1.0]),
        name="competing",
    )
    advice = advise(result)
    assert advice["on"], advice["reason"]
    assert advice["held_out"]["delta"] > 0.02
    # The null of the same outcomes: which question a setting changed is drawn anew, and whether for the better.
    generator = np.random.default_rng(0)
    plain = outcomes_of(result["questions"]["competing"]["right"])
    for cell in result["tccd_cells"]:
        changed = int((outcomes_of(cell["right"]) != plain).sum())
        right, wrong = np.flatnonzero(plain), np.flatnonzero(~plain)
        turned = np.concatenate(
            [generator.choice(right, changed // 2, False), generator.choice(wrong, changed // 2, False)]
        )
        null = plain.copy()
        null[turned] ^= True
        cell["right"] = bits(null)
    assert not advise(result)["on"]
