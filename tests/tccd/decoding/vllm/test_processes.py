"""Every process of an engine decodes with TCCD and the same bank, or the engine does not start."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch

from tccd import CentroidBank
from tccd.decoding.vllm.banks import Banks, loaded
from tccd.decoding.vllm.promise import Promise
from tccd.errors import TCCDError
from tests.tccd.decoding.common import text_centroids
from tests.tccd.decoding.vllm import jobs
from tests.tccd.decoding.vllm.conftest import on, start

ELSEWHERE = "tests.tccd.decoding.vllm.elsewhere.Elsewhere"
OWN, SPAWN = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


@pytest.fixture(scope="module")
def promised(checkpoint, tmp_path_factory):
    """A pickled promise of a checkpoint's bank, and files: the same bank, and another one."""
    served = checkpoint("qwen2_5_vl")
    width = served.bank.model.hidden_size
    other = CentroidBank.from_arrays(served.bank.model, {("text", 2): torch.as_tensor(text_centroids(width, 9))})
    file = tmp_path_factory.mktemp("other") / "bank.safetensors"
    other.save(file)
    return pickle.dumps(Promise(Banks({"default": served.bank}).digests)), served.file, file


@pytest.mark.parametrize(
    ("bank", "plugins", "said"),
    [
        ("same", None, None),
        ("same", "tccd,other", None),
        ("same", "other", "VLLM_PLUGINS is 'other'"),
        ("same", "", "VLLM_PLUGINS is ''"),
        ("none", None, "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY=TCCD_BANK"),
        ("other", None, "has other banks than the front end ('default': front end "),
        ("renamed", None, "'default': front end "),
        ("missing", None, "TCCD_BANK, bank 'default'"),
    ],
)
def test_a_process_that_cannot_keep_the_promise_fails_as_it_receives_it(
    promised, tmp_path, monkeypatch, bank, plugins, said
):
    data, same, other = promised
    value = {"same": same, "other": other, "missing": tmp_path / "none", "renamed": f"x={same}"}.get(bank)
    for name, wanted in (("TCCD_BANK", value), ("VLLM_PLUGINS", plugins)):
        monkeypatch.delenv(name, raising=False)
        if wanted is not None:
            monkeypatch.setenv(name, str(wanted))
    loaded.cache_clear()
    try:
        if said is None:
            assert isinstance(pickle.loads(data), Promise)
            return
        with pytest.raises(TCCDError) as caught:
            pickle.loads(data)
        assert said in str(caught.value)
    finally:
        loaded.cache_clear()


#: name -> (options of the engine, TCCD_BANK in the front end, what is said)
STARTS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "no plugin": ({"env": {"VLLM_PLUGINS": "other"}}, True, "configured without TCCD"),
    "worker without a bank": (
        {"distributed_executor_backend": ELSEWHERE, "env": SPAWN | {"TCCD_TEST_WORKER": '{"TCCD_BANK": null}'}},
        True,
        "TCCD_BANK is not set in this process",
    ),
    "engine without the plugin": (
        {"env": OWN | SPAWN | {"TCCD_TEST_CORE": '{"VLLM_PLUGINS": "x"}'}},
        True,
        "plugin is not loaded in this process",
    ),
    "front end without a bank": (
        {"env": OWN | SPAWN | {"TCCD_TEST_CORE": '{"TCCD_BANK": "BANK"}'}},
        False,
        "configured without TCCD",
    ),
}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", list(STARTS))
def test_an_engine_with_a_process_that_would_decode_plainly_does_not_start(checkpoint, name):
    pytest.importorskip("vllm")
    options, with_bank, said = STARTS[name]
    served = checkpoint("qwen2_5_vl")
    env = {k: v.replace('BANK"}', json.dumps(str(served.file))[1:-1] + '"}') for k, v in options["env"].items()}
    with pytest.raises(RuntimeError) as caught:
        start(served, bank="" if with_bank else None, **(options | {"env": env}))
    assert said in str(caught.value)


@pytest.mark.vllm
@pytest.mark.slow
def test_without_plugin_and_bank_requests_are_refused_and_plain_ones_served(checkpoint):
    pytest.importorskip("vllm")
    served = checkpoint("qwen2_5_vl")
    host = start(served, bank=None, env={"VLLM_PLUGINS": "other"})
    try:
        first, second = served.ask(1), served.ask(2)
        host.run(jobs.generate, [first])
        for extra in (on(), {"TCCD-layer": 2}):
            bad = served.ask(2, extra=extra)
            with pytest.raises(RuntimeError, match="this engine runs without TCCD"):
                host.run(jobs.generate, [bad])
        (reply,) = host.run(jobs.generate, [second])
        assert len(reply.tokens[0]) == 6
    finally:
        host.close()
