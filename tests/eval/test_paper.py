"""The published protocol as one command: its commands parse, its figures are the published ones, and it runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from eval import paper
from eval.paper import PUBLISHED, TaskFigures, figures, read_expected, summary
from tccd.__main__ import app
from tccd.data.benchmarks import BENCHMARKS
from tccd.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "eval" / "paper.sh"
PAPER = Path(os.environ.get("TCCD_PAPER") or ROOT.parent / "shared" / "paper")
MODEL = str(ROOT / "eval" / "zoo" / "llava-competing")


def script(*args, **environment):
    programs = {"PYTHON": sys.executable, "TCCD": str(Path(sys.executable).with_name("tccd"))}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
        env={**os.environ, **programs, **environment},
    )


def planned(*args):
    """The words of every command of a dry run."""
    result = script("--dry-run", *args, TCCD="tccd", PYTHON="python3")
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def parse(words):
    """A command's parameters as the real CLI reads them: unknown, missing and malformed options raise."""
    command, rest = (get_command(app), words[1:]) if words[0] == "tccd" else (get_command(paper.app), words[3:])
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    return command.make_context(command.name, rest).params


# --- the script ----------------------------------------------------------------------------------------------


def test_the_script_is_sound_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)


def test_a_dry_run_prints_the_published_protocol_in_commands_that_parse(tmp_path):
    commands = planned("--out", tmp_path / "out", "owner/model")
    fit, *probes, last = commands
    assert fit[:2] == ["tccd", "fit"]
    known = parse(fit)
    assert (known["model"], known["data"], known["split"]) == (
        "owner/model",
        ["detection-datasets/coco"],
        ["train"],
    )
    assert [len(one) for one in known["data_revision"]] == [40]
    assert (known["k"], known["images"], known["seed"], known["layers"]) == (256, 2000, 42, "text=12,vision=16")
    assert [p[:3] for p in probes] == [["tccd", "probe", "replacement"]] * len(BENCHMARKS)
    parsed = [parse(p) for p in probes]
    assert {p["data"] for p in parsed} == BENCHMARKS.keys()
    assert {(p["alphas"], p["alpha_cd"], p["controls"], p["segments"]) for p in parsed} == {
        ("0,0.1,0.2,0.3,0.4,0.5,0.6,0.8", "1", True, "text=all,vision=span")
    }
    assert {tuple(p["bank"]) for p in parsed} == {(known["out"],)}
    assert parse(last)["reports"] == [p["out"] for p in parsed]
    assert not (tmp_path / "out").exists()


def test_several_models_are_compared_by_benchmark():
    commands = planned("--benchmarks", "blink,mmvp", "--limit", "9", "a/b", "./c d", "--expected", "a/b=x.json")
    compares = [parse(c) for c in commands if c[:3] == ["tccd", "probe", "compare"]]
    assert [c["title"] for c in compares] == ["blink", "mmvp"]
    probes = [parse(c) for c in commands if c[:3] == ["tccd", "probe", "replacement"]]
    assert [p["model"] for p in probes] == ["a/b", "a/b", "./c d", "./c d"]
    assert {p["limit"] for p in probes} == {9}
    assert len({p["out"] for p in probes}) == 4
    assert compares[0]["reports"] == [p["out"] for p in probes[::2]]
    last = parse(commands[-1])
    assert len(last["reports"]) == 4
    assert last["expected"] == ["a/b=x.json"]


def test_images_to_fit_on_can_be_chosen():
    fit = parse(planned("--fit-data", "./photos", "--fit-split", "x", "--fit-revision", "v1", "m")[0])
    assert (fit["data"], fit["split"], fit["data_revision"]) == (["./photos"], ["x"], ["v1"])
    assert parse(planned("--fit-data", "owner/pictures", "m")[0])["data_revision"] == ()


