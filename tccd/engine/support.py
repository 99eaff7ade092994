"""What the twin engine is not exact for: refused before the first token, and by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from tccd.decoder import Decoder, cross_attention, first_tensor
from tccd.engine.arguments import cache_of, with_cache
from tccd.errors import TCCDError, UnsupportedModelError

#: Attention that twins run beside, as transformers' configs name it.
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


def check_model(decoder: Decoder) -> None:
    """Refuse a model that no reference can run beside.

    Raises:
        UnsupportedModelError: it is compiled.
    """
    model = decoder.model
    if type(model).__name__ == "OptimizedModule" or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in (model, *decoder.layers)
    ):
        raise UnsupportedModelError(
            "the model is compiled by torch.compile, which bakes one stream's shapes in; use it uncompiled"
        )


def check_twin(decoder: Decoder) -> None:
    """Refuse a model whose layers can't run columns of a twin behind the clean ones.

    Raises:
        UnsupportedModelError: an attention that was not checked, or layers that are not self-attention over keys
            of their own.
    """
    model: Any = decoder.model
    text = model.config.get_text_config()
    attention = getattr(text, "_attn_implementation", None)
    if attention not in ATTENTION:
        raise UnsupportedModelError(
            f"attention implementation {attention!r}; TCCD is exact with {', '.join(map(repr, ATTENTION))}: "
            "model.set_attn_implementation('sdpa')"
        )
    _check_layers(decoder)
    kinds = set(getattr(text, "layer_types", None) or ()) - _KINDS
    if kinds:
        raise UnsupportedModelError(
            f"{type(model).__name__}: decoder layers of kind {sorted(kinds)}; TCCD is exact with those of kind "
            f"{', '.join(sorted(_KINDS))}"
        )


#: Kinds of decoder layers, in the words of transformers' configs, whose masks say all that a query may see.
_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def _check_layers(decoder: Decoder) -> None:
    """Refuse layers that mix positions by anything but self-attention over keys of their own."""
    for what, found in (
        ("reach the image by cross-attention; TCCD needs the image's tokens among those of the prompt", _crosses),
        ("take their keys from another layer, which keeps none of an erased stream's", _shares_keys),
        ("convolve over the sequence, so an erased stream behind the clean one would mix with it", _convolves),
    ):
        for layers in _lists_of_layers(decoder):
            which = [index for index, layer in enumerate(layers) if found(layer)]
            if which:
                kind = type(layers[which[0]]).__name__
                raise UnsupportedModelError(
                    f"{type(decoder.model).__name__}: decoder layers {which} ({kind}) {what}"
                )


def _lists_of_layers(decoder: Decoder) -> list[nn.ModuleList]:
    """The decoder's layers, and what else stands in a list beside them (the cross-attention of Idefics)."""
    holder = next(m for m in decoder.model.modules() if getattr(m, "layers", None) is decoder.layers)
    beside = [m for m in holder.children() if isinstance(m, nn.ModuleList) and m is not decoder.layers]
    return [decoder.layers, *beside]


def _crosses(layer: nn.Module) -> bool:
    return cross_attention(layer) is not None


def _shares_keys(layer: nn.Module) -> bool:
    return any(getattr(module, "is_kv_shared_layer", False) for module in layer.modules())


def _convolves(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv1d) for module in layer.modules())


def check_call(model: nn.Module, given: dict[str, Any]) -> None:
    """Refuse a forward that can't be contrasted.

    Args:
        model: the whole model.
        given: its forward's arguments by name.

    Raises:
        UnsupportedModelError: training mode, gradients, labels, no token ids, or a cache of an unknown kind.
    """
    if model.training:
        raise UnsupportedModelError("the model is in training mode; call model.eval()")
    if torch.is_grad_enabled():
        raise UnsupportedModelError("gradients are on; wrap the call in torch.no_grad()")
    if given.get("labels") is not None:
        raise UnsupportedModelError("labels were given, but contrasted logits have no loss; leave them out")
    if given.get("input_ids") is None:
        raise UnsupportedModelError(
            "the model was called without input_ids; TCCD reads the image's place from token ids, so pass "
            "input_ids and not inputs_embeds"
        )
    check_cache(cache_of(given))


