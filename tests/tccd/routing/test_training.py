"""Training moves a branch and nothing else, and an interrupted run goes on as if it had not been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from eval.zoo import load
from tccd.data import Sample, load_samples
from tccd.errors import BranchError, ConfigError, DataError
from tccd.routing import Branch
from tccd.routing.answers import answer_tokens, with_answers
from tccd.routing.training import STATE_FILE, Training, train_branch
from tests.tccd.routing import oracle

SPLIT = 2
QUICK = Training(batch_size=4, learning_rate=2e-3, seed=1)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load("llava-grounded")


@pytest.fixture(scope="module")
def samples() -> Any:
    return load_samples("easy-vqa", split="train", limit=24, seed=0)


def weights(module: Any) -> list[Any]:
    return [p.detach().clone() for p in module.parameters()]


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_answers_stand_behind_their_prompts(loaded, samples):
    model, processor = loaded
    inputs, wanted = with_answers(model, processor, samples[:3])
    for row, sample in enumerate(samples[:3]):
        text = processor.decode(inputs["input_ids"][row][inputs["attention_mask"][row].bool()])
        assert text.split()[-2] == sample.answer
        assert wanted[row].tolist() == answer_tokens(processor, sample)
        assert wanted[row, -1] == processor.tokenizer.eos_token_id


def test_the_first_loss_and_step_are_those_of_the_oracle(loaded, samples):
    model, processor = loaded
    branch, slow = (Branch.new(model, SPLIT, seed=3) for _ in range(2))
    training = Training(batch_size=24, learning_rate=1e-2, warmup=0, clip=0.1)
    trained = train_branch(model, processor, samples, branch, training)
    batch = [samples[i] for i in next(training.order(24))]
    inputs, wanted = with_answers(model, processor, batch)
    model.requires_grad_(False)
    try:
        logits = oracle.routed_logits(model, inputs, SPLIT, 5, slow, grad=True)
    finally:
        model.requires_grad_(True)
    losses = [
        cross_entropy(logits[row, column - 1], inputs["input_ids"][row, column])
        for row in range(len(batch))
        for column in range(inputs["input_ids"].shape[1] - wanted.shape[1], inputs["input_ids"].shape[1])
        if inputs["attention_mask"][row, column]
    ]
    loss = torch.stack(losses).mean()
    assert trained.losses == pytest.approx([loss.item()], rel=1e-5)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in slow.parameters()]).norm()
    for mine, other in zip(branch.parameters(), slow.parameters(), strict=True):
        gradient = other.grad * min(1, 0.1 / norm)  # AdamW's first step: the gradient's sign, but for its epsilon
        torch.testing.assert_close(mine, other - 1e-2 * gradient / (gradient.abs() + 1e-8), atol=2e-5, rtol=0)


def test_training_learns_and_leaves_the_model_alone(loaded, samples):
    model, processor = loaded
    before = weights(model)
    branch = Branch.new(model, 1)  # where this model still needs its image
    told: list[Any] = []
    trained = train_branch(
        model, processor, samples, branch, Training(8, 8, 2e-3), progress=lambda *news: told.append(news)
    )
    assert trained.mean(first=False, steps=3) < 0.5 * trained.mean(first=True, steps=3)
    assert told[-1] == ("train", 24, 24)
    assert equal(before, weights(model))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_an_interrupted_run_ends_where_a_whole_one_does(loaded, samples, tmp_path):
    model, processor = loaded
    whole, cut = (Branch.new(model, SPLIT, seed=2) for _ in range(2))
    losses = train_branch(model, processor, samples, whole, QUICK).losses

    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        train_branch(model, processor, samples, cut, QUICK, tmp_path, every=2, progress=stop)
    assert (tmp_path / STATE_FILE).exists()
    assert "go on with --work-dir" in caught.value.__notes__[0]
    again = Branch.new(model, SPLIT, seed=2)
    assert train_branch(model, processor, samples, again, QUICK, tmp_path, every=2).losses == losses
    assert equal(weights(whole), weights(again))
    done = Branch.new(model, SPLIT, seed=2)
    assert train_branch(model, processor, samples, done, QUICK, tmp_path).losses == losses  # nothing is left to do
    assert equal(weights(whole), weights(done))


def test_a_folder_of_another_run_is_refused(loaded, samples, tmp_path):
    model, processor = loaded
    train_branch(model, processor, samples[:4], Branch.new(model, SPLIT), QUICK, tmp_path)
    for branch, training, some, words in (
        (Branch.new(model, 1), QUICK, samples[:4], "another branch; give the options"),
        (Branch.new(model, SPLIT), Training(), samples[:4], "another training"),
        (Branch.new(model, SPLIT), QUICK, samples[4:8], "another samples"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_branch(model, processor, some, branch, training, tmp_path)
    (tmp_path / STATE_FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(BranchError, match="no safetensors file"):
        train_branch(model, processor, samples[:4], Branch.new(model, SPLIT), QUICK, tmp_path)


def test_what_can_not_be_learned_from_is_refused(loaded, samples):
    model, processor = loaded
    mute = Sample("7", "7", "what is it?", None, None, None, lambda: samples[0].image)
    with pytest.raises(DataError, match="sample 7 has no answer"):
        train_branch(model, processor, [mute], Branch.new(model, SPLIT))
    branch = Branch.new(model, SPLIT)
    with torch.no_grad():
        next(branch.parameters()).fill_(torch.nan)
    with pytest.raises(BranchError, match="loss is nan at step 1 of 6"):
        train_branch(model, processor, samples, branch)
    for given in ({"epochs": 0}, {"batch_size": 1.5}, {"learning_rate": 0}, {"warmup": -0.1}, {"clip": 0}):
        with pytest.raises(ConfigError, match=next(iter(given))):
            Training(**given)


def test_the_rate_and_the_order_are_those_of_the_paper():
    training = Training(epochs=2, batch_size=4, learning_rate=1e-4)
    rates = [training.rate(step, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([1e-4 / 3, 2e-4 / 3, 1e-4])
    assert rates[3] == pytest.approx(1e-4)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 1e-7
    steps = list(training.order(10))
    assert training.steps(10) == len(steps) == 6
    for epoch in (steps[:3], steps[3:]):
        assert sorted(i for step in epoch for i in step) == list(range(10))
    assert steps[:3] != steps[3:]