def test_what_is_finished_is_kept_until_it_would_differ(tmp_path):
    stand_in = tmp_path / "tccd"
    stand_in.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$1" = fit ]; then touch "${@: -1}"; else mkdir -p "${@: -1}" && touch "${@: -1}/report.json"; fi\n'
        '[[ "$*" != *"--seed 13 "* ]]\n'
    )
    stand_in.chmod(0o755)
    (tmp_path / "out" / "m").mkdir(parents=True)

    def kept(*args):
        given = ("--out", tmp_path / "out", "--benchmarks", "blink,pope", *args, "m")
        result = script(*given, TCCD=str(stand_in), PYTHON="true")
        return result.returncode, result.stdout.count("# kept: ")

    assert kept() == (0, 0)
    assert kept() == (0, 3)
    assert kept("--limit", 5) == (0, 1)  # the bank
    assert kept("--limit", 5) == (0, 3)
    assert kept("--limit", 5, "--k", 7) == (0, 0)  # another bank, so measured anew
    assert kept("--seed", 13) == (1, 0)  # fails
    assert kept("--seed", 13) == (1, 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no MODEL; see --help"),
        (["--verbose", "m"], "unknown option --verbose"),
        (["m", "--out"], "--out needs a value"),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message):
    result = script(*args)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


def test_help_names_every_option():
    taken = set(re.findall(r"^ +(?:-h \| )?(--[a-z-]+)\)", SCRIPT.read_text(), re.MULTILINE))
    assert len(taken) == 14
    assert taken <= {word.strip(",") for word in script("--help").stdout.split()}


# --- figures -------------------------------------------------------------------------------------------------


def cell(model, text, **more):
    rows = [{"task": task, "n": 10, "baseline": b, "accuracy": a} for task, (b, a) in text.items()]
    return {"model": model, "by_task": rows} | more


def report(**changes):
    erased = [
        cell("m", {"x": (0.8, 0.5), "y": (0.6, 0.5)}, modality="text", segment="all", alpha_interp=0.0),
        cell("m", {"x": (0.8, 0.8), "y": (0.6, 0.6)}, modality="text", segment="all", alpha_interp=0.4),
        cell("m", {"x": (0.8, 0.7), "y": (0.6, 0.6)}, modality="vision", segment="span", alpha_interp=0.0),
    ]
    contrast = {"alpha_cd": 1.0, "beta": 0.0, "gate": None}
    tccd = [
        cell("m", {"x": (0.8, 0.7), "y": (0.6, 0.6)}, alpha_interp=0.0, **contrast),
        cell("m", {"x": (0.8, 0.6), "y": (0.6, 0.9)}, alpha_interp=0.4, **contrast),
        cell("m", {"x": (0.8, 1.0), "y": (0.6, 1.0)}, alpha_interp=0.4, **contrast | {"alpha_cd": 2.0}),
    ]
    made = {"config": {"data": "blink"}, "models": {"m": {}}, "cells": erased, "tccd_cells": tccd}
    return made | changes


def test_figures_of_a_report():
    x, y = figures(report(), "here")
    assert (x.model, x.data, x.task, x.n) == ("m", "blink", "x", 10)
    assert (x.text_cost, x.vision_cost, x.fixed, x.best) == pytest.approx((0.3, 0.1, -0.2, -0.1))
    assert (y.text_cost, y.vision_cost, y.fixed, y.best) == pytest.approx((0.1, 0.0, 0.3, 0.3))
    assert summary([x, y]) == pytest.approx(
        {"text cost": 0.2, "vision cost": 0.05, "ratio": 4.0, "best single gain": 0.3}
    )


def test_a_ratio_to_no_vision_cost_is_not_estimable():
    row = TaskFigures("m", "blink", "x", 10, text_cost=0.2, vision_cost=-0.1, fixed=0.0, best=0.0)
    assert summary([row])["ratio"] is None


def test_a_report_of_another_protocol_is_refused():
    with pytest.raises(DataError, match="here: text cost, m was measured in 0 cells"):
        figures(report(cells=[]), "here")
    with pytest.raises(DataError, match="here: text cost, m was measured in 2 cells"):
        figures(report(cells=report()["cells"] + report()["cells"]), "here")
    with pytest.raises(DataError, match="here: TCCD, m was measured in 0 cells"):
        figures(report(tccd_cells=[]), "here")


