"""Every engine against transformers: log-probabilities within 1e-3 of two forwards and a hook, equal tokens."""

from __future__ import annotations

import numpy as np
import pytest

from tccd.decoding.vllm.settings import REFERENCES
from tests.tccd.decoding.vllm import jobs, reference
from tests.tccd.decoding.vllm.conftest import Running, on
from tests.tccd.decoding.vllm.host import Ask
from tests.tccd.decoding.vllm.jobs import Reply
from tests.tiny import EOS, TEXT_IDS, VOCAB

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SETTINGS = [
    on(alpha_cd=1.0),
    None,
    on(alpha_cd=0.5, alpha_interp=0.0),
    on(layer=1, alpha_interp=0.7, alpha_cd=-0.5),
    on(beta=0.1, alpha_cd=2.0),
    on(gate="margin", gate_threshold=0.3, gate_ramp=0.1),
    None,
    on(tokens="first", alpha_interp=0.2),
]


def mixed(engine: Running, **params: object) -> list[Ask]:
    """Different settings, images of different sizes and numbers, prompts without one, tails of several chunks."""
    make = engine.checkpoint.ask
    asks = [make(i, images=1 + i % 2, words=4 + 9 * i, extra=x, **params) for i, x in enumerate(SETTINGS)]
    asks[6] = make(6, images=0, words=12, **params)
    return asks


def check(engine: Running, asks: list[Ask], replies: list[Reply], greedy: bool = True) -> None:
    unfair = 0
    for ask, reply in zip(asks, replies, strict=True):
        try:
            reference.check(engine.checkpoint.folder, engine.checkpoint.bank, ask, reply, greedy)
        except reference.Unfair:
            unfair += 1
    assert unfair <= len(asks) // 4


def test_the_runner_is_the_one_that_was_asked_for(engine):
    if not engine.in_process:
        pytest.skip("another process")
    expected = "vllm.v1.worker.cpu.model_runner" if engine.v2 else "vllm.v1.worker.cpu_model_runner"
    assert engine.host.run(jobs.runner) == expected + ".CPUModelRunner"


def test_a_mixed_batch(engine):
    asks = mixed(engine)
    replies = engine.host.run(jobs.generate, asks)
    check(engine, asks, replies)
    # The settings matter: the contrasted requests would answer otherwise without them.
    plain = engine.host.run(jobs.generate, [Ask(a.prompt, a.images, a.params) for a in asks])
    for ask, contrasted, clean in zip(asks, replies, plain, strict=True):
        off = reference.difference(contrasted.logprobs[0][:1], clean.logprobs[0][:1])
        if not (ask.extra or {}).get("tccd_gate"):  # a gate may be shut
            assert (off > 1e-2) == (ask.extra is not None)


def test_neighbours_make_no_difference(engine):
    asks = mixed(engine)
    together = engine.host.run(jobs.generate, asks)
    for ask, beside in zip(asks, together, strict=True):
        (alone,) = engine.host.run(jobs.generate, [ask])
        assert alone.tokens == beside.tokens
        assert reference.difference(alone.logprobs[0], beside.logprobs[0]) < 1e-4


def test_preempted_requests_are_as_exact(engine):
    if not engine.in_process:
        pytest.skip("the scheduler is in another process")
    asks = [
        engine.checkpoint.ask(20 + i, images=1, words=40, extra=x, max_tokens=56) for i, x in enumerate(SETTINGS)
    ]
    replies, preempted = engine.host.run(jobs.preempting, asks * 2)
    assert preempted > 0
    check(engine, asks * 2, replies)


