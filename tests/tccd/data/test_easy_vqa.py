"""easy-VQA whole: its splits, tasks, and the subsets that evaluations take."""

from collections import Counter

import pytest

from eval.datasets.easy_vqa import balanced, majority_answers, minority
from tccd.data import load_samples
from tccd.errors import DataError


@pytest.mark.parametrize(("split", "n", "images"), [("test", 9_673, 1_000), ("train", 38_575, 4_000)])
def test_easy_vqa_is_whole_and_ordered_by_image(request, split, n, images):
    samples = request.getfixturevalue(f"{split}_split")
    assert (len(samples), samples.split, samples.revision) == (n, split, None)
    numbers = [int(s.image_id.split("-")[1]) for s in samples]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == images
    assert len({s.id for s in samples}) == n
    assert len({s.prompt for s in samples}) == 107
    assert len({s.answer for s in samples}) == 13


def test_easy_vqa_images_and_splits_differ(test_split, train_split):
    assert test_split[0].image.size == (64, 64)
    assert test_split[0].image.mode == "RGB"
    assert not {s.image_id for s in test_split[:100]} & {s.image_id for s in train_split[:1000]}


def test_easy_vqa_tasks(test_split):
    tasks = {s.prompt: s.task for s in test_split}
    assert tasks["what is the red shape?"] == "shape"
    assert tasks["what shape does the image contain?"] == "shape"
    assert tasks["what color is the circle?"] == "color"
    assert tasks["what is the color of the shape?"] == "color"
    assert tasks["is a circle present?"] == "shape-present"
    assert tasks["is there a red shape in the image?"] == "color-present"
    assert tasks["is no triangle present?"] == "shape-absent"
    assert tasks["does the image not contain a teal shape?"] == "color-absent"
    answers = {task: {s.answer for s in test_split if s.task == task} for task in set(tasks.values())}
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert len(answers["color"]) == 8
    assert all(answers[t] == {"yes", "no"} for t in answers if "-" in t)
    assert len(answers) == 6


def test_balanced_subset(test_split):
    subset = balanced(test_split)
    assert len(subset) == 2_492
    assert subset == balanced(test_split)
    per_question = {p: Counter(s.answer for s in subset if s.prompt == p) for p in {s.prompt for s in subset}}
    assert all(c["yes"] == c["no"] for c in per_question.values())
    order = {s.id: i for i, s in enumerate(test_split)}
    assert [order[s.id] for s in subset] == sorted(order[s.id] for s in subset)
    # From all over the split, so that a half of it by image is about balanced too.
    half = [s for s in subset if order[s.id] < len(test_split) // 2]
    assert 0.45 < len(half) / len(subset) < 0.55
    assert 0.45 < sum(s.answer == "yes" for s in half) / len(half) < 0.55


def test_minority_subset_is_what_the_train_prior_gets_wrong(test_split, train_split):
    majority = majority_answers(train_split)
    assert len(majority) == 107
    subset = minority(test_split, majority)
    right = sum(majority[s.prompt] == s.answer for s in test_split)
    assert len(subset) == len(test_split) - right
    assert right / len(test_split) == pytest.approx(0.670, abs=0.001)
    assert minority(test_split, {}) == []


def test_easy_vqa_refuses_what_it_would_ignore():
    with pytest.raises(DataError, match="easy-vqa has no split 'val'; expected one of train, test"):
        load_samples("easy-vqa", split="val")
    with pytest.raises(DataError, match="revision is 'main', but easy-vqa has no revision"):
        load_samples("easy-vqa", revision="main")
