"""The vision mean is that of what each attention is given for vision tokens, in whole forwards with hooks."""

from functools import partial

import numpy as np
import pytest
import torch

from tccd.centroids.fit import fit_bank
from tccd.centroids.harvest import harvest
from tccd.centroids.vision_mean import VisionSums
from tccd.errors import ConfigError, FitError, UnsupportedModelError
from tests.census.architectures import architecture
from tests.tccd.centroids.fakes import TinyProcessor, samples
from tests.tiny import CAUSAL_FAMILIES, IMAGE, Row, cached_tiny, inputs, tiny


class Ragged(TinyProcessor):
    """One image or two a prompt, text of many lengths before and after them."""

    def __call__(self, text, images, **options):
        texts = [t.replace(self.image_token, "") for t in text]
        rows = [Row(images=1 + len(t) % 2, before=1 + len(t) % 4, after=len(t)) for t in texts]
        return inputs(self.family, rows, seed=sum(map(len, texts)))


def fit(model, processor, given=None, **options):
    options = {"prompt": None, "batch_size": 3, "created": "2026-01-01", **options}
    return fit_bank(model, processor, samples(7) if given is None else given, **options)


def given_to_attention(model, batch):
    """What each attention is given for the vision tokens, two ways: by layer, shape (tokens, hidden), fp64."""
    seen, direct, by_norm = batch["input_ids"] == IMAGE, {}, {}

    def before_layer(layer, args, kwargs, i):
        by_norm[i] = layer.input_layernorm(args[0] if args else kwargs["hidden_states"])[seen].double()

    def before_attention(_, args, kwargs, i):
        direct[i] = (args[0] if args else kwargs["hidden_states"])[seen].double()

    handles = []
    for i, layer in enumerate(model.get_decoder().layers):
        for module, hook in ((layer, before_layer), (layer.self_attn, before_attention)):
            handles.append(module.register_forward_pre_hook(partial(hook, i=i), with_kwargs=True))
    with torch.no_grad():
        model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return [direct[i] for i in range(len(direct))], [by_norm[i] for i in range(len(direct))]


def oracle(model, processor, given, batch_size=3):
    """The mean by layer, two ways, and the number of tokens."""
    got, normed, tokens = [], [], 0
    for start in range(0, len(given), batch_size):
        part = given[start : start + batch_size]
        batch = dict(processor([s.prompt for s in part], [[s.image] for s in part]))
        for name, value in batch.items():
            batch[name] = value.to(model.dtype) if value.is_floating_point() else value
        direct, by_norm = given_to_attention(model, batch)
        got.append(torch.stack(direct))
        normed.append(torch.stack(by_norm))
        tokens += int((batch["input_ids"] == IMAGE).sum())
    return torch.cat(got, 1).mean(1), torch.cat(normed, 1).mean(1), tokens


