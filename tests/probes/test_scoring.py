"""Labels resolve to the tokens that continue a prompt; what can't be scored is refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.zoo import load
from probes.asking.scoring import SLACK, describe, longest, normalised, targets
from tccd.data import Sample
from tccd.errors import DataError

QUESTION = "what shape is in the image?"


def sample(answer: str | None, choices: tuple[str, ...] | None = None, key: str = "7") -> Sample:
    return Sample(key, key, QUESTION, answer, choices, "shape", lambda: Image.new("RGB", (8, 8)))


@pytest.fixture(scope="module")
def processor() -> Any:
    return load("llava-competing")[1]


def spaced() -> Any:
    """A processor whose tokenizer marks a space before a word, as SentencePiece's do."""
    words = ["?", ":", "\u2581x", "A", "B", "\u2581A", "\u2581B", "\u2581C", "D"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    return SimpleNamespace(tokenizer=tokenizer, chat_template=None, image_token="?")


LETTERS = spaced()


def letters(answer: str, choices: tuple[str, ...] = ("A", "B"), key: str = "1") -> Sample:
    return Sample(key, key, "x:", answer, choices, None, lambda: Image.new("RGB", (8, 8)))


def test_choices_compete_with_each_other_only(processor):
    scorer, goals = targets(processor, [sample("circle", ("circle", "red")), sample("red", ("circle", "red"))])
    logits = torch.zeros(2, len(processor.tokenizer))
    logits[:, processor.tokenizer.convert_tokens_to_ids("yes")] = 9
    logits[:, processor.tokenizer.convert_tokens_to_ids("red")] = 1
    assert scorer.read(goals, logits) == ["red", "red"]
    assert [goal.answer for goal in goals] == ["circle", "red"]


def test_an_open_answer_competes_with_the_vocabulary(processor):
    scorer, goals = targets(processor, [sample("circle"), sample("red")])
    logits = torch.zeros(2, len(processor.tokenizer))
    logits[0, processor.tokenizer.convert_tokens_to_ids("circle")] = 1
    logits[1, processor.tokenizer.convert_tokens_to_ids("yes")] = 1
    assert scorer.read(goals, logits) == ["circle", "yes"]


@pytest.mark.parametrize(("token", "answer"), [("A", "A"), ("\u2581A", "A"), ("B", "B"), ("\u2581B", "B")])
def test_both_forms_of_a_label_count(token, answer):
    scorer, goals = targets(LETTERS, [letters("A"), letters("B")])
    logits = torch.zeros(2, len(LETTERS.tokenizer))
    logits[:, LETTERS.tokenizer.convert_tokens_to_ids(token)] = 1
    assert scorer.read(goals, logits) == [answer, answer]
    _, opened = targets(LETTERS, [Sample("1", "1", "x:", a, None, None, letters("A").load) for a in "AB"])
    assert (scorer.read(opened, logits)[0] == "A") == (answer == "A")


def test_forms_are_recorded():
    samples = [letters("A"), letters("C", ("C", "D"))]
    scorer, goals = targets(LETTERS, samples)
    assert scorer.forms == {
        "A": {"bare": 3, "space": 5},
        "B": {"bare": 4, "space": 6},
        "C": {"bare": None, "space": 7},
        "D": {"bare": 8, "space": None},
    }
    assert describe(scorer, goals, samples) == {
        "kinds": {"choices": 2, "token": 0, "generated": 0},
        "labels": scorer.forms,
        "one_class_tasks": [],
    }


def test_longer_open_answers_are_generated_all_of_them(processor):
    samples = [sample("red circle"), sample("blue")]
    scorer, goals = targets(processor, samples)
    assert [goal.is_generated for goal in goals] == [True, True]
    assert longest(scorer, samples, goals) == 2 + SLACK
    assert describe(scorer, goals, samples)["kinds"] == {"choices": 0, "token": 0, "generated": 2}
    scorer, goals = targets(processor, [sample("red"), sample("blue")])
    assert longest(scorer, samples, goals) == 0


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "no samples"),
        ([sample(None)], "sample 7 has no answer"),
        ([sample("red", ("red", "red circle"))], "the choice 'red circle' is not one token"),
        ([sample("red", ("red", "zebra"))], "the choice 'zebra' is not one token"),
        ([sample("Red", ("red", "Red"))], "share tokens"),
        ([sample("red", key="1"), sample("red", key="2")], "all 2 right answers are 'red'"),
    ],
)
def test_samples_that_can_not_be_scored(processor, samples, words):
    with pytest.raises(DataError, match=words):
        targets(processor, samples)


def test_tasks_of_one_class_are_named(processor):
    samples = [sample("red"), sample("blue"), Sample("8", "8", QUESTION, "yes", None, "there", sample("red").load)]
    scorer, goals = targets(processor, samples)
    assert describe(scorer, goals, samples)["one_class_tasks"] == ["there"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The  Red circle.", "red circle"),
        ("a", "a"),
        ("!", "!"),
        ("an apple, the tree", "apple tree"),
        ("theatre", "theatre"),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


@given(st.text(max_size=30))
def test_normalising_again_changes_nothing(text):
    assert normalised(normalised(text)) == normalised(text)
