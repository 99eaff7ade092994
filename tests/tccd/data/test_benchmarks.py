"""Every benchmark's loader, on tables of the same schema and layout that are made here and read by `datasets`."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tccd.data import load_samples
from tccd.data.benchmarks import BENCHMARKS
from tccd.data.benchmarks.letters import LETTERS, letter_prompt, letters, parse_letter
from tccd.data.benchmarks.questions import BLINK_TASKS
from tccd.data.benchmarks.reader import side_by_side
from tccd.errors import DataError
from tests.tccd.data.layouts import (
    LAYOUTS,
    TEXT,
    Repository,
    blink_row,
    cv_bench_row,
    medblink_row,
    mmvp_row,
    picture,
    png,
    pope_row,
    scienceqa_row,
)

datasets = pytest.importorskip("datasets")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Make a repository and read it: `load("blink", {"rows": [...]})`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def read(name, made=None, **arguments):
        repository = tmp_path / name
        if not repository.exists():
            LAYOUTS[name](repository, **made or {})
        monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], repository=str(repository)))
        return load_samples(name, **arguments)

    return read


def test_every_benchmark_has_a_layout_here():
    assert LAYOUTS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_samples_of_every_benchmark(name, load):
    samples = load(name)
    assert (samples.source, samples.split) == (name, BENCHMARKS[name].split)
    assert len({s.id for s in samples}) == len(samples)
    for sample in samples:
        assert sample.answer in sample.choices
        assert sample.image.mode == "RGB"
        assert sample.size == sample.image.size
        assert sample.task
        if "A" in sample.choices:
            assert re.findall(r"^\((\w)\) ", sample.prompt, re.MULTILINE) == list(sample.choices)
    again = load(name)
    assert [(s.id, s.image_id) for s in again] == [(s.id, s.image_id) for s in samples]


# --- each benchmark's own ------------------------------------------------------------------------------------


def test_blink_has_the_papers_six_tasks_in_order(load):
    samples = load("blink")
    assert [s.task for s in samples] == list(BLINK_TASKS)
    assert [(s.id, s.answer, s.choices) for s in samples][3] == ("Counting-0", "B", ("A", "B"))
    assert samples[3].prompt == blink_row()["prompt"]  # as it comes


def test_blink_shows_several_pictures_side_by_side(load):
    row = blink_row(image_2=png(picture("blue", (4, 2))), image_4=png(picture("lime", (1, 4))))
    sample = load("blink", {"rows": [row]})[3]
    assert sample.size == sample.image.size == (6 + 3 + 8 + 3 + 1, 4)
    assert [sample.image.getpixel((x, 1)) for x in (5, 6, 8, 9, 16, 17, 20)] == [
        *((255, 0, 0), (200, 200, 200), (200, 200, 200), (0, 0, 255), (0, 0, 255), (200, 200, 200), (0, 255, 0))
    ]


def test_pictures_of_a_benchmark_are_laid_on_white_and_scaled(load):
    clear = Image.new("RGBA", (6, 4), (9, 9, 9, 0))
    grey = Image.frombytes("I;16", (6, 4), b"\x80\x80" * 24)
    sample = load("blink", {"rows": [blink_row(image_1=png(clear), image_2=png(grey))]})[3]
    assert sample.image.getpixel((0, 0)) == (255, 255, 255)
    assert sample.image.getpixel((6 + 3, 0)) == (128, 128, 128)


def test_mmvp_finds_each_picture_by_its_name(load):
    samples = load("mmvp")
    assert [s.id for s in samples] == [str(index) for index in range(1, 12)]  # 1, 10, 11, 2 by the files' names
    assert [s.image.getpixel((0, 0))[0] for s in samples] == pytest.approx(range(1, 12), abs=2)
    assert samples[0].prompt == "Open or closed?\n(A) Open\n(B) Closed (half)\nAnswer:"
    assert [s.answer for s in samples][:3] == ["B", "A", "B"]


def test_cv_bench_is_both_of_its_files(load):
    samples = load("cv-bench")
    assert [(s.task, s.answer, len(s.choices)) for s in samples] == [("Count", "C", 3), ("Depth", "A", 2)]
    assert samples[1].prompt == "How many?\n(A) lamp\n(B) table\nAnswer:"


def test_pope_is_yes_or_no_and_knows_which_questions_share_a_picture(load):
    samples = load("pope")
    assert [(s.answer, s.choices) for s in samples][:2] == [("No", ("Yes", "No")), ("Yes", ("Yes", "No"))]
    assert samples[0].prompt == "Is there a dog in the image?\nAnswer:"
    assert samples[0].image_id == samples[1].image_id != samples[2].image_id


def test_scienceqa_puts_the_hint_first(load):
    first, second = load("scienceqa-img")
    assert first.prompt.startswith("Look.\nWhich is it?\n(A) a\n")
    assert (first.answer, second.answer) == ("E", "A")
    assert second.prompt == "Which is it?\n(A) x\n(B) y\nAnswer:"


def test_medblink_takes_a_tasks_options_from_its_answers(load):
    samples = load("medblink")
    assert [(s.answer, s.choices) for s in samples[:2]] == [("Yes", ("Yes", "No")), ("No", ("Yes", "No"))]
    assert [s.answer for s in samples[2:]] == ["B", "A", "B"]
    assert samples[2].prompt == "Which?\n(A) choroid\n(B) retina\nAnswer:"


# --- malformed rows ------------------------------------------------------------------------------------------

NO_IMAGE = {"bytes": b"no image", "path": None}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("blink", blink_row(image_1=None), r"Counting, split val, row 1: image_1 is empty; expected a picture"),
        ("blink", blink_row(answer="(C)"), r"row 1: the answer '\(C\)' is not among the choices; expected .*A, B"),
        ("blink", blink_row(answer=None), r"row 1: answer is missing; expected a text that is not empty"),
        ("blink", blink_row(choices=None), r"row 1: choices is missing; expected a list of texts"),
        ("blink", blink_row(choices=["1"]), r"row 1: 1 options; expected 2 to 8"),
        ("blink", blink_row(prompt=" "), r"row 1: prompt is str ' '; expected a text that is not empty"),
        ("mmvp", mmvp_row(99), r"row 1: there is no picture 99.jpg; found 11 pictures"),
        ("mmvp", mmvp_row(2, Options="Open or Closed"), r"row 1: 0 options; expected 2 to 8"),
        ("mmvp", mmvp_row(2, Options="(a) Open (c) Shut"), r"row 1: Options is .*; expected \(a\) \.\.\. \(b\)"),
        ("mmvp", mmvp_row(2, **{"Correct Answer": "(c)"}), r"row 1: the answer '\(c\)' is not among the choices"),
        ("cv-bench", cv_bench_row(image=None), r"row 1: image is empty; expected a picture"),
        ("cv-bench", cv_bench_row(answer="2"), r"row 1: the answer '2' is not among the choices"),
        ("cv-bench", cv_bench_row(choices=list("abcdefghi")), r"row 1: 9 options; expected 2 to 8"),
        (
            "pope",
            pope_row(answer="maybe"),
            r"row 1: the answer 'maybe' is not among the choices; expected yes or no",
        ),
        ("pope", pope_row(image=None), r"row 1: image is empty; expected a picture"),
        (
            "scienceqa-img",
            scienceqa_row(answer=5),
            r"row 1: answer is int 5; expected the number of a choice, 0 to 4",
        ),
        (
            "scienceqa-img",
            scienceqa_row(answer=None),
            r"row 1: answer is missing; expected the number of a choice",
        ),
        ("scienceqa-img", scienceqa_row(image=None), r"row 1: image is empty; expected a picture"),
        ("medblink", medblink_row(task="one"), r"row 1, task one: 1 options; expected 2 to 8"),
        ("medblink", medblink_row(image=None), r"row 1: image is empty; expected a picture"),
        ("medblink", medblink_row(task=None), r"row 1: task is missing; expected a text that is not empty"),
    ],
)
def test_a_malformed_row_is_named(name, row, message, load):
    sound = {"blink": blink_row, "cv-bench": cv_bench_row, "pope": pope_row, "scienceqa-img": scienceqa_row}
    first = [medblink_row(answer=a) for a in ("yes",)] if name == "medblink" else None
    first = first or ([mmvp_row(1)] if name == "mmvp" else [sound[name]()])
    if name == "medblink":
        row = row | {"answer": "lone" if row["task"] == "one" else "no"}
    with pytest.raises(DataError, match=message):
        load(name, {"rows": [*first, row]})


@pytest.mark.parametrize("name", ["blink", "cv-bench", "pope", "scienceqa-img", "medblink"])
def test_an_unreadable_picture_is_named_when_it_is_read(name, load):
    rows = {"blink": blink_row, "cv-bench": cv_bench_row, "pope": pope_row, "scienceqa-img": scienceqa_row}
    column = "image_1" if name == "blink" else "image"
    row = rows.get(name, medblink_row)(**{column: NO_IMAGE})
    samples = load(name, {"rows": [row, medblink_row(answer="no")] if name == "medblink" else [row]})
    sample = samples[3] if name == "blink" else samples[0]
    with pytest.raises(
        DataError, match=rf"can't read image in {column} of .* row 0: .*; expected a file that Pillow"
    ):
        _ = sample.image


def test_answers_that_are_not_public(load):
    with pytest.raises(DataError, match=r"'hidden' is not among .*; the answers of this split are not public"):
        load("blink", {"rows": [blink_row(answer="hidden")], "split": "test"}, split="test")


def test_a_split_that_there_is_not(load):
    with pytest.raises(
        DataError, match=r"can't load .*pope, split val, at revision 4db12766.*: ValueError: .*val"
    ):
        load("pope", split="val")


def test_a_table_of_another_form(load, tmp_path):
    columns = {"image": datasets.Image(), "text": TEXT}
    Repository(tmp_path / "pope").table([{"image": png(picture()), "text": "?"}], columns, "test")
    with pytest.raises(DataError, match=r"row 0: there is no column question; .* another form at this revision"):
        load("pope")
    Repository(tmp_path / "medblink").table([{"task": "x"}], {"task": TEXT}, "val")
    with pytest.raises(DataError, match=r"split val: there is no column image; found task"):
        load("medblink")


def test_an_empty_table(load):
    with pytest.raises(DataError, match=r"can't load .*pope, .*corresponds to no data"):
        load("pope", {"rows": []})


# --- by name, at a commit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_commits_are_pinned_and_can_be_overridden(name, load, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}", BENCHMARKS[name].revision)
    asked = []
    real = datasets.load_dataset_builder

    def record(*args, revision, **kwargs):
        builder = real(*args, revision=revision, **kwargs)
        builder.hash = f"commit of {revision}"
        asked.append(revision)
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", record)
    assert load(name).revision == f"commit of {BENCHMARKS[name].revision}"
    assert set(asked) == {BENCHMARKS[name].revision}
    assert load(name, revision="main").revision == "commit of main"


def test_a_benchmark_that_is_not_in_the_cache_and_no_hub(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"can't load MahtabBg/MedBLINK, split val, at revision e492d79e"):
        load_samples("medblink")


def test_columns_are_refused():
    with pytest.raises(DataError, match=r"columns is .*, but blink has no columns"):
        load_samples("blink", columns={"image": "image_2"})


def test_sources_are_listed():
    with pytest.raises(
        DataError, match=r"expected easy-vqa, .*blink, mmvp, cv-bench, pope, scienceqa-img, medblink"
    ):
        load_samples("blinc")


# --- letters and pictures ------------------------------------------------------------------------------------


@given(options=st.integers(2, 8), data=st.data())
def test_letters_round_trip(options, data):
    choices = letters(options, "here")
    letter = data.draw(st.sampled_from(choices))
    for text in (letter, f"({letter})", f" {letter}. ", letter.lower(), f"({letter.lower()})"):
        assert parse_letter(text, choices, "here") == letter
    prompt = letter_prompt("Which?", [f"option {i}" for i in range(options)])
    assert prompt.count("\n") == options + 1


@given(text=st.text(max_size=4))
def test_what_is_no_letter_is_refused(text):
    if text.strip().strip("().").upper() in (*LETTERS[:3],):
        return
    with pytest.raises(DataError, match="is not among the choices"):
        parse_letter(text, letters(3, "here"), "here")


@given(sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=4))
def test_side_by_side_keeps_every_picture(sizes):
    shown = side_by_side([Image.new("L", size, 255) for size in sizes])
    height = max(h for _, h in sizes)
    widths = [w if h == height else max(1, int(w * (height / h))) for w, h in sizes]
    assert shown.size == (sum(widths) + 3 * (len(sizes) - 1), height)
    assert sum(shown.getpixel((x, 0)) == (200, 200, 200) for x in range(shown.width)) == 3 * (len(sizes) - 1)
