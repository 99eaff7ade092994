"""The front end and the scheduler: requests without an image are refused, cached states are told apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tccd.decoding.vllm import banks, metrics
from tccd.decoding.vllm.settings import Settings, asked, settings, tail_start
from tccd.errors import TCCDError
from tccd.modality import vision_token_ids

VISION = ("image", "video", "vision_chunk")


def install() -> None:
    """Wrap request processing (front end) and block hashing (scheduler)."""
    from vllm.v1.core import block_pool, kv_cache_utils
    from vllm.v1.engine.input_processor import InputProcessor

    if getattr(InputProcessor.process_inputs, "tccd", False):
        return
    process = InputProcessor.process_inputs

    @functools.wraps(process)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        extra = getattr(params, "extra_args", None)
        if not asked(extra):
            return process(self, request_id, prompt, params, *args, **kwargs)
        request = None
        try:
            request = process(self, request_id, prompt, params, *args, **kwargs)
            if settings(extra, banks.loaded()) is not None:
                check(request, vision_token_ids(self.model_config.hf_config))
                metrics.admitted(self.model_config.served_model_name)
        except Exception:
            _forget_images(self.renderer.mm_processor_cache, prompt, request)
            raise
        return request

    process_inputs.tccd = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_inputs

    original = kv_cache_utils.generate_block_hash_extra_keys
    for module in (kv_cache_utils, block_pool):
        module.generate_block_hash_extra_keys = functools.wraps(original)(functools.partial(_extra_keys, original))


def install_http() -> None:
    """Refuse beam search with TCCD in a server, whose requests would lose their `vllm_xargs` on the way."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.exceptions import VLLMValidationError

    for kind in (ChatCompletionRequest, CompletionRequest):
        original = kind.to_beam_search_params
        if getattr(original, "tccd", False):
            continue

        @functools.wraps(original)
        def to_beam_search_params(self: Any, *args: Any, _original: Callable = original, **kwargs: Any) -> Any:
            if asked(self.vllm_xargs):
                raise VLLMValidationError(
                    "vLLM's beam search drops vllm_xargs: leave use_beam_search or tccd_* out"
                )
            return _original(self, *args, **kwargs)

        to_beam_search_params.tccd = True  # type: ignore[attr-defined]
        kind.to_beam_search_params = to_beam_search_params


def _forget_images(cache: Any, prompt: Any, request: Any) -> None:
    """Drop a refused request's images from the front end's shadow of the engine's cache.

    They were noted there when the prompt was rendered, but never reach the engine: the next request with the
    same image would be sent without it.
    """
    hashes = [feature.mm_hash for feature in (request.mm_features or ())] if request is not None else []
    if isinstance(prompt, dict):
        hashes += [one for held in (prompt.get("mm_hashes") or {}).values() for one in held]
    for one in hashes if cache is not None else ():
        if one is not None:
            cache.invalidate(one)


def check(request: Any, vision_ids: tuple[int, ...]) -> None:
    """Make sure that TCCD means something for a request.

    Raises:
        VLLMValidationError: no image in the prompt, or a kind of request that was not tested.
    """
    from vllm.exceptions import VLLMValidationError

    modalities = [feature.modality for feature in request.mm_features or ()]
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise VLLMValidationError("TCCD was not tested with prompt embeddings; send text and images")
    if request.resumable:
        raise VLLMValidationError("TCCD was not tested with streamed input; send the whole prompt")
    if any(modality not in VISION for modality in modalities):
        raise VLLMValidationError(f"TCCD was not tested with {', '.join(sorted(set(modalities) - set(VISION)))}")
    if not modalities or tail_start(request.prompt_token_ids, vision_ids) is None:
        raise VLLMValidationError(
            "TCCD contrasts against the prompt's text after its last image, and this prompt has no image; send "
            "one, or leave the tccd_* parameters out"
        )


def cache_key(found: Settings, tail: int) -> str:
    """What the erased stream's cached states depend on beside tokens and images."""
    digest = banks.loaded().digest(found.bank, found.layer)
    return f"{digest}:{found.layer}:{found.config.alpha_interp!r}:{tail}"


def _extra_keys(original: Callable, request: Any, start: int, end: int, mm_index: int) -> Any:
    """Blocks with a text-tail token of a TCCD request hash to their own; those before it are everybody's."""
    keys, following = original(request, start, end, mm_index)
    key = _of(request)
    if key is not None and end > key[0]:
        keys = (*(keys or ()), ("tccd", key[1]))
    return keys, following


def _of(request: Any) -> tuple[int, str] | None:
    """Where a scheduler's request has its tail, and its cache key; worked out once."""
    if hasattr(request, "_tccd"):
        return request._tccd
    params, key = request.sampling_params, None
    found = (
        settings(params.extra_args, banks.loaded()) if params is not None and asked(params.extra_args) else None
    )
    if found is not None:
        tail = tail_start(request.prompt_token_ids or (), _vision_ids)
        if tail is None:  # unmarked blocks would pass plain states off as erased ones
            raise TCCDError(f"TCCD request {request.request_id} has no vision token among {list(_vision_ids)}")
        key = tail, cache_key(found, tail)
    request._tccd = key
    return key


_vision_ids: tuple[int, ...] = ()


def set_vision_ids(ids: tuple[int, ...]) -> None:
    """Tell the scheduler's process which token ids are vision."""
    global _vision_ids
    _vision_ids = ids
