"""Which samples of a source are taken: the first, or drawn by seed."""

import pytest

from tccd.data import load_samples
from tccd.errors import DataError
from tests.tccd.data.made import ROW, picture


def test_limit_and_images_take_the_first(test_split):
    assert load_samples("easy-vqa", limit=7).items == test_split[:7]
    ten = load_samples("easy-vqa", images=10)
    assert {s.image_id for s in ten} == {f"test-{i}" for i in range(10)}
    assert ten.items == test_split[: len(ten)]
    assert len(load_samples("easy-vqa", images=10, limit=3)) == 3


def test_seeded_draws_repeat_and_keep_the_order(test_split):
    order = {s.id: i for i, s in enumerate(test_split)}
    one, again, other = (load_samples("easy-vqa", limit=50, seed=s) for s in (3, 3, 4))
    assert one == again
    assert one != other
    assert one.items != test_split[:50]
    places = [order[s.id] for s in one]
    assert places == sorted(places)
    assert len(set(places)) == 50


def test_seeded_images_come_with_all_their_samples(test_split):
    drawn = load_samples("easy-vqa", images=20, seed=1)
    kept = {s.image_id for s in drawn}
    assert len(kept) == 20
    assert [s for s in test_split if s.image_id in kept] == list(drawn)


def test_a_few_samples_of_each_image(test_split):
    first = load_samples("easy-vqa", images=5, per_image=2)
    assert [s.image_id for s in first] == [f"test-{i}" for i in range(5) for _ in range(2)]
    assert first[:2] == test_split[:2]
    drawn = load_samples("easy-vqa", images=50, per_image=1, seed=2)
    assert len({s.image_id for s in drawn}) == len(drawn) == 50
    assert len({s.prompt for s in drawn}) > 10  # not each image's first question
    assert drawn == load_samples("easy-vqa", images=50, per_image=1, seed=2)


def test_a_source_is_named_without_the_folders_of_this_machine(folder, manifest):
    assert load_samples(str(folder)).source == "images"
    assert load_samples(str(manifest(ROW))).source == "questions.jsonl"
    assert load_samples("easy-vqa", limit=1).source == "easy-vqa"


def test_more_than_there_is_takes_all(folder):
    assert (
        len(load_samples(str(folder), limit=99, seed=0)) == len(load_samples(str(folder), images=99, seed=0)) == 4
    )


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": -3}, {"images": 0}, {"per_image": 0}])
def test_counts_below_one(bad):
    [(name, value)] = bad.items()
    with pytest.raises(DataError, match=f"{name} is {value}; expected at least 1"):
        load_samples("easy-vqa", **bad)


def test_images_of_a_manifest_need_not_stand_together(tmp_path, manifest):
    picture(tmp_path / "images" / "b.png")
    rows = [{"image": f"images/{name}.png", "prompt": "?"} for name in "abab"]
    assert [s.id for s in load_samples(str(manifest(*rows)), images=1)] == ["1", "3"]