def check_cache(cache: Any) -> None:
    """Refuse a cache whose layers can't have erased ones beside them.

    Raises:
        UnsupportedModelError: not a transformers cache of layers, or an offloaded one.
    """
    if cache is not None and not isinstance(cache, Cache):
        raise UnsupportedModelError(f"past_key_values is a {type(cache).__name__}; pass a transformers Cache")
    if getattr(cache, "offloading", False):
        raise UnsupportedModelError(
            "an offloaded cache prefetches the model's own layers only; use a cache that is not offloaded"
        )


def check_uncompiled(cache: Any, device: str) -> None:
    """Refuse a call that transformers' `generate` may have compiled by itself, as it does for static caches.

    Args:
        cache: the model's cache, or None.
        device: type of the device that the call runs on.

    Raises:
        UnsupportedModelError: a static cache on an accelerator.
    """
    if device != "cpu" and getattr(cache, "is_compileable", False):
        raise UnsupportedModelError(
            "with a static cache transformers compiles the model, which bakes one stream's shapes in; "
            "generate with custom_generate=tccd, which keeps it uncompiled, or with another cache"
        )


@contextmanager
def naming_layer(decoder: Decoder, index: int, alone: Callable[[], Any] | None) -> Iterator[None]:
    """Say in tccd's own words that a decoder layer can't run an erased stream, whatever it failed with.

    Out of memory is told as it is. So is what the layer fails with on the clean stream alone: that is the model's
    own error, or the caller's.

    Args:
        decoder: the model's parts.
        index: the layer.
        alone: runs the layer on the clean stream alone; None where that can't be tried again.

    Raises:
        UnsupportedModelError: the block failed; names the model, the layer and the cause.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TCCDError) or _is_out_of_memory(error):
            raise
        if alone is not None:
            alone()
        cause = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        layer = type(decoder.layers[index]).__name__
        raise UnsupportedModelError(
            f"{type(decoder.model).__name__}: decoder layer {index} ({layer}) can't run with an erased stream "
            f"beside the clean one; it failed with {type(error).__name__}: {cause}"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch has no type for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def run_alone(decoder: Decoder, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one layer on a whole prompt once more, as if no session were on, with an empty cache of its own."""
    model: Any = decoder.model
    if cache_of(kwargs) is not None:
        kwargs = with_cache(kwargs, DynamicCache(config=model.config.get_text_config()))
    hidden = args[0] if args else kwargs["hidden_states"]
    # In an empty context, where nobody records outputs and no session is on.
    return Context().run(forward, *args, **within_prompt(kwargs, hidden.shape[1]))


def within_prompt(kwargs: dict[str, Any], n: int) -> dict[str, Any]:
    """A layer's arguments for a prompt of n columns alone: a static cache's mask covers columns that are empty."""
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return kwargs
    return kwargs | {"attention_mask": mask[..., :n]}


def check_prefix(
    name: str, forward: Callable[..., Any], hidden: Tensor, start: Tensor, kwargs: dict[str, Any]
) -> None:
    """Self-test of the fact that the shared prefix rests on: columns before the tail don't depend on it.

    Runs one layer twice on a prompt, the second time with every column from `start` on changed.

    Args:
        name: the model's class, for the message.
        forward: the layer's forward.
        hidden: its input, shape (batch, n, hidden).
        start: first column of each row's tail, shape (batch,).
        kwargs: the layer's other arguments, for a whole prompt.

    Raises:
        UnsupportedModelError: the prefix changed: the model attends from the prefix to the text after it.
    """
    n = hidden.shape[1]
    prefix = torch.arange(n, device=hidden.device)[None] < start.to(hidden.device)[:, None]
    changed = torch.where(prefix[..., None], hidden, hidden.flip(-1) + 1)
    kwargs = within_prompt(with_cache(kwargs, None) if cache_of(kwargs) is not None else kwargs, n)
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 4:
        itself = mask.diagonal(dim1=-2, dim2=-1)[:, 0]  # padding does not even see itself
        prefix = prefix & (itself if mask.dtype == torch.bool else itself == 0)
    # In an empty context, where nobody records outputs and no session is on.
    run = Context().run
    before = first_tensor(run(forward, hidden, **kwargs))[prefix]
    after = first_tensor(run(forward, changed, **kwargs))[prefix]
    if before.numel() and not torch.allclose(
        before, after, rtol=1e-3, atol=1e-4 * float(before.abs().amax()), equal_nan=True
    ):
        raise UnsupportedModelError(
            f"{name}: hidden states before the text tail change by {float((before - after).abs().amax()):.2g} "
            "with the tail, so its prefix attends to the text after it (prefix-LM attention), and a prefix "
            "shared by both streams would be wrong"
        )
