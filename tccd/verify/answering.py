"""vLLM's half of `verify`: one engine answers requests mixed, alone and from its cache, and is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tccd.errors import TCCDError

#: Log-probabilities a step that are compared: the likeliest tokens, as vLLM ranks them.
TOP = 256


@dataclass(frozen=True)
class Ask:
    """One request as verify makes it: a prompt, and what it asks of TCCD.

    Attributes:
        prompt: text, without image tokens or chat template.
        ids: the formatted prompt's tokens, one a picture, as vLLM takes them.
        images: PIL images.
        extra: `SamplingParams.extra_args`; None for a plain request.
    """

    prompt: str
    ids: list[int]
    images: tuple[Any, ...] = ()
    extra: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """What vLLM answered.

    Attributes:
        prompt: tokens of the prompt, image tokens expanded.
        tokens: the generated tokens.
        logprobs: log-probabilities of the likeliest tokens at each step, by token.
        cached: prompt tokens that came from the prefix cache.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[dict[int, float]]
    cached: int


@dataclass(frozen=True)
class Trial:
    """Everything that one engine was asked.

    Attributes:
        about: runner, attention backend, CUDA graphs, KV blocks.
        mixed: the requests in one batch, in order.
        alone: each of them by itself.
        plain: the same prompts in one batch, none with TCCD.
        fresh: variants of one prompt, the cache emptied before each.
        cached: the same one after another, the cache kept.
        cost: way -> phase -> seconds of each round.
    """

    about: dict[str, Any]
    mixed: list[Reply]
    alone: list[Reply]
    plain: list[Reply]
    fresh: list[Reply]
    cached: list[Reply]
    cost: dict[str, dict[str, list[float]]]


def trial(
    options: dict[str, Any],
    requests: Sequence[Ask],
    variants: Sequence[Ask],
    timed: Sequence[Ask],
    tokens: int,
    rounds: int,
) -> Trial:
    """Start an engine and ask it everything; `TCCD_BANK` is set before this process begins.

    Args:
        options: arguments of `vllm.LLM`.
        requests: a mix of TCCD and plain requests.
        variants: one prompt with different parameters.
        timed: TCCD requests to time, four of them; plain ones are made of them too.
        tokens: to generate for each.
        rounds: of timing, beside one to warm up.

    Raises:
        TCCDError: the plugin is not in the engine.
    """
    from vllm import LLM

    instance = Instance(LLM(**options), tokens)
    about = instance.about()
    plain = [replace(r, extra=None) for r in requests]
    mixed, alone = instance.fresh(requests), [instance.fresh([r])[0] for r in requests]
    fresh = [instance.fresh([v])[0] for v in variants]
    instance.forget()
    cached = [instance.generate([v])[0] for v in variants]
    return Trial(about, mixed, alone, instance.fresh(plain), fresh, cached, instance.cost(timed, rounds))


