"""`tccd fit --data A --data B` and `tccd probe coverage` as a user runs them."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from eval.zoo import path
from probes.asking.journal import FOLDER
from probes.coverage import report
from probes.coverage.schema import checked
from tccd import CentroidBank
from tccd.__main__ import app
from tccd.data import load_samples
from tccd.errors import ConfigError, DataError

MODEL = path("llava-grounded")


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="tccd")
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def ok(*args):
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def covered(bank, out, *args, data=("easy-vqa", "digits")):
    named = [part for one in data for part in ("--data", one)]
    return ["probe", "coverage", "--model", MODEL, "--bank", bank, "--out", out, "--images", 12, *named, *args]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    out = tmp_path_factory.mktemp("bank") / "union.safetensors"
    args = ["--images", 12, "--layers", "text=1,vision=1", "--k", 8, "--prompt", "from-data", "--no-vision-mean"]
    ok("fit", "--model", MODEL, "--data", "easy-vqa", "--data", "digits", "--out", out, *args)
    return out


@pytest.fixture(scope="module")
def out(bank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("covered")
    ok(*covered(bank, folder, "--subset", 5, "--draws", 20))
    return folder


def test_a_fit_of_several_sets_is_of_their_union(bank):
    made = CentroidBank.load(bank)
    assert made.provenance["data"] == "easy-vqa + digits"
    assert [one["samples"] for one in made.provenance["sources"]] == [12, 12]
    for source in ("easy-vqa", "digits"):
        taken = load_samples(source, split="train", images=12, per_image=1, seed=42)
        assert made.shared_pictures(s.picture_digest for s in taken) == 12


def test_its_files_are_whole(out):
    result = checked(json.loads((out / report.JSON).read_text()))
    assert [one["name"] for one in result["sets"]] == ["easy-vqa", "digits"]
    assert [row["how"] for row in result["subset"]] == ["greedy", "coincide", "random"]
    assert len((out / report.CSV).read_text().splitlines()) == 1 + 6
    assert not (out / FOLDER).exists()


def test_the_page_needs_nothing_else(out):
    page = (out / report.PAGE).read_text()
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#|coverage\.)", page)
    ids = re.findall(r"\bid=\"([^\"]+)\"", page)
    assert len(ids) == len(set(ids))
    for heading in ("Coverage", "What each adds to the others", "Density", "Thin codes", "A subset"):
        assert heading in page
    assert page.count("<svg") == 5


def test_names_are_escaped(out):
    result = json.loads((out / report.JSON).read_text())
    text = json.dumps(result).replace('"easy-vqa"', '"<script>x</script>"')
    assert "<script" not in report.render(checked(json.loads(text)))


def test_a_subset_is_data(out, bank, tmp_path):
    rows = [json.loads(line) for line in (out / "subset.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    samples = load_samples(str(out / "subset.jsonl"))
    known = {s.id: s for s in load_samples("easy-vqa", split="train")}
    for sample in samples:
        assert sample.picture_digest == known[sample.id].picture_digest
        assert (sample.prompt, sample.answer) == (known[sample.id].prompt, known[sample.id].answer)
    told = json.loads(ok(*covered(bank, tmp_path, "--draws", 0, "--json", data=[out / "subset.jsonl"])))
    before = json.loads((out / report.JSON).read_text())["subset"][0]
    shares = {row["codebook"]: row["share"] for row in told["coverage"]}
    # Pictures of the subset are covered at least as well: a pair counts where picture and any of its texts meet.
    assert shares["text"] == pytest.approx(before["text"])
    assert shares["vision"] == pytest.approx(before["vision"])


def test_a_run_cut_short_goes_on(bank, tmp_path, monkeypatch):
    from probes.coverage import assigning

    whole, cut, calls = assigning.look_up, [], []

    def failing(*args):
        cut.append(1)
        if len(cut) > 6:
            raise DataError("cut")
        return whole(*args)

    monkeypatch.setattr(assigning, "look_up", failing)
    assert run(*covered(bank, tmp_path / "a", "--draws", 0)).exit_code == 1
    kept = len(list((tmp_path / "a" / FOLDER).glob("chunk-*.json")))
    assert kept == 3
    monkeypatch.setattr(assigning, "look_up", lambda *args: calls.append(1) or whole(*args))
    again = run(*covered(bank, tmp_path / "a", "--draws", 0))
    assert "--resume" in again.stderr
    other = run(*covered(bank, tmp_path / "a", "--draws", 0, "--resume", "--text", "prompt"))
    assert "other settings" in other.stderr
    ok(*covered(bank, tmp_path / "a", "--draws", 0, "--resume"))
    resumed = len(calls)
    ok(*covered(bank, tmp_path / "b", "--draws", 0))
    assert len(calls) - resumed == resumed + 2 * kept
    one, two = (json.loads((tmp_path / name / report.JSON).read_text()) for name in "ab")
    assert one | {"created": ""} == two | {"created": ""}


def test_facts_of_a_manifest_are_counted(bank, tmp_path):
    rows = []
    for number, facts in enumerate(([["circle"], ["circle", "red"]], ["square"], [["circle"]])):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "prompt": "is it red?", "facts": facts})
    manifest = tmp_path / "a.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(ok(*covered(bank, tmp_path / "out", "--draws", 0, "--json", data=[manifest])))
    (facts,) = [row for row in told["coverage"] if row["codebook"] == "facts"]
    assert (facts["hit"], facts["k"], facts["share"]) == (3, None, None)
    density = {row["measure"]: row["value"] for row in told["density"]}
    assert density["facts_samples"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("facts", ["circle", [["a", "b", "c", "d"]], [[]], [5], {"a": 1}])
def test_facts_of_another_form_are_refused(tmp_path, facts):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "0.png", "prompt": "x", "facts": facts}))
    with pytest.raises(DataError, match=r"facts is .*; expected a list of facts"):
        load_samples(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.pop("coverage"), "lacks coverage"),
        (lambda r: r["coverage"][0].update(set="other"), "expected one of"),
        (lambda r: r["coverage"][0].update(share=2.0), "at most 1"),
        (lambda r: r.update(schema="x"), "expected 'tccd-coverage/1'"),
    ],
)
def test_a_result_that_is_none_is_refused(out, change, told):
    result = json.loads((out / report.JSON).read_text())
    change(result)
    with pytest.raises((ConfigError, DataError), match=told):
        checked(result)
