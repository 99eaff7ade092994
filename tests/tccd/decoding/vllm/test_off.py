"""Off means off: without a bank, or without a TCCD request, vLLM is what it was, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tccd.decoding.vllm import jobs
from tests.tccd.decoding.vllm.conftest import on, start

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def engines(checkpoint):
    pytest.importorskip("vllm")
    served = checkpoint("qwen2_5_vl")
    #: As many blocks as there is room for, so that what the plugin takes is seen.
    roomy: dict[str, Any] = {"num_gpu_blocks_override": None}
    hosts = {
        "absent": start(served, bank=None, env={"TCCD_TEST_ABSENT": "1"}, **roomy),
        "off": start(served, bank=None, **roomy),
        "idle": start(served, **roomy),
    }
    yield served, hosts
    for host in hosts.values():
        host.close()


def test_plain_requests_are_those_of_vanilla_vllm_bitwise(engines):
    served, hosts = engines
    asks = [served.ask(i, images=i % 3, words=5 + 8 * i, max_tokens=8) for i in range(6)]
    replies = {name: host.run(jobs.generate, asks) for name, host in hosts.items()}
    for name in ("off", "idle"):
        for vanilla, ours in zip(replies["absent"], replies[name], strict=True):
            assert vanilla.tokens == ours.tokens
            assert np.array_equal(vanilla.logprobs[0], ours.logprobs[0])


def test_parameters_without_a_bank_are_refused_and_not_ignored(engines):
    served, hosts = engines
    with pytest.raises(RuntimeError, match=r"VLLMValidationError.*runs without TCCD.*TCCD_BANK"):
        hosts["off"].run(jobs.generate, [served.ask(7, extra=on())])


@pytest.mark.parametrize("name", ["off", "idle"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tccd_layer": 2}, "put them under 'vllm_xargs'"),
        ({"extra_body": {"vllm_xargs": {"tccd_layer": 2}}}, "extra_body.vllm_xargs.tccd_layer"),
        ({"vllm_xargs": {"tccd-layer": 2}}, "tccd-layer"),
        ({"vllm_xargs": {"tccd_layer": 2}, "use_beam_search": True}, "beam search"),
    ],
)
def test_requests_from_a_file_are_checked_too(engines, name, more, said):
    body = {"model": "", "messages": [{"role": "user", "content": "what"}]} | more
    with pytest.raises(RuntimeError, match=f"VLLMValidationError.*{said}"):
        engines[1][name].run(jobs.from_file, body)


def test_the_plugin_takes_no_room_in_the_cache(engines):
    blocks = {name: host.run(jobs.cache_blocks) for name, host in engines[1].items()}
    assert blocks["off"] == blocks["idle"] == blocks["absent"]


def test_a_plain_request_is_the_same_beside_contrasted_ones(engines):
    served, hosts = engines
    plain = [served.ask(20 + i, words=12, max_tokens=6) for i in range(2)]
    (alone, _), beside = (hosts["absent"].run(jobs.generate, plain), hosts["idle"].run(
        jobs.generate, [plain[0], served.ask(30, extra=on()), served.ask(31, extra=on(reference="no-vision"))]
    ))  # fmt: skip
    assert alone.tokens == beside[0].tokens
    assert np.allclose(alone.logprobs[0], beside[0].logprobs[0], atol=1e-4)
