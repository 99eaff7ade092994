"""Rendered requests: those without an image are refused, and cached blocks of erased states are told from others.

vLLM cuts a prompt into blocks and keeps their keys and values. A block is found again by a hash of its tokens,
of all before it, and of "extra keys", such as an image's hash. Both streams use one block table, so a block that
is found brings along what the second caches hold for it. There it matters what the tail was erased with. So
blocks with a token of a TCCD request's tail get an extra key more: centroids, layer, `alpha_interp` and where
the tail starts. Blocks before the tail are the same in both streams: they keep vLLM's hash, and are shared with
plain requests.

What only the rule needs (`alpha_cd`, `beta`, gate) is not part of the key, since no cached state depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tccd.decoding.vllm import banks, objects
from tccd.decoding.vllm.settings import Settings, settings, tail_start
from tccd.errors import TCCDError

VISION = ("image", "video", "vision_chunk")
_UNKNOWN = object()


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


def _extra_keys(original: Callable[..., Any], request: Any, start: int, end: int, mm_index: int) -> Any:
    """Blocks with a text-tail token of a TCCD request hash to their own; those before it are everybody's."""
    keys, following = original(request, start, end, mm_index)
    key = _of(request)
    if key is not None and end > key[0]:
        keys = (*(keys or ()), ("tccd", key[1]))
    return keys, following


def _of(request: Any) -> tuple[int, str] | None:
    """Where a scheduler's request has its tail, and its cache key; worked out once."""
    key = objects.noted(request, _UNKNOWN)
    if key is not _UNKNOWN:
        return key
    params, key = request.sampling_params, None
    found = None if params is None else settings(params.extra_args, banks.loaded())
    if found is not None:
        tail = tail_start(request.prompt_token_ids or (), _vision_ids)
        if tail is None:  # unmarked blocks would pass plain states off as erased ones
            raise TCCDError(f"TCCD request {request.request_id} has no vision token among {list(_vision_ids)}")
        key = tail, cache_key(found, tail)
    objects.note(request, key)
    return key


_vision_ids: tuple[int, ...] = ()


def set_vision_ids(ids: tuple[int, ...]) -> None:
    """Tell the scheduler's process which token ids are vision."""
    global _vision_ids
    _vision_ids = ids


#: The scheduler's joints.
AROUND: dict[str, Callable[..., Any]] = {"block hash": _extra_keys, "block hash, imported": _extra_keys}
