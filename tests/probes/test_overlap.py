"""What a report says of its pictures: copies under other names, and those that the bank was fitted on."""

from __future__ import annotations

import json
from functools import partial

import pytest
from PIL import Image
from typer.testing import CliRunner

from eval.zoo import load, path
from probes.compare import compare
from probes.replacement import run
from probes.replacement.grid import Grid
from probes.replacement.overlap import data_block, seen_pictures
from probes.report import validate
from probes.report.data import told
from probes.report.page import render
from probes.report.schema import plain
from tccd.__main__ import app
from tccd.data import load_samples
from tccd.errors import BankMismatchError, ConfigError, DataError
from tests.probes.probed import probed
from tests.probes.test_resume import make_bank

COLORS = ("red", "blue", "green", "teal")


@pytest.fixture(scope="module")
def zoo():
    return load("llava-competing")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six questions about six files, of which two are copies."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, color in enumerate((*COLORS, "red", "blue")):
        Image.new("RGB", (64, 64), color).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "prompt": "what color is the shape?", "answer": color})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def samples(manifest):
    return list(load_samples(str(manifest)))


@pytest.fixture(scope="module")
def banks(zoo, samples):
    """One fitted on two of the pictures and on one that is not asked about; one that keeps no digests."""
    seen = [samples[0].picture_digest, samples[3].picture_digest, "0" * 16]
    bank = make_bank(zoo[0])
    return {"seen": bank.with_provenance(pictures=seen), "older": bank}


@pytest.fixture(scope="module")
def result(zoo, samples, banks):
    return run(*zoo, samples, banks, Grid(layers={"text": (1,), "vision": (1,)}), name="m", batch_size=6)


def test_the_report_knows_copies_and_what_the_bank_has_seen(result, samples):
    validate(result)
    assert result["questions"]["m"]["picture"] == [sample.picture_digest for sample in samples]
    assert result["data"]["m"] == {
        "questions": 6,
        "images": 6,
        "pictures": 4,
        "copies": 2,
        "banks": {"seen": {"pictures": 3, "overlap": 2}, "older": {"pictures": None, "overlap": None}},
    }


def test_the_sentences(result):
    assert told(result) == [
        "6 questions about 6 images, of which 2 are copies of another: 4 distinct pictures. "
        "2 of 4 pictures were among those that bank seen was fitted on. "
        "Whether any was among those that bank older was fitted on is not known: it keeps no digests of its "
        "pictures."
    ]
    assert told(probed()) == []


def test_the_page_warns_near_its_top_and_tells_the_data(result):
    page = render(plain(result))
    head, _, body = page.partition("<main>")
    assert "2 of 4 pictures were among those that bank seen was fitted on: what is measured" in head
    assert told(result)[0] in body
    assert [w["code"] for w in result["warnings"]].count("seen-pictures") == 1
    assert "Beware" not in render(probed())


def test_a_warning_can_t_break_out_of_the_page():
    shown = {**probed(), "warnings": [{"code": "x", "model": "competing", "text": "<script>alert(1)</script>"}]}
    page = render(shown)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("warnings", [{"code": "x", "model": "competing"}], "lacks text"),
        ("warnings", [{"code": "x", "model": "other", "text": ""}], "names the model 'other'"),
        ("data", {"competing": {"questions": 1}}, "lacks images"),
        ("questions", {"competing": {**probed()["questions"]["competing"], "picture": ["a"]}}, "has 1 entries"),
    ],
)
def test_a_wrong_part_is_refused(part, value, message):
    with pytest.raises((ConfigError, DataError), match=message):
        validate({**probed(), part: value})


def test_no_pictures_in_common(samples, banks):
    bank = banks["older"].with_provenance(pictures=["0" * 16])
    block = data_block(samples, [sample.picture_digest for sample in samples], {"bank": bank})
    assert seen_pictures({"data": {"m": block}}) == []
    assert (
        "0 of 4 pictures were among those that the bank was fitted on."
        in told({"data": {"m": block}, "config": {}})[0]
    )


def test_the_terminal_and_the_json_tell_it_too(banks, manifest, tmp_path):
    banks["seen"].save(tmp_path / "bank.safetensors")
    args = ["probe", "replacement", "--model", str(path("llava-competing")), "--data", str(manifest)]
    args += ["--bank", str(tmp_path / "bank.safetensors"), "--layers", "1", "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0, shown.output
    assert "2 of 4 pictures were among those that the bank was fitted on." in shown.stdout
    again = CliRunner().invoke(app, [*args, "--json"])
    assert json.loads(again.stdout)["data"]["llava-competing"]["banks"]["bank"]["overlap"] == 2


def test_compared_reports_keep_what_each_said(result):
    others = probed("other", n=6, questions=result["questions"]["m"]["id"])
    others["questions"]["other"] |= {name: result["questions"]["m"][name] for name in ("image_id", "answer")}
    merged = compare({"a": {**result, "config": result["config"] | {"fitted_on": "owner/base"}}, "b": others})
    assert merged["data"] == result["data"]
    assert merged["warnings"] == result["warnings"]
    assert told(merged)[-1] == (
        "The bank was fitted on owner/base, another model than this one, as --fitted-on said."
    )


def test_a_bank_taken_on_its_word_is_named(samples, banks):
    model, processor = load("llava-grounded")
    ask = partial(run, model, processor, samples, banks["older"], Grid(layers={"text": (1,)}), name="m")
    with pytest.raises(BankMismatchError, match="fingerprint"):
        ask()
    result = ask(fitted_on="llava-competing")
    assert result["config"]["fitted_on"] == "llava-competing"
    assert told(result)[-1].startswith("The bank was fitted on llava-competing, another model than this one")
    assert told(result)[-1] in render(plain(result))


def test_a_bank_that_fits_anyway_is_not_taken_on_its_word(zoo, samples, banks):
    result = run(*zoo, samples, banks["older"], Grid(layers={"text": (1,)}), fitted_on="llava-competing")
    assert "fitted_on" not in result["config"]
