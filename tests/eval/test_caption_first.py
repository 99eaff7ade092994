"""Caption First: the rule answers as the data do, packed texts see what they should, and a run goes on."""

from __future__ import annotations

import json
import random
import sys

import pytest
import torch

from eval.caption_first import __main__ as experiment
from eval.caption_first.arms import NAMES, TOKENS, Speaker
from eval.caption_first.facts import answered, rebuilt, scenes
from eval.caption_first.model import Learner, Text
from eval.zoo.data import IGNORED
from eval.zoo.words import BOS
from tccd.inputs import encode


@pytest.fixture(scope="module")
def shown():
    return scenes("train", 12)


@pytest.fixture(scope="module")
def learner():
    made = Learner(0)
    made.model.eval()
    return made


def test_the_rule_answers_as_the_data_do():
    asked = [(sample, scene) for scene in scenes("test") for sample in scene.samples]
    assert len(asked) > 5000
    assert all(answered(s.prompt, scene.shape, scene.color) == s.answer for s, scene in asked)


def test_what_presupposes_something_else_is_not_asked(shown):
    scene = next(one for one in shown if one.color != "red")
    assert answered("what is the red shape?", scene.shape, scene.color) is None
    assert "what is the red shape?" not in dict(rebuilt(["what is the red shape?"], scene))


@torch.no_grad()
def test_packed_texts_are_those_of_the_model_alone(learner, shown):
    """States of two texts in one row are those of the model's own forward over picture and text."""
    scene, prefix = shown[0], learner.prefix(shown[0])
    texts = [Text(learner.ids(s.prompt)) for s in scene.samples[:2]]
    packed, _ = learner.hidden(prefix, [texts], learner.see([scene]))
    at = len(prefix)
    for text, sample in zip(texts, scene.samples, strict=False):
        inputs = encode(learner.processor, [[sample.image]], [sample.prompt])
        assert inputs["input_ids"][0].tolist() == [*prefix, *text.ids]
        whole = learner.model.model(**inputs, use_cache=False).last_hidden_state
        torch.testing.assert_close(packed[0, at : at + len(text.ids)], whole[0, len(prefix) :], rtol=0, atol=1e-4)
        at += len(text.ids)


def test_what_is_to_be_learnt(learner, shown):
    speaker = Speaker(learner, [])
    caption, asked = speaker.caption(shown[0]), speaker.asked("is there a circle?", "no")
    prefix = learner.prefix(shown[0])
    _, targets = learner.hidden(prefix, [[caption, asked]], learner.see(shown[:1]))
    eos = learner.words.eos_token_id
    learnt = [int(token) for token in targets[0] if token != IGNORED]
    assert learnt == [*learner.ids(shown[0].caption), eos, *learner.ids("no"), eos]
    assert targets[0, len(prefix) - 1] == caption.ids[0]


@pytest.mark.parametrize("arm", NAMES)
def test_every_arm_says_about_as_much(learner, shown, arm):
    questions = sorted({s.prompt for scene in shown for s in scene.samples})
    texts = [Speaker(learner, questions).about(arm, scene, random.Random(0)) for scene in shown]
    spent = sum(len(text.ids) for row in texts for text in row) / len(texts)
    assert TOKENS <= spent < TOKENS + 12
    captions = sum(text.first == 0 for row in texts for text in row)
    assert (captions > 0) == (arm != "vqa")
    assert all(text.first == 0 for row in texts for text in row) == (arm == "caption")


def test_the_next_token_is_that_of_the_whole_model(learner, shown):
    prefix, seen = learner.prefix(shown[0]), learner.see(shown[:2])
    asked = [scene.samples[0] for scene in shown[:2]]
    ours = learner.next(prefix, [learner.ids(s.prompt) for s in asked], seen)
    with torch.no_grad():
        whole = [learner.model(**encode(learner.processor, [[s.image]], [s.prompt])).logits[0, -1] for s in asked]
    assert ours == [int(row.argmax()) for row in whole]
    bos = learner.words(BOS, add_special_tokens=False)["input_ids"]
    assert len(learner.next(bos, [learner.ids("a red circle . is it red?")], None)) == 1


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    size = ["--seeds", "1", "--images", "8", "--tests", "4", "--steps", "2", "--text-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["x", "--work-dir", str(tmp_path / "w"), "--out", str(out), *size])
    experiment.main()
    first = json.loads(out.read_text())
    assert {row["arm"] for row in first["rows"]} == set(NAMES)
    (tmp_path / "w" / "vqa-0.json").unlink()
    capsys.readouterr()
    experiment.main()
    trained = [line for line in capsys.readouterr().out.splitlines() if "CPU seconds" in line]
    assert len(trained) == 1
    assert trained[0].startswith("seed 0, vqa")
    assert json.loads(out.read_text())["rows"] == first["rows"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "3"])
    with pytest.raises(SystemExit, match="another --work-dir"):
        experiment.main()
