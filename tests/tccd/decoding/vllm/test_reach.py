"""What else is served: several ranks, language models, mixtures of experts, int8 weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tccd.decoding.vllm import jobs, models, reference
from tests.tccd.decoding.vllm.conftest import SMALL, Running, on, start
from tests.tccd.decoding.vllm.host import Ask, Host
from tests.tccd.decoding.vllm.test_exact import check as check_all
from tests.tccd.decoding.vllm.test_exact import mixed
from tests.tccd.decoding.vllm.test_references import asks
from tests.tccd.decoding.vllm.test_refusals import configure
from tests.tiny import VOCAB

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def ranks(checkpoint) -> Iterator[Running]:
    pytest.importorskip("vllm")
    served = checkpoint("llava")
    host = start(served, tensor_parallel_size=2, distributed_executor_backend="mp")
    yield Running("llava-tp2-subprocess", host, served)
    host.close()


def test_two_ranks_answer_as_transformers_does(ranks):
    for batch in (asks(ranks), mixed(ranks)):
        check_all(ranks, batch, ranks.host.run(jobs.generate, batch))
        check_all(ranks, batch, ranks.host.run(jobs.generate, batch, False))


def language_model(kind: str, folder: Path) -> None:
    """A tiny one, dense or a mixture of experts."""
    import transformers as hf

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
    }
    kinds: dict[str, Any] = {
        "llama": lambda: hf.LlamaConfig(**sizes),
        "mixtral": lambda: hf.MixtralConfig(
            **sizes, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
        ),
    }
    models.save_text(kinds[kind](), folder)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_language_model_is_guided_by_other_words(checkpoint, tmp_path, kind):
    pytest.importorskip("vllm")
    language_model(kind, tmp_path / "model")
    host = Host(tmp_path / "model", "none", **SMALL)
    words = [" ".join(f"w{5 + (seed * n) % 100}" for n in range(1, 12 + 20 * seed)) for seed in (1, 2, 3, 4)]
    params = {"max_tokens": 6}

    def guided(text: str, **settings: Any) -> dict[str, Any]:
        return on(reference="prompt", prompt=json.dumps({"text": text}), **settings)

    batch = [
        Ask(words[0], (), params, guided(words[3])),
        Ask(words[1], (), params, guided(words[0], alpha_cd=2.0, beta=0.05)),
        Ask(words[2], (), params),
        Ask(words[3], (), params, guided(words[2], alpha_cd=-0.5, tokens="first")),
    ]
    try:
        for fresh in (True, False):
            for ask, reply in zip(batch, host.run(jobs.generate, batch, fresh), strict=True):
                reference.check(tmp_path / "model", None, ask, reply)
        with pytest.raises(RuntimeError, match="this server has none"):
            host.run(jobs.generate, [Ask(words[0], (), params, on())])
        with pytest.raises(RuntimeError, match="this prompt has no image"):
            host.run(jobs.generate, [Ask(words[0], (), params, on(reference="no-vision"))])
    finally:
        host.close()
    if kind == "mixtral":
        options = {"model": str(tmp_path / "model"), "dtype": "float32", "max_model_len": 128}
        said = configure(checkpoint("qwen2_5_vl").file, {"x": options})["x"]
        assert "not tested with mixtures of experts and a bank" in str(said)


def test_int8_weights(checkpoint, tmp_path):
    """At `alpha_cd` -1 a request is answered as its reference; at `alpha_interp` 1 centroids change nothing."""
    pytest.importorskip("vllm")
    served = checkpoint("llava")
    models.save_int8(served.folder, tmp_path / "model")
    host = Host(tmp_path / "model", str(served.file), **SMALL)
    text, seen = served.ask(1, images=0, words=30), served.ask(2, images=2, words=20)
    other = json.dumps({"text": text.prompt})

    def contrasted(**settings: Any) -> Ask:
        return Ask(seen.prompt, seen.images, seen.params, on(**settings))

    batch = [
        text,
        contrasted(reference="prompt", prompt=other, alpha_cd=-1.0),
        seen,
        contrasted(alpha_interp=1.0),
        contrasted(reference="vision-centroid", alpha_interp=1.0, gate="margin"),
        contrasted(alpha_interp=0.0),
        contrasted(reference="no-vision"),
    ]
    try:
        for fresh in (True, False):
            found = [reply.logprobs[0] for reply in host.run(jobs.generate, batch, fresh)]
            for first, second in ((0, 1), (2, 3), (2, 4)):
                assert reference.difference(found[first], found[second]) < 1e-4
            for apart in (5, 6):
                assert reference.difference(found[2][:1], found[apart][:1]) > 1e-3
    finally:
        host.close()
