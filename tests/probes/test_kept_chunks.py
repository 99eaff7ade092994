"""A kept chunk is taken up only by the run that it is of: the same questions, the same pictures, untouched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from eval.zoo import load
from probes.replacement import run
from probes.replacement.grid import Grid
from tccd.data import Sample
from tccd.errors import BusyError, ConfigError, DataError
from tests.probes.test_resume import Cut, make_bank

COLORS = ("red", "blue", "green", "teal", "gray", "black")
ASKED = "what color is the shape?"


@pytest.fixture(scope="module")
def zoo():
    return load("llava-competing")


@pytest.fixture(scope="module")
def bank(zoo):
    return make_bank(zoo[0])


@pytest.fixture
def samples(tmp_path):
    """Six questions about six picture files."""
    for number, color in enumerate(COLORS):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{number}.png")
    return [
        Sample(f"q{i}", f"{i}.png", ASKED, COLORS[i], None, None, partial(opened, tmp_path, i))
        for i in range(len(COLORS))
    ]


def opened(folder, number):
    with Image.open(folder / f"{number}.png") as image:
        image.load()
    return image


@pytest.fixture
def ask(zoo, bank, tmp_path):
    """A run of the samples given, two a chunk, cut short after so many chunks; None for a whole run."""

    def run_it(samples, cut=None, folder="j", grid=None, resume=False):
        done = []

        def progress(n, total):
            done.append(n)
            if len(done) == cut:
                raise Cut

        call = partial(run, *zoo, samples, bank, grid or Grid(), name="m", batch_size=2, progress=progress)
        if cut is None:
            return call(journal=tmp_path / folder, resume=resume)
        with pytest.raises(Cut):
            call(journal=tmp_path / folder, resume=resume)
        return None

    return run_it


def chunk(tmp_path, start=0, folder="j"):
    return tmp_path / folder / f"chunk-{start:08d}.json"


def test_two_runs_at_once_can_t_share_a_folder(ask, samples, tmp_path):
    """As reproduced: other questions asked into the same folder while the first run was at its first chunk."""
    reads = []

    def slow():
        reads.append(None)
        if len(reads) == 2:  # the first is for its size, before the folder is taken
            with pytest.raises(BusyError, match="is in use by a probe"):
                ask(samples[:4])
        return opened(tmp_path, 0)

    result = ask([replace(samples[0], load=slow), *samples[1:]])
    assert len(reads) >= 2
    assert len(result["questions"]["m"]["id"]) == 6
    assert sorted(file.name for file in (tmp_path / "j").glob("chunk-*")) == [
        chunk(tmp_path, start).name for start in (0, 2, 4)
    ]


@pytest.mark.parametrize("changed", [0, 3])
def test_pictures_changed_under_the_same_names(ask, samples, tmp_path, changed):
    ask(samples, cut=2)
    Image.new("RGB", (64, 64), "white").save(tmp_path / f"{changed}.png")
    kept = chunk(tmp_path, changed - changed % 2)
    with pytest.raises(DataError, match=rf"{kept.name} was made with other pictures: that of sample q{changed} "):
        ask([replace(sample) for sample in samples], resume=True)


def test_a_picture_that_no_kept_chunk_is_about_may_change(ask, samples, tmp_path):
    ask(samples, cut=2)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "5.png")
    again = [replace(sample) for sample in samples]
    result = ask(again, resume=True)
    assert result["questions"]["m"]["picture"] == [sample.picture_digest for sample in again]


def test_a_dose_was_measured_on_pictures_too(ask, samples, tmp_path):
    grid = Grid(layers={"text": (1,), "vision": (1,)}, controls=True)
    ask(samples, cut=1, grid=grid)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "5.png")
    with pytest.raises(DataError, match=r"doses\.json was made with other pictures: that of sample q5"):
        ask([replace(sample) for sample in samples], grid=grid, resume=True)
    (tmp_path / "j" / "doses.json").unlink()
    with pytest.raises(DataError, match=r"holds chunks without doses\.json"):
        ask([replace(sample) for sample in samples], grid=grid, resume=True)


def answered_otherwise(file):
    entry = json.loads(file.read_text())
    entry["made"]["clean"] = ["red", "blue"]
    return json.dumps(entry)


@pytest.mark.parametrize(
    "edited",
    [
        answered_otherwise,
        lambda file: "",
        lambda file: "{}",
        lambda file: "null",
        lambda file: file.read_text()[:-20],
        lambda file: "[" * 100_000,
        lambda file: json.dumps(json.loads(file.read_text())["made"]),
    ],
    ids=["answers", "empty", "no-keys", "null", "truncated", "deep", "of-an-older-version"],
)
def test_a_chunk_that_was_edited_is_refused_by_name(ask, samples, tmp_path, edited):
    ask(samples, cut=2)
    file = chunk(tmp_path, 2)
    file.write_text(edited(file))
    with pytest.raises(DataError, match=rf"{file.name} is damaged \(.*\); delete it, and it is made anew"):
        ask(samples, resume=True)
    file.unlink()
    assert len(ask(samples, resume=True)["questions"]["m"]["id"]) == 6


def test_a_chunk_of_another_run_or_place_is_refused_by_name(ask, samples, tmp_path):
    ask(samples, cut=2)
    other = [replace(sample, prompt="what is the color?") for sample in samples]
    ask(other, cut=2, folder="other")
    shutil.copy(chunk(tmp_path, 2), tmp_path / "kept")
    shutil.copy(chunk(tmp_path, 2, "other"), chunk(tmp_path, 2))
    with pytest.raises(DataError, match=r"chunk-00000002\.json was kept by a run with other settings"):
        ask(samples, resume=True)
    shutil.copy(tmp_path / "kept", chunk(tmp_path, 2))
    shutil.copy(chunk(tmp_path, 0), chunk(tmp_path, 4))
    with pytest.raises(DataError, match=r"chunk-00000004\.json was kept as chunk-00000000\.json"):
        ask(samples, resume=True)


def test_settings_edited_to_fit_do_not_make_the_chunks_fit(ask, samples, tmp_path):
    ask(samples, cut=2)
    ask(samples, cut=1, folder="other", grid=Grid(alphas=(0.5,)))
    shutil.copy(tmp_path / "other" / "settings.json", tmp_path / "j" / "settings.json")
    with pytest.raises(DataError, match=r"chunk-00000000\.json was kept by a run with other settings"):
        ask(samples, grid=Grid(alphas=(0.5,)), resume=True)


def test_a_full_disk_is_refused_before_the_first_forward(ask, samples, monkeypatch):
    from probes.asking import journal

    monkeypatch.setattr(journal.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(ConfigError, match=r"has 0\.0 MiB left, and the run needs at least 0\.2"):
        ask(samples, cut=None)


def test_a_refused_run_leaves_no_folder(ask, samples, tmp_path):
    with pytest.raises(ConfigError, match="nothing to erase"):
        ask(samples, grid=Grid(layers={}))
    assert not (tmp_path / "j").exists()
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing to erase"):
        ask(samples, grid=Grid(layers={}))
    assert (tmp_path / "j" / "mine.txt").read_text() == "mine"
