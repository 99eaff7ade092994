"""The streams of the peers' harness: peers by their definitions, kept and resumed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from eval import zoo
from eval.datasets.easy_vqa import sample
from eval.peers import outside, streams
from eval.peers.kept import Folder
from eval.peers.methods import methods
from eval.peers.questions import questions, training
from probes.asking.asked import Asked
from tccd.data import load_samples
from tccd.inputs import encode
from tests.oracle import withheld_logits


@pytest.fixture(scope="module")
def asked() -> Asked:
    model, processor = zoo.load("llava-competing")
    samples = sample(list(load_samples("easy-vqa", split="test")), 5, 0)
    return Asked(model, processor, samples, [s.image for s in samples])


def test_dola_is_its_definition():
    draws = torch.Generator().manual_seed(0)
    final, early = 2 * torch.randn(6, 9, generator=draws), 2 * torch.randn(3, 6, 9, generator=draws)
    found = outside.dola_scores(final, early, 0.1)
    chosen = set()
    for row in range(6):
        q = final[row].softmax(-1)

        def divergence(layer: int, q: Tensor = q, row: int = row) -> float:
            p = early[layer, row].softmax(-1)
            m = (p + q) / 2
            return sum(float(x * math.log(x / y)) for a in (p, q) for x, y in zip(a, m, strict=True)) / 2

        layer = max(range(3), key=divergence)
        chosen.add(layer)
        for token in range(9):
            if q[token] >= 0.1 * q.max():
                expected = math.log(q[token] / early[layer, row].softmax(-1)[token])
                assert float(found[row, token]) == pytest.approx(expected, abs=1e-4)
            else:
                assert found[row, token] == -math.inf
    assert len(chosen) > 1
    assert torch.isinf(found).any()


@torch.no_grad()
def test_dola_takes_states_as_they_leave_a_layer(asked: Asked):
    seen: list[Tensor] = []
    layers = asked.model.get_decoder().layers
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in layers]
    try:
        final = outside.whole(asked)
    finally:
        for handle in handles:
            handle.remove()
    head = asked.model.get_output_embeddings()
    # Of six layers "high" are the states after the third and the fifth: numbers 3 and 5, the embeddings being 0.
    expected = outside.dola_scores(final, torch.stack([head(seen[i][:, -1]) for i in (2, 4)]))
    torch.testing.assert_close(outside.dola(asked)[1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("queries", "alpha"), outside.BOOSTS)
def test_boosted_attention_is_its_definition(asked: Asked, monkeypatch, queries: str, alpha: float):
    """Boosted in the last layer alone, which is worked out by hand."""
    monkeypatch.setattr(outside, "BOOSTED_FROM", 5)
    layer, given = asked.model.get_decoder().layers[5], {}

    def keep(module, args, kwargs):
        given.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])

    handle = layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True)
    whole = layer.register_forward_pre_hook(lambda module, args: given.update(residual=args[0]))
    found = outside.boosted(asked)[outside.BOOSTS.index((queries, alpha))]
    handle.remove()
    whole.remove()
    ids, attention = asked.inputs["input_ids"], layer.self_attn
    b, n = ids.shape
    q, k, v = (
        getattr(attention, name)(given["hidden_states"]).view(b, n, -1, attention.head_dim).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q, k = apply_rotary_pos_emb(q, k, *given["position_embeddings"])
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bhd,bhnd->bhn", q[:, :, -1], k) * attention.scaling
    vision = ids == asked.model.config.image_token_id
    scores = torch.where(vision[:, None], scores + alpha * scores.abs(), scores)
    scores = scores.masked_fill(~asked.inputs["attention_mask"].bool()[:, None], -math.inf)
    mixed = torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), v).reshape(b, -1)
    state = given["residual"][:, -1] + attention.o_proj(mixed)
    state = state + layer.mlp(layer.post_attention_layernorm(state))
    expected = asked.model.get_output_embeddings()(asked.model.get_decoder().norm(state))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, outside.whole(asked), atol=1e-3)
    assert asked.model.config.get_text_config()._attn_implementation == "sdpa"


@torch.no_grad()
def test_marginal_is_a_mean_over_train_pictures(asked: Asked):
    (found,) = outside.marginal(asked.model, asked.processor)(asked)
    every = []
    for one in training(outside.PICTURES // 2, one_a_picture=True):
        inputs = encode(asked.processor, [[one.image]], [asked.samples[1].prompt])
        every.append(asked.model(**inputs).logits[0, -1])
    assert len(every) == 48
    torch.testing.assert_close(found[1], torch.stack(every).mean(0), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_question_alone_has_no_image(asked: Asked):
    found = outside.text_only(asked)
    ids = asked.inputs["input_ids"][2]
    words = ids[(ids != asked.model.config.image_token_id) & asked.inputs["attention_mask"][2].bool()]
    expected = asked.model(input_ids=words[None], attention_mask=torch.ones_like(words)[None]).logits[0, -1]
    torch.testing.assert_close(found[2], expected, rtol=0, atol=1e-4)


class Few(streams.Model):
    """Three groups, one of them blind."""

    def groups(self) -> list[streams.Group]:
        return [g for g in super().groups() if g.name in ("clean", "no-vision", "noised-image")]


def test_streams_are_run_once_and_kept(tmp_path: Path):
    asked, told = questions(30, 30), []
    one = Few("qwen25vl-competing")
    folder = Folder(tmp_path, {"model": "any"})
    found = streams.logits(one, asked, folder, lambda group, done: told.append((group, done)))
    strings = len(asked.strings)
    assert told == [("clean", 60), ("no-vision", strings), ("noised-image", 60)]
    assert strings < 60
    again = streams.logits(one, asked, folder, lambda group, done: told.append((group, done)))
    assert len(told) == 3
    assert set(found) == {"clean", "no-vision", "noised-500", "noised-999"}
    for name, rows in found.items():
        assert torch.equal(rows, again[name])
    elsewhere = Folder(tmp_path, {"model": "another"})
    assert not elsewhere.file("clean", "anyhow").exists()
    for i in (3, 59):
        inputs = encode(one.processor, [[asked.samples[i].image]], [asked.samples[i].prompt])
        clean = one.model(**inputs).logits[0, -1]
        torch.testing.assert_close(found["clean"][i], clean, rtol=0, atol=1e-4)
        withheld = withheld_logits(one.model, dict(inputs))[0, -1]
        torch.testing.assert_close(found["no-vision"][i], withheld, rtol=0, atol=1e-4)


def test_every_method_is_made_of_streams_that_are_run():
    one = streams.Model("llava-competing")
    named = {stream for group in one.groups() for stream in group.streams}
    needed = set().union(*(method.needs for method in methods())) - {"uniform", "prior"}
    assert {name for name in needed - named if not name.startswith("mitigv")} == set()
    assert {name for name in named - needed if not name.startswith("mitigv")} == set()
    assert len(named) == sum(len(group.streams) for group in one.groups())
