"""Data sets of the `datasets` library: local folders, and what is asked of the hub."""

import pytest
from PIL import Image

from tccd.data import load_samples
from tccd.errors import DataError
from tests.tccd.data.made import RED, picture


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder with two splits in parquet: three pictures, six questions."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("table")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.Value("int64"),
            "choices": datasets.List(datasets.Value("string")),
            "id": datasets.Value("int64"),
        }
    )
    pictures = [Image.new("RGB", (6, 4), color) for color in ("red", "green", "blue")]
    rows = {
        "image": [pictures[i // 2] for i in range(6)],
        "question": ["what?", "why?"] * 3,
        "answer": [0, 1, 1, 0, 0, 1],
        "choices": [["a", "b"]] * 6,
        "id": [5] * 6,
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    (folder / "data").mkdir()
    for split in ("train", "test"):
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_data_set_folder(table):
    samples = load_samples(str(table), split="test")
    assert (len(samples), samples.split, samples.revision) == (6, "test", None)
    assert [s.answer for s in samples] == list("abbaab")
    assert samples[0].choices == ("a", "b")
    assert [s.image.getpixel((0, 0)) for s in samples[::2]] == [RED, (0, 128, 0), (0, 0, 255)]
    assert samples[0].image_id == samples[1].image_id != samples[2].image_id


def test_data_set_draws(table):
    samples = load_samples(str(table), split="test")
    drawn, again = (load_samples(str(table), split="test", limit=4, seed=2) for _ in range(2))
    assert drawn == again
    assert len({s.id for s in drawn} & {s.id for s in samples}) == 4  # ids hold in any order
    assert len(load_samples(str(table), split="test", images=2)) == 4


def test_images_outlive_the_samples_they_came_with(table):
    sample = load_samples(str(table), split="test", limit=1)[0]
    assert sample.image.size == (6, 4)


def test_data_set_splits_and_columns(table):
    with pytest.raises(DataError, match="has the splits train, test; choose one"):
        load_samples(str(table))
    with pytest.raises(DataError, match="has no split 'val'; found train, test"):
        load_samples(str(table), split="val")
    with pytest.raises(DataError, match="a local folder has no revision"):
        load_samples(str(table), revision="main")
    with pytest.raises(DataError, match=r"there is no 'picture' for image; found image, question"):
        load_samples(str(table), split="test", columns={"image": "picture"})
    with pytest.raises(DataError, match=r"row 0: column question holds str; expected one image"):
        load_samples(str(table), split="test", columns={"image": "question"})
    with pytest.raises(DataError, match="two samples have the id '5'"):
        load_samples(str(table), split="test", columns={"id": "id"})


def test_image_folder_with_metadata(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\na.png,what color?,red\n")
    [sample] = load_samples(str(tmp_path))
    assert (sample.prompt, sample.answer, sample.image.getpixel((0, 0))) == ("what color?", "red", RED)


def test_class_labels_are_answers_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    data = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (2, 2))] * 3, "label": [1, 0, 1]}, features=features
    )
    data.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no prompt; looked for prompt, question, query, text; found image, label"):
        load_samples(str(tmp_path))
    samples = load_samples(str(tmp_path), prompt="Which animal?")
    assert [s.answer for s in samples] == ["dog", "cat", "dog"]
    assert len({s.id for s in samples}) == 3  # the same picture and prompt, thrice


def test_a_broken_image_in_a_data_set_names_its_row(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}], "question": ["?"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    [sample] = load_samples(str(tmp_path))
    with pytest.raises(DataError, match=r"can't read image of .* split train, row 0: .*; expected a file"):
        _ = sample.image


def test_a_damaged_data_set_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"(can't open|reading) .*"):
        load_samples(str(tmp_path))


def test_a_data_set_that_is_not_on_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(
        DataError,
        match=r"can't open 'no/such'. As a path: .* no such file.*As a data-set id .* hub: Dataset.*doesn't",
    ):
        load_samples("no/such")


def test_hub_ids_revisions_and_configurations_are_passed_on(monkeypatch, table):
    datasets = pytest.importorskip("datasets")
    asked = []
    real = datasets.load_dataset_builder

    def record(name, configuration, revision):
        asked.append((name, configuration, revision))
        builder = real(str(table))
        builder.hash = "c0ffee"
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", record)
    samples = load_samples("owner/name:small", split="test", revision="v1", limit=1)
    assert asked == [("owner/name", "small", "v1")]
    assert (samples.source, samples.revision) == ("owner/name:small", "c0ffee")