def released(folder):
    task = {"alphas": {"0.4": {"delta": -0.05}}, "best_delta": 0.01}
    cost = {"text_centroid_cost": 0.25, "vis_centroid_cost": 0.05}
    file = folder / "m_expected.json"
    file.write_text(json.dumps({"sufficiency": {"x": cost}, "alpha_sweep": {"x": task}}))
    return file


def test_released_figures_stand_beside_the_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "read_report", lambda path: report())
    tables = list(paper.tables([Path("r")], dict([read_expected(f"m={released(tmp_path)}")])))
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in tables:
        console.print(table)
    text = console.export_text()
    assert "+30.0 (+25.0)" in text
    assert "+10.0 (+5.0)" in text
    assert "-20.0 (-5.0)" in text
    assert "Measured, 1 model " in text
    assert " 4.00 " in text
    assert " 3.97 " in text
    with pytest.raises(ConfigError, match="--expected names other; the reports are of m"):
        list(paper.tables([Path("r")], {"other": {}}))


def test_released_figures_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="expected MODEL=FILE"):
        read_expected("m")
    (tmp_path / "x.json").write_text('{"sufficiency": {"x": {}}}')
    with pytest.raises(DataError, match=r"x\.json is not a released result \(KeyError: 'text_centroid_cost'\)"):
        read_expected(f"m={tmp_path / 'x.json'}")


@pytest.mark.skipif(not PAPER.is_dir(), reason="the published tables are not part of this repository")
def test_the_published_summary_is_that_of_the_released_tables():
    names = ("qwen", "qwen_3b", "qwen3", "qwen3_4b", "internvl", "llava_ov", "idefics3")
    known = dict(read_expected(f"{name}={PAPER / name}.json") for name in names)
    rows = [
        TaskFigures(name, "blink", task, 0, **values) for name, by in known.items() for task, values in by.items()
    ]
    assert summary(rows) == pytest.approx(PUBLISHED, abs=0.005)
    assert len(rows) == 42


# --- for real ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_script_on_a_default_model(tmp_path):
    small = ["--fit-data", "easy-vqa", "--images", 30, "--k", 4, "--layers", "text=3,vision=3", "--limit", 24]
    args = ["--out", tmp_path / "out", "--benchmarks", "easy-vqa", *small, MODEL]
    result = script(*args)
    assert result.returncode == 0, result.stderr
    assert "TCCD at 0.4" in result.stdout
    assert len(list((tmp_path / "out").glob("*/easy-vqa/report.html"))) == 1


def test_a_benchmark_through_the_real_probe(tmp_path, monkeypatch):
    """Loader, model, scoring and report of POPE, with pictures that the default models know."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for color in ("red", "blue"):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle((16, 16, 48, 48), fill=color)
        for asked in ("red", "blue"):
            question = f"is there a {asked} shape in the image?"
            answer = "yes" if asked == color else "no"
            rows.append({"image": picture, "question": question, "answer": answer, "category": "random"})
    features = {
        "image": datasets.Image(),
        **{c: datasets.Value("string") for c in ("question", "answer", "category")},
    }
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    (tmp_path / "pope" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "pope" / "data" / "test-00000-of-00001.parquet")
    monkeypatch.setitem(BENCHMARKS, "pope", replace(BENCHMARKS["pope"], repository=str(tmp_path / "pope")))

    def tccd(*args):
        result = CliRunner().invoke(app, list(map(str, args)))
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    fit = ["--images", 20, "--prompt", "from-data", "--layers", "text=3,vision=3", "--k", 2]
    bank = tmp_path / "bank.safetensors"
    tccd("fit", "--model", MODEL, "--data", "easy-vqa", *fit, "--out", bank, "--json")
    grid = ["--alphas", "0,0.4", "--alpha-cd", 1, "--segments", "vision=span", "--out", tmp_path / "report"]
    found = tccd("probe", "replacement", "--model", MODEL, "--bank", bank, "--data", "pope", *grid, "--json")
    assert {cell["n"] for cell in found["cells"]} == {4}
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["config"]["data"] == "pope"
    [questions] = written["questions"].values()
    assert questions["answer"] == ["Yes", "No", "No", "Yes"]
    assert len(figures(written, "here")) == 1
