"""What a host does with its engine; each function gets the `LLM` first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.tccd.decoding.vllm.host import Ask


@dataclass(frozen=True)
class Reply:
    """Tokens and log-probabilities (steps, vocabulary) of each sequence of a request, and what came with them."""

    prompt: list[int]
    tokens: list[list[int]]
    logprobs: list[np.ndarray]
    texts: list[str]
    finish: list[str]
    cached: int
    prompt_logprobs: np.ndarray | None


def params(ask: Ask) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    options = {"temperature": 0.0, "logprobs": -1, "ignore_eos": True} | ask.params
    if "choice" in options:
        options["structured_outputs"] = StructuredOutputsParams(choice=options.pop("choice"))
    return SamplingParams(**options, extra_args=ask.extra)


def prompt(ask: Ask) -> dict[str, Any]:
    images = {"multi_modal_data": {"image": list(ask.images)}} if ask.images else {}
    return {"prompt": ask.prompt, **images}


def reply(output: Any, vocabulary: int) -> Reply:
    def table(steps: Any) -> np.ndarray:
        rows = np.full((len(steps), vocabulary), np.nan)
        for row, entries in zip(rows, steps, strict=True):
            for token, entry in (entries or {}).items():
                row[token] = entry.logprob
        return rows

    return Reply(
        prompt=list(output.prompt_token_ids),
        tokens=[list(o.token_ids) for o in output.outputs],
        logprobs=[table(o.logprobs) for o in output.outputs if o.logprobs is not None],
        texts=[o.text for o in output.outputs],
        finish=[str(o.finish_reason) for o in output.outputs],
        cached=int(output.num_cached_tokens or 0),
        prompt_logprobs=None if output.prompt_logprobs is None else table(output.prompt_logprobs),
    )


def generate(llm: Any, asks: list[Ask], fresh: bool = True) -> list[Reply]:
    """All requests at once; `fresh` empties the prefix cache first."""
    if fresh:
        forget(llm)
    outputs = llm.generate([prompt(a) for a in asks], [params(a) for a in asks], use_tqdm=False)
    return [reply(output, vocabulary(llm)) for output in outputs]


def forget(llm: Any) -> None:
    """Empty the prefix cache; an engine in another process frees the last request's blocks a moment later."""
    for _ in range(100):
        if llm.reset_prefix_cache():
            return
        time.sleep(0.05)
    raise AssertionError("blocks are still in use")


def vocabulary(llm: Any) -> int:
    return int(llm.llm_engine.model_config.get_vocab_size())


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def preempting(llm: Any, asks: list[Ask]) -> tuple[list[Reply], int]:
    """Replies, and how often a request was preempted."""
    target = scheduler(llm)
    original, count = target._preempt_request, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return original(*args, **kwargs)

    target._preempt_request = counted
    try:
        return generate(llm, asks), count
    finally:
        del target._preempt_request


def hitting(llm: Any, ask: Ask, fresh: bool) -> tuple[Reply, int | None]:
    """A reply, and how many of its shadow's tokens were in the cache; None without a shadow."""
    from tccd.decoding.vllm.pairs import link

    target = scheduler(llm)
    original, hits = target._get_local_prefix_cache_hit, []

    def noted(request: Any) -> Any:
        found = original(request)
        if link(request.sampling_params) is not None:
            hits.append(found[1])
        return found

    target._get_local_prefix_cache_hit = noted
    try:
        (answer,) = generate(llm, [ask], fresh)
    finally:
        del target._get_local_prefix_cache_hit
    return answer, hits[0] if hits else None


def aborting(llm: Any, asks: list[Ask], aborted: int, after: int) -> list[Reply]:
    """Replies of all requests but one, which is aborted after some steps."""
    engine = llm.llm_engine
    for i, a in enumerate(asks):
        engine.add_request(str(i), prompt(a), params(a))
    found: dict[str, Any] = {}
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = output
        steps += 1
        if steps == after:
            engine.abort_request([str(aborted)])
    return [reply(found[str(i)], vocabulary(llm)) for i in range(len(asks)) if i != aborted]


def runner(llm: Any) -> str:
    """Full name of the model runner's class."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    kind = type(executor.driver_worker.worker.model_runner)
    return f"{kind.__module__}.{kind.__qualname__}"


def residue(llm: Any) -> dict[str, int]:
    """What we hold between requests; nothing, after they are done."""
    from tccd.decoding.vllm import worker

    (state,) = worker.running()
    llm.generate([{"prompt": "w5 w6"}], _plain(), use_tqdm=False)  # the runner hears of the last ones
    target = scheduler(llm)
    return {
        "shadows": len(state.shadows),
        "pairs": len(target.pairs),
        "requests": len(target.requests),
        "moved": int(state.buffers.site.count_nonzero()),
        "pending": int(state.head.pending is not None),
    }


def _plain() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=1)


def cache_blocks(llm: Any) -> int:
    """Blocks of the KV cache."""
    return int(llm.llm_engine.vllm_config.cache_config.num_gpu_blocks)


def from_file(llm: Any, body: dict[str, Any]) -> None:
    """What `vllm run-batch` does first with a line of its file; nothing of HTTP has seen it."""
    import asyncio

    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry
    from vllm.entrypoints.serve.engine.serving import BaseServing

    serving = BaseServing(OpenAIModelRegistry(llm.model_config, []), llm.model_config)
    asyncio.run(serving._check_model(ChatCompletionRequest.model_validate(body)))


def reading(llm: Any, asks: list[Ask]) -> tuple[int, int]:
    """How often this process validated a request's parameters to answer, and how often it remembered them."""
    from tccd.decoding.vllm.settings import read

    before = read.cache_info()
    generate(llm, asks)
    after = read.cache_info()
    return after.misses - before.misses, after.hits - before.hits


def metrics(llm: Any) -> dict[str, float]:
    """Our counters, by name and reference."""
    from prometheus_client import REGISTRY

    return {
        f"{sample.name} {sample.labels['reference']}": sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("tccd_") and sample.name.endswith("_total")
    }
