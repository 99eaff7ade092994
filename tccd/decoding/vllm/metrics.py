"""TCCD requests and tokens, beside vLLM's own metrics at `/metrics`.

vLLM's front end registers each request with an output processor, and hands it every step's tokens. A TCCD
request is noted as it is registered, and its tokens are counted as they come. The counters are in Prometheus'
own registry, which `/metrics` shows. Nothing of vLLM's is counted otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tccd.decoding.vllm import banks, objects
from tccd.decoding.vllm.settings import served, settings


@lru_cache
def _counters() -> tuple[Any, Any]:
    from prometheus_client import Counter

    return (
        Counter("tccd_requests", "Requests decoded with TCCD.", ["model_name", "reference"]),
        Counter("tccd_generation_tokens", "Tokens generated with TCCD.", ["model_name", "reference"]),
    )


def admitted(model_name: Any, reference: str) -> None:
    """Count a request."""
    _counters()[0].labels(_name(model_name), reference).inc()


def _add_request(original: Callable[..., Any], processor: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(processor, request, *args, **kwargs)
    params = request.sampling_params
    found = None if params is None else settings(params.extra_args, banks.loaded())
    if found is not None:
        objects.note(processor.request_states[request.request_id], found.reference)
    return result


def _process_outputs(original: Callable[..., Any], processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    tokens: dict[str, int] = {}
    for output in outputs:
        reference = objects.noted(processor.request_states.get(output.request_id))
        if reference:
            tokens[reference] = tokens.get(reference, 0) + len(output.new_token_ids)
    for reference, count in tokens.items():
        _counters()[1].labels(objects.noted(processor, ""), reference).inc(count)
    return original(processor, outputs, *args, **kwargs)


def _start(original: Callable[..., Any], engine: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    """Tell an engine's output processor the model's name, which labels the counters; they begin at 0."""
    original(engine, vllm_config, *args, **kwargs)
    name = _name(vllm_config.model_config.served_model_name)
    objects.note(engine.output_processor, name)
    for counter in _counters():
        for reference in served(banks.loaded()):
            counter.labels(name, reference)


def _name(served: Any) -> str:
    return str(served[0] if isinstance(served, list) else served)


#: The front end's joints that count.
AROUND: dict[str, Callable[..., Any]] = {
    "server engine": _start,
    "offline engine": _start,
    "output expected": _add_request,
    "output": _process_outputs,
}
