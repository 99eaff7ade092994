"""Which split is read where none is given: what is asked must not be what was fitted on."""

import pytest

from tccd.data import load_samples
from tccd.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.mark.parametrize("source", ["easy-vqa", "digits"])
@pytest.mark.parametrize(("purpose", "split"), [("fit", "train"), ("probe", "test"), (None, "test")])
def test_the_purpose_chooses_the_split(source, purpose, split):
    samples = load_samples(source, limit=1, purpose=purpose)
    assert samples.split == split
    assert samples.items == load_samples(source, limit=1, split=split).items
    other = "test" if split == "train" else "train"
    assert load_samples(source, limit=1, purpose=purpose, split=other).split == other  # what is given wins


@pytest.fixture
def table(tmp_path):
    from PIL import Image

    def make(*splits):
        for number, split in enumerate(splits):
            rows = {"image": [Image.new("RGB", (4, 4), (number, 0, 0))], "question": [f"{split}?"]}
            datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(
                tmp_path / "data" / f"{split}-00000-of-00001.parquet"
            )
        return str(tmp_path / "data")

    return make


def test_a_data_set_with_several_splits(table):
    source = table("train", "test", "validation")
    assert load_samples(source, purpose="fit")[0].prompt == "train?"
    assert load_samples(source, purpose="probe")[0].prompt == "test?"
    assert load_samples(source, purpose="probe", split="validation")[0].prompt == "validation?"
    with pytest.raises(DataError, match=r"has the splits .*; choose one"):
        load_samples(source)


def test_a_split_that_a_data_set_lacks_has_to_be_chosen(table):
    source = table("train", "validation")
    with pytest.raises(DataError, match=r"has the splits train, validation; choose one"):
        load_samples(source, purpose="probe")


def test_the_only_split_is_taken_whatever_its_name(table):
    assert load_samples(table("train"), purpose="probe").split == "train"


def test_an_unknown_purpose():
    with pytest.raises(DataError, match="purpose is 'train'; expected fit, probe or None"):
        load_samples("easy-vqa", purpose="train")
