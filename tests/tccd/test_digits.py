"""Questions about pictures of handwritten digits: right, always the same, and of disjoint handwriting."""

from collections import Counter, defaultdict

import numpy as np
import pytest

pytest.importorskip("sklearn")

from eval.datasets.easy_vqa import balanced, majority_answers
from tccd.data import load_samples
from tccd.data.digits import QUARTER, TASKS, _digits, pictures
from tccd.errors import DataError, MissingExtraError

FIRST = {
    "train": [
        ("digits-train-0", "digits-train-0", "read", "what is the left digit?", "1"),
        ("digits-train-1", "digits-train-0", "parity", "is the left digit even?", "no"),
    ],
    "test": [
        ("digits-test-0", "digits-test-0", "read", "is the digit 8 present?", "no"),
        ("digits-test-1", "digits-test-0", "read", "is the digit 6 present?", "yes"),
    ],
}


@pytest.fixture(scope="module", params=("train", "test"))
def split(request):
    return request.param, load_samples("digits", split=request.param)


def truth(values, prompt):
    """The answer, by another way than the one that made the question."""
    words = prompt.rstrip("?").split()
    shown = [v for v in values if v is not None]
    columns = {"left": values[0::2], "right": values[1::2]}
    sides = {side: next((v for v in column if v is not None), None) for side, column in columns.items()}
    number = next((int(word) for word in words if word.isdigit()), None)
    if "digits" in words:
        return str(len(shown)) if number is None else {True: "yes", False: "no"}[len(shown) == number]
    if number is not None:
        return "yes" if number in shown else "no"
    value = next((sides[side] for side in sides if side in words), shown[0])
    if "larger" in words or "smaller" in words:
        of = (max if "larger" in words else min)(shown)
        return next(s for s in sides if sides[s] == of) if words[0] == "which" else "yes" if value == of else "no"
    if "even" in words and "odd" in words:
        return ("even", "odd")[value % 2]
    if "even" in words or "odd" in words:
        return "yes" if value % 2 == ("odd" in words) else "no"
    return str(value)


def test_every_answer_is_right(split):
    name, samples = split
    for sample in samples:
        picture = pictures(name)[int(sample.image_id.rpartition("-")[2])]
        assert sample.answer == truth(picture.values, sample.prompt), (picture.values, sample)


def test_splits_share_no_digit():
    numbers = [{n for p in pictures(name) for n in p.numbers if n is not None} for name in ("train", "test")]
    assert not numbers[0] & numbers[1]
    assert len(numbers[0]) > 1200
    assert len(numbers[1]) > 300
    values = _digits()[1]
    for name in ("train", "test"):
        for picture in pictures(name):
            assert picture.values == tuple(None if n is None else values[n] for n in picture.numbers)
        assert len({v for p in pictures(name) for v in p.values}) == 11


def test_pictures_show_the_digits_where_they_say(split):
    name, samples = split
    for sample in samples[:400:8]:
        picture = pictures(name)[int(sample.image_id.rpartition("-")[2])]
        pixels = np.asarray(sample.image)
        assert pixels.shape == (64, 64, 3)
        assert (pixels == pixels[:, :, :1]).all()
        quarters = pixels[:, :, 0].reshape(2, QUARTER, 2, QUARTER).transpose(0, 2, 1, 3).reshape(4, -1)
        assert [quarter.max() > 200 for quarter in quarters] == [value is not None for value in picture.values]


def test_it_is_always_the_same(split):
    name, samples = split
    pictures.cache_clear()
    assert load_samples("digits", split=name).items == samples.items
    assert [(s.id, s.image_id, s.task, s.prompt, s.answer) for s in samples[:2]] == FIRST[name]
    assert samples.source == "digits"
    assert samples.split == name


def test_tasks_and_what_can_be_guessed(split):
    name, samples = split
    assert len(samples) == {"train": 34886, "test": 3400}[name]
    assert len({s.image_id for s in samples}) == {"train": 4000, "test": 400}[name]
    assert Counter(s.task for s in samples).keys() == set(TASKS)
    assert all(s.choices is None for s in samples)
    assert len(balanced(samples)) > 0.4 * len(samples)
    prior = majority_answers(load_samples("digits", split="train"))
    right = defaultdict(list)
    for sample in samples:
        right[sample.task].append(prior[sample.prompt] == sample.answer)
    for task, guessed in right.items():
        assert len(guessed) >= 500
        assert 0.4 <= np.mean(guessed) <= 0.6, task


def test_a_question_is_asked_once_of_a_picture(split):
    asked = Counter((s.image_id, s.prompt) for s in split[1])
    assert set(asked.values()) == {1}


def test_the_prompt_can_be_replaced():
    samples = load_samples("digits", prompt="what is it?", limit=3)
    assert [s.prompt for s in samples] == ["what is it?"] * 3


def test_it_refuses_what_it_would_ignore():
    with pytest.raises(DataError, match="digits has no split 'val'; expected one of train, test"):
        load_samples("digits", split="val")
    with pytest.raises(DataError, match=r"columns is .*, but digits has no columns"):
        load_samples("digits", columns={"prompt": "q"})


def test_without_scikit_learn(monkeypatch):
    _digits.cache_clear()
    pictures.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tccd\[sklearn\]'"):
        load_samples("digits")
