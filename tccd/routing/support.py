"""What routing is not exact for: refused by name, before the first token."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from tccd.decoder import Decoder
from tccd.engine.arguments import cache_of
from tccd.engine.attention import attention_name
from tccd.engine.support import check_model, check_twin
from tccd.errors import UnsupportedModelError


def check_decoder(decoder: Decoder) -> None:
    """Refuse a model whose layers can't run some columns without the others.

    Raises:
        UnsupportedModelError: compiled; neither sdpa nor eager attention; layers that are not self-attention over
            keys of their own.
    """
    check_model(decoder)
    try:
        check_twin(decoder)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{error}. Routed layers run some tokens without the others, as a reference's do, and take the same "
            "models"
        ) from error
    name = attention_name(decoder)
    if name not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"attention implementation {name!r} takes no mask of single columns, which routed layers need; use "
            "'sdpa' or 'eager', as in model.set_attn_implementation('sdpa')"
        )


def check_call(decoder: Decoder, given: dict[str, Any], past: int) -> None:
    """Refuse a forward that can't be routed.

    Args:
        decoder: the model's parts.
        given: the model's arguments by name.
        past: columns in the cache.

    Raises:
        UnsupportedModelError: says why.
    """
    model = decoder.model
    if model.training:
        raise UnsupportedModelError("the model is in training mode; call model.eval(): a branch alone is trained")
    if given.get("input_ids") is None:
        raise UnsupportedModelError(
            "the model was called without input_ids; routing reads the image's place from token ids, so pass "
            "input_ids and not inputs_embeds"
        )
    cache = cache_of(given)
    if cache is not None and not isinstance(cache, Cache):
        raise UnsupportedModelError(f"past_key_values is a {type(cache).__name__}; pass a transformers Cache")
    if getattr(cache, "offloading", False):
        raise UnsupportedModelError("an offloaded cache prefetches layers of its own kind; use one that is not")
    if past and _has_images(given):
        raise UnsupportedModelError(
            "an image came after the first forward (an image later in a conversation); pass the whole prompt in "
            "one forward"
        )
    if _asks(model, given, "output_attentions"):
        raise UnsupportedModelError(
            "attention weights were asked for, and those of routed layers have no columns for the image; leave "
            "output_attentions out"
        )


def _asks(model: nn.Module, given: dict[str, Any], name: str) -> bool:
    asked = given.get(name)
    return bool(getattr(model.config, name, False) if asked is None else asked)


def _has_images(given: dict[str, Any]) -> bool:
    encoded = given.get("mm_encoder_outputs") or {}
    pixels = (given.get(name) for name in ("pixel_values", "pixel_values_videos"))
    return any(value is not None for value in (*encoded.values(), *pixels))
