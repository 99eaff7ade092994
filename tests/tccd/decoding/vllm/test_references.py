"""Every reference but text-centroid, whose tests are `test_exact`: against transformers, on every engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tccd.decoding.vllm import jobs, reference
from tests.tccd.decoding.vllm.conftest import Running, on
from tests.tccd.decoding.vllm.host import Ask
from tests.tccd.decoding.vllm.models import IMAGE_TEXT
from tests.tccd.decoding.vllm.test_exact import check

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def other(engine: Running, text: str, images: int = 0) -> str:
    """A description of another prompt, with marks for images."""
    mark = "<image>" if engine.checkpoint.family == "llava" else IMAGE_TEXT
    return json.dumps({"text": " ".join([*([mark] * images), text])})


def words(engine: Running, count: int, seed: int) -> str:
    return engine.checkpoint.ask(seed, images=0, before=1, words=count).prompt


def asks(engine: Running, **params: Any) -> list[Ask]:
    """Each reference, at several settings, beside text-centroid and plain requests."""
    make = engine.checkpoint.ask
    prompt = {"reference": "prompt"}
    return [
        make(200, words=20, extra=on(reference="no-vision"), **params),
        make(201, images=2, before=40, words=6, extra=on(reference="no-vision", alpha_cd=-0.5), **params),
        make(202, words=40, extra=on(reference="vision-centroid"), **params),
        make(203, images=2, extra=on(reference="vision-centroid", alpha_interp=0.5, beta=0.1), **params),
        make(204, extra=on(**prompt, prompt=other(engine, words(engine, 30, 204))), **params),
        make(205, extra=on(**prompt, prompt=other(engine, words(engine, 60, 205), images=1), gate="jsd",
                           gate_threshold=0.2), **params),
        make(206, images=0, words=9, extra=on(**prompt, prompt=other(engine, words(engine, 3, 206))), **params),
        make(207, images=2, extra=on(**prompt, prompt=other(engine, words(engine, 9, 207), images=2),
                                     tokens="first"), **params),
        make(211, words=30, extra=on(reference="blank-image"), **params),
        make(212, images=2, words=9, extra=on(reference="blank-image", alpha_cd=0.5, beta=0.1), **params),
        make(208, images=0, words=9, **params),
        make(209, extra=on(), **params),
        make(210, images=0, words=12, extra=on(**prompt, prompt='{"tokens": [7, 8, 9, 10]}'), **params),
    ]  # fmt: skip


def test_a_mixed_batch(engine):
    batch = asks(engine)
    replies = engine.host.run(jobs.generate, batch)
    check(engine, batch, replies)
    plain = engine.host.run(jobs.generate, [Ask(a.prompt, a.images, a.params) for a in batch])
    for ask, contrasted, clean in zip(batch, replies, plain, strict=True):
        off = reference.difference(contrasted.logprobs[0][:1], clean.logprobs[0][:1])
        if not (ask.extra or {}).get("tccd_gate"):
            assert (off > 1e-3) == (ask.extra is not None), ask.extra
    check(engine, batch, engine.host.run(jobs.generate, batch, False))  # and again, from a warm cache


def test_a_reference_longer_than_its_request_is_preempted_as_exactly(engine):
    if not engine.in_process:
        pytest.skip("the scheduler is in another process")
    long = on(reference="prompt", prompt=other(engine, words(engine, 120, 220), images=1))
    batch = [
        engine.checkpoint.ask(220 + i, words=6, extra=long if i % 2 else on(), max_tokens=40) for i in range(6)
    ]
    replies, preempted = engine.host.run(jobs.preempting, batch)
    assert preempted > 0
    check(engine, batch, replies)


def test_one_prefix_for_all_where_no_image_is_seen(engine):
    """A shadow without its image finds the words of another request's, in the cache."""
    if not engine.in_process:
        pytest.skip("the scheduler is in another process")
    first = engine.checkpoint.ask(230, before=3, words=80, extra=on(reference="no-vision"))
    second = Ask(first.prompt, engine.checkpoint.ask(231).images, first.params, first.extra)
    _, cold = engine.host.run(jobs.hitting, first, True)
    reply, warm = engine.host.run(jobs.hitting, second, False)
    assert cold == 0
    assert warm >= 64
    check(engine, [second], [reply])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (on(reference="mean-vision"), "in transformers only"),
        (on(reference="noised-image"), "in transformers only"),
        (on(reference="x"), "expected one of text-centroid"),
        (on(reference="prompt"), "needs tccd_prompt"),
        (on(reference="no-vision", prompt="{}"), "needs tccd_prompt, and no other"),
        (on(reference="no-vision", layer=2), "tccd_layer: tccd_reference 'no-vision' needs no bank"),
        (on(reference="prompt", prompt="{"), "is no JSON"),
        (on(reference="prompt", prompt='{"words": "a"}'), "with one of 'text', 'messages', 'tokens'"),
        (on(reference="prompt", prompt='{"tokens": [100000000]}'), "has token 100000000"),
        (on(reference="prompt", prompt='{"tokens": [5]}'), "needs two tokens of prompt"),
        (on(reference="prompt", prompt=json.dumps({"tokens": [5] * 300})), "more than the 256 of max_model_len"),
    ],
)
def test_what_cannot_be_had_is_refused(engine, extra, said):
    good = engine.checkpoint.ask(240)
    with pytest.raises(RuntimeError, match=said):
        engine.host.run(jobs.generate, [Ask(good.prompt, good.images, good.params, extra)])
    check(engine, [good], engine.host.run(jobs.generate, [good]))
