"""TCCD requests and tokens, beside vLLM's own metrics at `/metrics`."""

from __future__ import annotations

import functools
from functools import lru_cache
from typing import Any

from tccd.decoding.vllm import banks
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

    if getattr(OutputProcessor.add_request, "tccd", False):
        return
    add, process = OutputProcessor.add_request, OutputProcessor.process_outputs

    @functools.wraps(add)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = add(self, request, *args, **kwargs)
        params = request.sampling_params
        if params is not None and asked(params.extra_args) and settings(params.extra_args, banks.loaded()):
            self.request_states[request.request_id].tccd = True
        return result

    @functools.wraps(process)
    def process_outputs(self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = 0
        for output in outputs:
            state = self.request_states.get(output.request_id)
            if state is not None and getattr(state, "tccd", False):
                tokens += len(output.new_token_ids)
        if tokens:
            _counters()[1].labels(getattr(self, "tccd_model_name", "")).inc(tokens)
        return process(self, outputs, *args, **kwargs)

    add_request.tccd = True  # type: ignore[attr-defined]
    OutputProcessor.add_request = add_request
    OutputProcessor.process_outputs = process_outputs
    for engine in (AsyncLLM, LLMEngine):
        _name_processor(engine)


def _name_processor(engine: Any) -> None:
    """Tell an engine's output processor the model's name, which labels the counters."""
    start = engine.__init__

    @functools.wraps(start)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        start(self, vllm_config, *args, **kwargs)
        self.output_processor.tccd_model_name = _name(vllm_config.model_config.served_model_name)

    engine.__init__ = __init__


def _name(served: Any) -> str:
    return str(served[0] if isinstance(served, list) else served)