def test_cached_prefixes_across_plain_and_contrasted_requests(engine):
    make = engine.checkpoint.ask
    plain = make(40, images=2, before=24, words=60, max_tokens=4)
    variants = [
        plain,
        Ask(plain.prompt, plain.images, plain.params, on(alpha_interp=0.4)),
        Ask(plain.prompt, plain.images, plain.params, on(alpha_interp=0.4, alpha_cd=2.0)),
        Ask(plain.prompt, plain.images, plain.params, on(alpha_interp=0.0)),
        Ask(plain.prompt, plain.images, plain.params, on(alpha_interp=0.4, layer=1)),
        plain,
    ]
    cached, hits = [], []
    for index, ask in enumerate(variants):
        if engine.in_process:
            reply, hit = engine.host.run(jobs.hitting, ask, index == 0)
            hits.append(hit)
        else:
            (reply,) = engine.host.run(jobs.generate, [ask], index == 0)
        check(engine, [ask], [reply])
        cached.append(reply.cached)
    length = len(reply.prompt)
    tail = reference.inputs(engine.checkpoint.folder, plain)["input_ids"][0].tolist()
    vision = max(i for i, t in enumerate(tail) if t in _vision(engine))
    before_tail, whole = (vision + 1) // 32 * 32, (length - 1) // 32 * 32
    assert 0 < before_tail < whole
    assert cached == [0, *[whole] * 5]  # what a plain request would have found
    if engine.in_process:  # blocks before the tail are shared with plain traffic, and erased ones by what matters
        assert hits == [None, before_tail, whole, before_tail, before_tail, None]


def test_a_second_image_later_in_a_conversation(engine):
    make = engine.checkpoint.ask
    first = make(50, images=1, before=20, words=30, max_tokens=4, extra=on())
    more = make(51, images=1, before=20, words=20, max_tokens=4)
    second = Ask(first.prompt + " " + more.prompt, first.images + more.images, first.params, on())
    asks = [first, second, Ask(second.prompt, second.images, second.params), second, first]
    for index, ask in enumerate(asks):
        (reply,) = engine.host.run(jobs.generate, [ask], index == 0)
        check(engine, [ask], [reply])
        if index > 2:
            assert reply.cached > 0


def test_parallel_sampling(engine):
    llava = engine.checkpoint.family == "llava"
    special = (
        range(5) if llava else [*range(TEXT_IDS.start), *range(TEXT_IDS.stop, VOCAB)]
    )  # an image token has none
    bias = dict.fromkeys(special, -100.0)
    ask = engine.checkpoint.ask(60, words=12, extra=on(), n=3, temperature=2.0, logit_bias=bias)
    (reply,) = engine.host.run(jobs.generate, [ask])
    assert len(reply.tokens) == 3
    if not llava:  # which is too sure of its word
        assert len({tuple(tokens) for tokens in reply.tokens}) > 1
    check(engine, [ask], [reply], greedy=False)


def test_prompt_log_probabilities_are_of_the_clean_stream(engine):
    ask = engine.checkpoint.ask(70, words=12, extra=on(alpha_cd=2.0), prompt_logprobs=-1)
    (reply,) = engine.host.run(jobs.generate, [ask])
    check(engine, [ask], [reply])
    _, clean = reference.distributions(engine.checkpoint.folder, engine.checkpoint.bank, ask, reply.tokens[0])
    assert reference.difference(reply.prompt_logprobs[1:], clean.numpy()) < 1e-3


def test_an_aborted_request_disturbs_no_other(engine):
    asks = [engine.checkpoint.ask(80 + i, words=20, extra=x, max_tokens=12) for i, x in enumerate(SETTINGS[:4])]
    for gone in (0, 1):
        replies = engine.host.run(jobs.aborting, asks, gone, 5)
        check(engine, [ask for i, ask in enumerate(asks) if i != gone], replies)


def test_stop_strings(engine):
    ask = engine.checkpoint.ask(90, words=10, extra=on(), max_tokens=8, logit_bias={EOS: -100.0})
    (reply,) = engine.host.run(jobs.generate, [ask])
    words = reply.texts[0].split()
    stop = next((w for w in words[1:] if w != words[0]), words[0])
    (stopped,) = engine.host.run(
        jobs.generate, [Ask(ask.prompt, ask.images, ask.params | {"stop": [stop]}, ask.extra)]
    )
    assert stopped.finish == ["stop"]
    assert stop not in stopped.texts[0]
    assert stopped.tokens[0] == reply.tokens[0][: len(stopped.tokens[0])]


