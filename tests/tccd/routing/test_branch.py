"""A branch: how it starts, that a fusion layer alone gives it gradients, and its file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tccd.decoder import find_decoder
from tccd.errors import BranchError, BranchMismatchError, ConfigError
from tccd.routing import Branch, Routed, load_branch, save_branch
from tccd.routing.session import Route, RoutedSession
from tests.tccd.decoding.common import RAGGED
from tests.tccd.routing import oracle
from tests.tiny import FAMILIES, IMAGE, cached_tiny, inputs, tiny

SPLIT = 2


def loss_of(logits: Any, batch: dict[str, Any]) -> Any:
    text = batch["attention_mask"].bool() & (batch["input_ids"] != IMAGE)
    return logits[text].float().square().mean()


@pytest.fixture
def frozen() -> Any:
    return tiny("llava").requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_branch_starts_as_its_family_draws_a_layer(family):
    model = tiny(family)
    branch, again, other = (Branch.new(model, SPLIT, seed=seed) for seed in (0, 0, 1))
    theirs = dict(find_decoder(type(model)(model.config)).layers[SPLIT].named_parameters())
    for (name, one), same, not_same in zip(
        branch.layer.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, same)
        if one.ndim < 2:
            assert torch.equal(one, theirs[name]), name  # norms and biases are not drawn
        else:
            assert not torch.equal(one, not_same)
            assert one.std().item() == pytest.approx(theirs[name].std().item(), rel=0.15), name


def test_a_copied_branch_is_the_next_layer_and_shares_nothing_with_it():
    model = tiny("llava")
    branch = Branch.new(model, SPLIT, start="copy")
    pairs = list(zip(branch.parameters(), find_decoder(model).layers[SPLIT].parameters(), strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    with torch.no_grad():
        next(branch.parameters()).add_(1)
    assert not torch.equal(*pairs[0])
    mine, theirs = (sum(p.numel() for p in one.parameters()) for one in (branch, model))
    assert branch.share(model) == mine / (mine + theirs)


def test_a_branch_with_a_layer_above_it_learns_and_without_one_it_can_not(frozen):
    batch = inputs("llava", RAGGED)
    branch = Branch.new(frozen, SPLIT, start="copy")
    decoder = find_decoder(frozen)
    for stop, learns in ((decoder.num_layers - 1, True), (decoder.num_layers, False)):
        branch.zero_grad()
        with RoutedSession(decoder, Route(SPLIT, stop, branch), branch).active():
            loss_of(frozen(**batch, use_cache=False).logits, batch).backward()
        found = {name: float(p.grad.abs().sum()) for name, p in branch.named_parameters()}
        assert all((value > 0) == learns for value in found.values()), found
    assert all(p.grad is None for p in frozen.parameters())


def test_gradients_are_those_of_the_oracle_and_reach_no_layer_below_the_fusion(frozen):
    batch = inputs("llava", RAGGED)
    branch = Branch.new(frozen, SPLIT, start="copy")
    reached = []
    for layer in find_decoder(frozen).layers:
        layer.register_forward_hook(lambda module, args, output: reached.append(output.requires_grad))
    with Routed(frozen, branch=branch):
        loss_of(frozen(**batch, use_cache=False).logits, batch).backward()
    assert reached == [False] * 4 + [True]
    mine = [p.grad.clone() for p in branch.parameters()]
    branch.zero_grad()
    loss_of(oracle.routed_logits(frozen, batch, SPLIT, 4, branch, grad=True), batch).backward()
    for one, other in zip(mine, branch.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-5, rtol=1e-3)


def test_a_file_brings_back_the_branch_and_knows_its_model(tmp_path):
    model, path = cached_tiny("qwen3_vl"), tmp_path / "branch.safetensors"
    branch = Branch.new(model, SPLIT, 2, mask="full", seed=3)
    save_branch(branch, path, {"data": "easy-vqa", "steps": 3})
    first = path.read_bytes()
    save_branch(branch, path, {"data": "easy-vqa", "steps": 3})
    assert path.read_bytes() == first
    back = load_branch(path, model)
    assert (back.settings, back.identity) == (branch.settings, branch.identity)
    assert all(torch.equal(one, two) for one, two in zip(back.parameters(), branch.parameters(), strict=True))
    with pytest.raises(BranchMismatchError, match="another model"):
        load_branch(path, cached_tiny("llava"))
    with pytest.raises(BranchMismatchError, match="weights: branch"):
        Routed(cached_tiny("qwen3_vl", seed=1), branch=back)


def test_a_branch_comes_back_in_the_models_precision(tmp_path):
    model, path = tiny("llava").bfloat16(), tmp_path / "branch.safetensors"
    save_branch(Branch.new(model, SPLIT), path)
    branch = load_branch(path, model)
    assert {p.dtype for p in branch.parameters()} == {torch.bfloat16}
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs("llava", RAGGED).items()}
    assert model.generate(**batch, custom_generate=Routed(model, branch=branch), max_new_tokens=2).shape[0] == 3


def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path):
    model, path = cached_tiny("llava"), tmp_path / "branch.safetensors"
    save_branch(Branch.new(model, SPLIT), path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1
    for content, words in (
        (b"", "is empty"),
        (whole[:-100], "truncated or damaged"),
        (bytes(changed), "changed after it was saved"),
        (b"PK\x03\x04" + whole, "never loaded as a branch"),
        (whole.replace(b"tccd_branch", b"tccd_boughs"), "expected a side branch"),
    ):
        path.write_bytes(content)
        with pytest.raises(BranchError, match=words):
            load_branch(path, model)
    with pytest.raises(BranchError, match="no branch"):
        load_branch(tmp_path / "none", model)


def test_a_branch_that_is_not_finite_is_not_saved(tmp_path):
    branch = Branch.new(cached_tiny("llava"), SPLIT)
    with torch.no_grad():
        next(branch.parameters()).fill_(torch.nan)
    with pytest.raises(BranchError, match="not finite"):
        save_branch(branch, tmp_path / "branch.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": "warm"}, "expected random or copy"),
        ({"mask": "causal"}, "expected model or full"),
        ({"positions": 3}, "expected original or none"),
        ({"seed": -1}, "an integer, 0 or more"),
        ({"split": 5}, "expected 0 to 4"),
        ({"split": True}, "an integer"),
        ({"split": 4, "fuse": 2}, "a split of at most 3"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Branch.new(cached_tiny("llava"), **{"split": 2, **settings})