@pytest.mark.parametrize("processor", [TinyProcessor, Ragged])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_it_is_the_mean_of_what_each_attention_is_given(family, processor):
    model = cached_tiny(family)
    bank = fit(model, processor(family))
    got, normed, tokens = oracle(model, processor(family), samples(7))
    assert bank.vision_mean.shape == (5, 64)
    torch.testing.assert_close(bank.vision_mean, got.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(bank.vision_mean, normed.float(), rtol=0, atol=1e-5)
    assert bank.provenance["vision_mean"] == {"images": 7, "tokens": tokens, "dropped_states": 0}


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_half_precision_states_are_summed_in_double(family):
    model = tiny(family).bfloat16()
    bank = fit(model, Ragged(family))
    got, _, _ = oracle(model, Ragged(family), samples(7))
    assert torch.equal(bank.vision_mean, got.float())


@pytest.mark.parametrize("layers", [{"text": 1}, {"text": 1, "vision": 4}])
def test_it_changes_nothing_beside_it(layers):
    model = cached_tiny("llava")
    both, alone, without = (
        fit(model, TinyProcessor("llava"), layers=at, k=4, vision_mean=mean)
        for at, mean in ((layers, True), (None, True), (layers, False))
    )
    assert torch.equal(both.vision_mean, alone.vision_mean)
    assert without.vision_mean is without.provenance["vision_mean"] is None
    for key in without.tensors:
        assert torch.equal(both.tensors[key], without.tensors[key])
    assert not alone.tensors


def test_which_vision_rows_are_clustered_does_not_touch_it():
    model = cached_tiny("idefics3")
    whole = fit(model, TinyProcessor("idefics3")).vision_mean
    some = fit(model, TinyProcessor("idefics3"), max_vision_tokens_per_image=1, vision="span", text_tokens=1)
    assert torch.equal(some.vision_mean, whole)


@pytest.mark.parametrize(
    ("layers", "ran"), [({}, [0, 1, 2, 3]), ({"text": 2}, [0, 1, 2, 3]), ({"vision": 4}, [0, 1, 2, 3, 4])]
)
def test_the_last_layer_runs_only_for_its_own_rows_and_hooks_go(tmp_path, layers, ran):
    model, seen = tiny("llava"), []
    blocks = model.get_decoder().layers
    handles = [b.register_forward_hook(lambda m, a, o, i=i: seen.append(i)) for i, b in enumerate(blocks)]
    harvest(model, TinyProcessor("llava"), samples(2), layers, tmp_path, prompt=None, vision_mean=True)
    for handle in handles:
        handle.remove()
    assert seen == ran
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_a_mean_alone_needs_no_backend_of_k_means(monkeypatch):
    monkeypatch.setattr("tccd.centroids.kmeans._backend", lambda name: pytest.fail("a backend was looked for"))
    seen = []
    bank = fit(cached_tiny("llava"), TinyProcessor("llava"), progress=lambda *a: seen.append(a))
    assert seen == [("harvest", i, 3) for i in (1, 2, 3)]
    bank.check(cached_tiny("llava"))


def test_nothing_to_fit():
    for layers in (None, {}):
        with pytest.raises(ConfigError, match="there is nothing to fit: expected layers such as"):
            fit(cached_tiny("llava"), TinyProcessor("llava"), layers=layers, vision_mean=False)


def test_a_model_with_layers_that_have_no_attention_is_told_first(tmp_path):
    model, processor = architecture("lfm2_vl:convolutions").build(), TinyProcessor("llava")
    with pytest.raises(UnsupportedModelError, match=r"no vision mean of this model: .*\(--no-vision-mean\)"):
        fit(model, processor, layers={"text": 1}, k=4, work_dir=tmp_path)
    assert processor.calls == 0
    assert not list(tmp_path.glob("*.json"))


def test_sums_that_were_not_asked_for(tmp_path):
    options = {"prompt": None, "batch_size": 3}
    found = harvest(cached_tiny("llava"), TinyProcessor("llava"), samples(2), {"text": 1}, tmp_path, **options)
    with pytest.raises(FitError, match="holds no sums for the vision mean"):
        found.vision_sums()


# Sums


def test_sums_of_any_parts_are_the_sum_of_the_whole():
    rows = 1e4 * torch.randn(2, 101, 8, generator=torch.Generator().manual_seed(0)) + 1e6
    parts = [VisionSums.zeros(2, 8) for _ in range(3)]
    for part, at in zip(parts, (slice(0, 40), slice(40, 41), slice(41, None)), strict=True):
        for layer in (0, 1):
            part.add(layer, rows[layer, at])
    mean, known = VisionSums.total(part.tensors() for part in parts).mean()
    assert torch.equal(mean, rows.double().mean(1).float())
    assert known == {"tokens": 101, "dropped_states": 0}
    assert parts[1].kept.tolist() == [1, 1]


def test_states_in_chunks(monkeypatch):
    rows = torch.randn(50, 8).bfloat16()
    whole, chunked = VisionSums.zeros(1, 8), VisionSums.zeros(1, 8)
    whole.add(0, rows)
    monkeypatch.setattr("tccd.centroids.vision_mean._CHUNK_ELEMENTS", 24)
    chunked.add(0, rows)
    np.testing.assert_allclose(chunked.sums, whole.sums, rtol=1e-12)


def test_states_that_are_not_finite_are_left_out_and_counted():
    rows = torch.arange(40.0).reshape(5, 8)
    rows[1, 3], rows[4, 0] = float("nan"), float("inf")
    sums = VisionSums.zeros(2, 8)
    sums.add(0, rows)
    sums.add(1, rows[:1].expand(5, 8))
    mean, known = sums.mean()
    assert torch.equal(mean[0], rows[[0, 2, 3]].mean(0))
    assert known == {"tokens": 5, "dropped_states": 2}


def test_a_model_that_overflows_is_told_after_the_first_batch(tmp_path):
    model, processor = tiny("llava"), TinyProcessor("llava")
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(FitError, match=r"attention of layers \[2, 3, 4\].*--dtype.*--no-vision-mean"):
        fit(model, processor, work_dir=tmp_path)
    assert processor.calls == 1
    assert not list(tmp_path.glob("batch-*"))