def test_nothing_is_left_behind(engine):
    if not engine.in_process:
        pytest.skip("another process")
    engine.host.run(jobs.generate, mixed(engine))
    assert engine.host.run(jobs.residue) == dict.fromkeys(("shadows", "pairs", "requests", "moved", "pending"), 0)


def test_structured_output_of_a_contrasted_request(engine):
    if engine.checkpoint.family != "llava":
        pytest.skip("the grammar library wants a tokenizer with text")
    asks = [
        engine.checkpoint.ask(95, words=10, extra=x, max_tokens=2, choice=["triangle", "teal"], ignore_eos=False)
        for x in (on(), on(beta=1.0), None)
    ]
    for reply in engine.host.run(jobs.generate, asks):
        assert reply.texts[0].strip() in ("triangle", "teal")


BAD = {
    "unknown key": {"tccd_alpha": 1.0},
    "wrong type": {"tccd_alpha_cd": "much"},
    "not a number": {"tccd_alpha_cd": float("nan")},
    "out of range": {"tccd_alpha_interp": 1.5},
    "unknown bank": {"tccd_bank": "/etc/passwd"},
    "unknown gate": {"tccd_gate": "door"},
    "layer without centroids": {"tccd_layer": 3},
    "several layers": {"tccd_alpha_cd": 1.0},
}


@pytest.mark.parametrize("what", BAD)
def test_bad_parameters_are_refused_and_nothing_else_disturbed(engine, what):
    good = engine.checkpoint.ask(97, extra=on())
    bad = Ask(good.prompt, good.images, good.params, BAD[what])
    with pytest.raises(RuntimeError, match=r"VLLMValidationError.*(tccd|TCCD)"):
        engine.host.run(jobs.generate, [bad])
    check(engine, [good], engine.host.run(jobs.generate, [good]))


def test_a_prompt_without_an_image_is_refused(engine):
    ask = engine.checkpoint.ask(98, images=0, extra=on())
    with pytest.raises(RuntimeError, match="has no image"):
        engine.host.run(jobs.generate, [ask])


def test_off_settings_are_plain_decoding(engine):
    plain = engine.checkpoint.ask(99, words=10)
    off = Ask(plain.prompt, plain.images, plain.params, on(alpha_cd=0.0))
    first, second = (engine.host.run(jobs.generate, [ask])[0] for ask in (plain, off))
    assert np.array_equal(first.logprobs[0], second.logprobs[0])


def test_parameters_are_read_once_a_process(engine):
    asks = [engine.checkpoint.ask(94, extra=on(alpha_cd=alpha)) for alpha in (0.71, 0.71, 0.72)]
    read, remembered = engine.host.run(jobs.reading, asks)
    assert read == 2
    assert remembered > 2 * len(asks)  # every place that asks, in front end, scheduler and runner
    assert engine.host.run(jobs.reading, asks)[0] == 0


def test_requests_and_tokens_are_counted(engine):
    before = engine.host.run(jobs.metrics)
    asked = {"text-centroid": 5, "no-vision": 3, None: 4}
    extras = {None: None} | {name: on(reference=name) for name in asked if name}
    batch = [engine.checkpoint.ask(96, extra=extras[name], max_tokens=count) for name, count in asked.items()]
    engine.host.run(jobs.generate, batch)
    after = engine.host.run(jobs.metrics)
    counted = {name: after[name] - before[name] for name in after}
    for name in REFERENCES:  # all of them from 0
        assert counted[f"tccd_requests_total {name}"] == (name in asked)
        assert counted[f"tccd_generation_tokens_total {name}"] == asked.get(name, 0)


def _vision(engine: Running) -> set[int]:
    from tests import oracle

    model, _ = reference.load(engine.checkpoint.folder)
    return oracle.vision_ids_of(model)