class Instance:
    """vLLM, started for one trial in this process.

    Args:
        llm: a `vllm.LLM`.
        tokens: to generate for each request.
    """

    def __init__(self, llm: Any, tokens: int) -> None:
        self.llm, self.tokens, self._count = llm, tokens, 0
        self.top = min(TOP, int(llm.llm_engine.model_config.get_vocab_size()))

    def about(self) -> dict[str, Any]:
        """What runs here.

        Raises:
            TCCDError: the plugin is not in the engine.
        """
        from tccd.decoding.vllm import worker

        if len(running := worker.running()) != 1:
            raise TCCDError(
                "vLLM started without TCCD: tccd's entry point in vllm.general_plugins was not loaded. Install "
                "tccd into this environment (pip install 'tccd[vllm]'); VLLM_PLUGINS must name it or be unset"
            )
        (state,) = running
        config = self.llm.llm_engine.vllm_config
        blocks = int(config.cache_config.num_gpu_blocks)
        return {
            "runner": state.version,
            "attention_backend": state.backend,
            "cuda_graphs": getattr(config.compilation_config.cudagraph_mode, "name", "NONE"),
            "compilation": getattr(config.compilation_config.mode, "name", "NONE"),
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "kv_blocks": blocks,
            "kv_block_size": int(config.cache_config.block_size),
        }

    def forget(self) -> None:
        """Empty the prefix cache.

        Raises:
            TCCDError: blocks stay in use.
        """
        for _ in range(100):
            if self.llm.reset_prefix_cache():
                return
            time.sleep(0.05)
        raise TCCDError("vLLM's prefix cache can't be emptied: blocks stay in use after their requests are done")

    def fresh(self, requests: Sequence[Ask]) -> list[Reply]:
        """`generate` with an empty prefix cache."""
        self.forget()
        return self.generate(requests)

    def generate(self, requests: Sequence[Ask]) -> list[Reply]:
        """Answer all at once, greedily."""
        outputs = self.llm.generate(
            [_prompt(r) for r in requests], [self._params(r, self.top) for r in requests], use_tqdm=False
        )
        return [_reply(output) for output in outputs]

    def _params(self, request: Ask, logprobs: int | None) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0,
            max_tokens=self.tokens,
            ignore_eos=True,
            logprobs=logprobs,
            detokenize=False,
            extra_args=request.extra,
        )

    def cost(self, requests: Sequence[Ask], rounds: int) -> dict[str, dict[str, list[float]]]:
        """Seconds to all first tokens, and for each token after them, of batches with 0, 1 and all TCCD.

        The ways take turns, each round starting with another, so that a slow moment meets them all.
        """
        counts = {"plain": 0, "one": 1, "all": len(requests)}
        found: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in counts}
        names = list(counts)
        for i in range(1 + rounds):
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                batch = [r if j < counts[name] else replace(r, extra=None) for j, r in enumerate(requests)]
                seconds = self._time(batch)
                if i:
                    for phase, value in zip(("prefill", "decode"), seconds, strict=True):
                        found[name][phase].append(value)
        return found

    def _time(self, requests: Sequence[Ask]) -> tuple[float, float]:
        self.forget()
        engine = self.llm.llm_engine
        for request in requests:
            self._count += 1
            engine.add_request(f"timed-{self._count}", _prompt(request), self._params(request, None))
        waiting = {f"timed-{self._count - i}" for i in range(len(requests))}
        started, first = clock(), None
        while engine.has_unfinished_requests():
            for output in engine.step():
                waiting.discard(output.request_id)
            if first is None and not waiting:
                first = clock()
        assert first is not None
        return first - started, (clock() - first) / (self.tokens - 1)


def vllm_version() -> str:
    """vLLM's release."""
    from importlib.metadata import packages_distributions, version

    return ", ".join(f"{version(name)} ({name})" for name in sorted(set(packages_distributions()["vllm"])))


def on_gpu() -> bool:
    """Whether vLLM runs on a GPU here."""
    import torch

    return torch.cuda.is_available()


def clock() -> float:
    """Seconds: wall time where a GPU works, CPU time of this process where it does itself."""
    return time.perf_counter() if on_gpu() else time.process_time()


def medians(cost: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Way -> phase -> median seconds, and median of the rounds' ratios to the plain batch."""
    return {
        way: {
            phase: {
                "seconds": statistics.median(values),
                "ratio": statistics.median(v / p for v, p in zip(values, cost["plain"][phase], strict=True)),
            }
            for phase, values in phases.items()
        }
        for way, phases in cost.items()
    }


def _prompt(request: Ask) -> dict[str, Any]:
    images = {"multi_modal_data": {"image": list(request.images)}} if request.images else {}
    return {"prompt_token_ids": list(request.ids), **images}


def _reply(output: Any) -> Reply:
    (answer,) = output.outputs
    steps = [{int(t): float(e.logprob) for t, e in step.items()} for step in answer.logprobs]
    return Reply(list(output.prompt_token_ids), list(answer.token_ids), steps, int(output.num_cached_tokens or 0))
