"""TCCD requests and tokens, beside vLLM's own metrics at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tccd.decoding.vllm import banks, joints
from tccd.decoding.vllm.settings import asked, settings


@lru_cache
def _counters() -> tuple[Any, Any]:
    from prometheus_client import Counter

    return (
        Counter("tccd_requests", "Requests decoded with TCCD.", ["model_name"]),
        Counter("tccd_generation_tokens", "Tokens generated with TCCD.", ["model_name"]),
    )


def admitted(model_name: Any) -> None:
    """Count a request."""
    _counters()[0].labels(_name(model_name)).inc()


def install() -> None:
    """Count the tokens of TCCD requests where the front end receives them."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor

    joints.wrap(OutputProcessor, "add_request", _add_request)
    joints.wrap(OutputProcessor, "process_outputs", _process_outputs)
    for engine in (AsyncLLM, LLMEngine):
        joints.wrap(engine, "__init__", _start)


def _add_request(original: Callable, processor: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(processor, request, *args, **kwargs)
    params = request.sampling_params
    if params is not None and asked(params.extra_args) and settings(params.extra_args, banks.loaded()):
        processor.request_states[request.request_id].tccd = True
    return result


def _process_outputs(original: Callable, processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    tokens = 0
    for output in outputs:
        state = processor.request_states.get(output.request_id)
        if state is not None and getattr(state, "tccd", False):
            tokens += len(output.new_token_ids)
    if tokens:
        _counters()[1].labels(getattr(processor, "tccd_model_name", "")).inc(tokens)
    return original(processor, outputs, *args, **kwargs)


def _start(original: Callable, engine: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    """Tell an engine's output processor the model's name, which labels the counters; they begin at 0."""
    original(engine, vllm_config, *args, **kwargs)
    name = _name(vllm_config.model_config.served_model_name)
    engine.output_processor.tccd_model_name = name
    for counter in _counters():
        counter.labels(name)


def _name(served: Any) -> str:
    return str(served[0] if isinstance(served, list) else served)
