"""The benchmark of routing runs, its peer withdraws the image, its arithmetic is right. Nothing is timed."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from eval.speed import models, routing
from eval.speed.routing_limits import LLAVA_1_5, Shape, limit
from eval.speed.ways import Stamps
from tccd.decoder import find_decoder
from tests.eval.test_speed import small_model

SMALL = {"layers": 4, "hidden": 64, "ffn": 96, "heads": 4, "vocabulary": 1024, "side": 3}


def test_benchmark_runs_on_small_models():
    qwen, llava = small_model(), routing.random_llava(**SMALL)
    found = routing.measure(
        {
            "qwen": (qwen, lambda n: models.prompt(qwen, n, 6, 5)),
            "llava": (llava, lambda n: routing.llava_prompt(llava, n, 5)),
        },
        new_tokens=3,
        batches=(1, 2),
        rounds=2,
    )
    json.loads(json.dumps(found, allow_nan=False))
    for cell in found["models"].values():
        for measured in cell["batches"].values():
            ways = measured["ways"]
            image, text = measured["image_tokens"], measured["text_tokens"]
            for name, routed in (("branch", 1), ("identity", 1), ("none", 2)):
                expected = ways["plain"]["cache"] * (1 - routed * image / (4 * (image + text)))
                assert ways[name]["cache"] == expected
                assert ways[name]["limit"]["cache"] == pytest.approx(expected / ways["plain"]["cache"])
    console = Console(record=True, width=150, file=open("/dev/null", "w"))  # noqa: SIM115
    routing.show(found, console)
    assert "masked" in console.export_text()


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_the_peer_that_masks_answers_as_withdrawal_does(family):
    if family == "qwen":
        model = small_model(dtype=torch.float32)
        batch = models.prompt(model, 2, 6, 5)
    else:
        model = routing.random_llava(**SMALL, dtype=torch.float32)
        batch = routing.llava_prompt(model, 2, 5)
    made = routing.ways(model, 2, 4)
    plain, none, masked = (made[name](batch, Stamps()).tolist() for name in ("plain", "none", "masked"))
    assert none == masked
    assert made["plain"](batch, Stamps()).tolist() == plain  # nothing is left


def test_the_arithmetic_counts_the_weights_and_agrees_with_the_paper():
    model = small_model()
    shape = Shape.of(model.config)
    layer = find_decoder(model).layers[0]
    assert shape.layer_weights == sum(p.numel() for p in layer.parameters() if p.ndim > 1)
    assert LLAVA_1_5["7B"].layer_weights == 202_375_168  # the paper's 202 M
    found = limit(LLAVA_1_5["7B"], 576, 128, 18, 1, branch=True)
    assert 0.69 < found.prefill < 0.72  # measured there: 0.72
    assert found.plain_bytes == 32 * 704 * 2 * 4096 * 2
    assert found.cache == pytest.approx(1 - 13 / 32 * 576 / 704)
    nothing = limit(shape, 6, 5, 3, 1, branch=False)
    assert (nothing.prefill, nothing.cache, nothing.decode) == (1, 1, 1)
