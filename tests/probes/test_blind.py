from __future__ import annotations

import numpy as np
from PIL import Image

from probes.asking.blind import majority
from tccd.data import Sample
from tccd.data.pictures import GREY, blank


def sample(prompt: str, answer: str, task: str) -> Sample:
    return Sample(prompt, prompt, prompt, answer, None, task, lambda: Image.new("RGB", (2, 2)))


def test_a_repeated_question_is_guessed_by_its_own_answers():
    samples = [sample("is it red?", a, "color") for a in ("no", "no", "yes")]
    assert majority(samples).tolist() == [True, True, False]


def test_questions_asked_once_share_their_task():
    """Each has one answer in the data, and guessing that would be right every time."""
    answers = {"color": "AABA", "shape": "BBA"}
    samples = [sample(f"{t} {i}", a, t) for t, letters in answers.items() for i, a in enumerate(letters)]
    assert majority(samples).tolist() == [True, True, False, True, True, True, False]


def test_a_withheld_image_is_grey_and_of_the_same_size():
    grey = blank(Image.effect_noise((5, 3), 50).convert("RGB"))
    assert grey.size == (5, 3)
    assert (np.asarray(grey) == GREY).all()
