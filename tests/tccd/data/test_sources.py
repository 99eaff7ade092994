"""Which reader a source gets: folders that `save_to_disk` wrote, and paths that are not there."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from tccd.data import load_samples
from tccd.errors import DataError

datasets = pytest.importorskip("datasets")


def rows(*questions, split=None):
    images = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(len(questions))]
    made = datasets.Dataset.from_dict({"image": images, "question": list(questions)}, split=split)
    return made.cast_column("image", datasets.Image())


@pytest.fixture
def saved(tmp_path):
    splits = {"train": rows("a?", "b?", "c?"), "test": rows("d?")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


# --- save_to_disk --------------------------------------------------------------------------------------------


def test_a_saved_dictionary_of_splits(saved):
    samples = load_samples(str(saved), split="train")
    assert (samples.source, samples.split, samples.revision) == ("saved", "train", None)
    assert [s.prompt for s in samples] == ["a?", "b?", "c?"]
    assert [s.image.getpixel((0, 0)) for s in samples] == [(n, 0, 0) for n in range(3)]
    assert load_samples(str(saved), purpose="fit").split == "train"
    assert load_samples(str(saved), purpose="probe").split == "test"
    drawn = load_samples(str(saved), split="train", seed=1, limit=2)
    assert {s.id for s in drawn} < {s.id for s in samples}
    with pytest.raises(DataError, match=r"has the splits train, test; choose one"):
        load_samples(str(saved))
    with pytest.raises(DataError, match=r"has no split 'val'; found train, test"):
        load_samples(str(saved), split="val")
    with pytest.raises(DataError, match="a local folder has no revision"):
        load_samples(str(saved), split="test", revision="main")


def test_one_split_of_a_saved_dictionary(saved):
    assert [s.prompt for s in load_samples(str(saved / "test"))] == ["d?"]


def test_a_saved_table_knows_its_split_or_has_none(tmp_path):
    rows("a?", split="train").save_to_disk(tmp_path / "named")
    rows("a?").save_to_disk(tmp_path / "bare")
    assert load_samples(str(tmp_path / "named"), purpose="probe").split == "train"
    assert load_samples(str(tmp_path / "bare")).split is None
    with pytest.raises(DataError, match="has no split 'test'; it has no splits: leave it out"):
        load_samples(str(tmp_path / "bare"), split="test")
    with pytest.raises(DataError, match=r"bare: there is no 'q' for prompt; found image, question"):
        load_samples(str(tmp_path / "bare"), columns={"prompt": "q"})


def test_a_damaged_saved_table(saved):
    [file] = (saved / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"can't open '.*saved' as a folder of data files: \w+"):
        load_samples(str(saved), split="train")


def test_pictures_of_tables_show_what_they_hold(tmp_path):
    sixteen = Image.fromarray(np.full((4, 4), 0x8080, dtype=np.uint16))
    still, moved = Image.new("RGBA", (4, 4), (0, 0, 0, 0)), io.BytesIO()
    Image.new("L", (4, 4)).save(moved, "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 255)])
    made = datasets.Dataset.from_dict(
        {"image": [sixteen, still, {"bytes": moved.getvalue(), "path": None}], "question": list("abc")},
        features=datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")}),
    )
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "files" / "data.parquet")
    for folder in ("saved", "files"):
        one, two, three = load_samples(str(tmp_path / folder))
        assert one.image.getcolors() == [(16, (128, 128, 128))]
        assert two.image.getcolors() == [(16, (255, 255, 255))]
        with pytest.raises(
            DataError, match=rf"^sample {three.id}: image of .*row 2 is an animation, or .* of 2 frames"
        ):
            _ = three.image


# --- paths that are not there --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "./phtos",
        "../phtos",
        "~/phtos",
        "~nobody-of-that-name/phtos",
        "/phtos",
        "phtos/",
        "data/phtos/",
        "photos/train",
        "data/questions.jsonl",
        "data/questions.JSON",
        "data/table.parquet",
        "data/table.csv",
        "data/cat.jpg",
        "a/b/c",
        "x" * 5000,
        "nul\0",
        "\ud800",
    ],
)
def test_a_mistyped_path_is_not_looked_for_on_the_hub(source, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^no such file or folder: ") as raised:
        load_samples(source)
    assert len(str(raised.value)) < 700


def test_what_may_be_a_data_set_says_both(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        DataError, match=r"can't open 'owner/none'. As a path: .*As a data-set id on the Hugging Face"
    ):
        load_samples("owner/none")


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_source_is_not_the_current_folder(source):
    with pytest.raises(DataError, match="the data source is empty; expected easy-vqa"):
        load_samples(source)


def test_a_folder_with_a_pipe_and_a_folder_that_are_called_images(tmp_path):
    """A pipe would be waited for without end."""
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.png").symlink_to(tmp_path / "gone.png")
    a, d = load_samples(str(tmp_path))
    assert (a.id, d.id) == ("a.png", "d.png")
    with pytest.raises(DataError, match=r"^sample d\.png: can't read image"):
        _ = d.image


@pytest.mark.parametrize("prompt", ["", " \n", "\udcff"])
def test_a_prompt_that_is_no_text(prompt):
    with pytest.raises(DataError, match=r"prompt is str '.*'; expected a question about the image"):
        load_samples("easy-vqa", prompt=prompt)


# --- what is none of these --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["easy_vqa", "./none.jsonl", "/no/such/folder", "a/b/c", "", "none/x.jsonl"])
def test_unknown_source_says_what_was_looked_for(source):
    with pytest.raises(
        DataError, match=r"expected easy-vqa, .*, a folder of images, .* a JSON lines manifest \(\*\.jsonl\)"
    ):
        load_samples(source)


def test_a_file_of_another_kind(folder):
    with pytest.raises(DataError, match=r"notes\.txt is a file of unknown kind; expected easy-vqa"):
        load_samples(str(folder / "notes.txt"))


@pytest.mark.parametrize("module", ["easy_vqa", "datasets"])
def test_missing_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    source = "easy-vqa" if module == "easy_vqa" else "owner/name"
    with pytest.raises(ImportError, match=rf"{module} is not installed; .* pip install 'tccd\[data\]'"):
        load_samples(source)
