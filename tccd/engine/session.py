"""A session: references computed beside the clean stream, inside its own forward.

Three facts make a twin almost free and exact. Layers up to where it departs are the same in both streams. By
causality so is every column before the first one that differs, at every layer. So a twin is some columns at the
end of the row in the layers above, and here they ride behind the clean columns in the same call of each layer:
weights are read once, the prefix's keys and values are shared, and only the twin's own are kept a second time.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from tccd.decoder import Decoder, first_tensor, replace_first
from tccd.engine import masks
from tccd.engine.arguments import by_name, cache_from, cache_of, has_row_per_token, with_cache
from tccd.engine.attention import PackedAttention, attention_name, runs_apart
from tccd.engine.installation import running, session_of
from tccd.engine.packing import PackedCache, Step, is_suffix, on
from tccd.engine.reference import EMBEDDINGS, Part, Reference, detach
from tccd.engine.support import (
    check_cache,
    check_call,
    check_model,
    check_prefix,
    naming_layer,
    run_alone,
)
from tccd.errors import ConfigError, ModalityError, UnsupportedModelError
from tccd.modality import ModalityMap, modality_map, vision_token_ids

#: Models whose layers passed the self-test of prefix equality, without (True) or with (False) an attention mask.
_prefix_equal: weakref.WeakKeyDictionary[nn.Module, set[bool]] = weakref.WeakKeyDictionary()


class Session:
    """Erased streams of one model, for as long as `active` lasts.

    Subclasses say what becomes of the streams by overriding `combine_states` or `combine_logits`.

    Args:
        decoder: the model's parts.
        references: one stream each.

    Attributes:
        step: the forward that is running.
        is_open: whether the session may still be used.

    Raises:
        ConfigError: a reference's layer is out of range.
        UnsupportedModelError: the engine is not exact for this model.
    """

    #: Whether another session on the same model and thread may take its place.
    yields = False

    #: Columns of the prompt, where the caller knows: its first forward may hold drafted tokens behind them.
    prompt_length: int | None = None

    def __init__(self, decoder: Decoder, references: tuple[Reference, ...]) -> None:
        self.decoder = decoder
        self.references = tuple(one.bind(decoder) for one in references)
        self.step: Step | None = None
        self.is_open = True
        self._vision_ids = _vision_ids(decoder.model.config, any(one.needs_image for one in self.references))
        self._signature = inspect.signature(decoder.model.forward)
        self._prefix_checked = False
        self._follow_tokens: dict[str, bool] = {}
        self._apart: dict[int, bool] = {}
        self._attention = ""
        self._normed: Tensor | None = None
        self._kept: tuple[int, list[list[int]]] | None = None
        self._norm: Callable[..., Tensor] | None = None
        self._caches: list[weakref.ref[Cache]] = []
        check_model(decoder)

    # -- what becomes of the streams -------------------------------------------------------------------

    def combine_states(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor | None:
        """Post-norm states to give to the head, or None when the combination needs every reference's logits.

        Asked where each reference's logits are the head of one state a column.

        Args:
            step: the forward.
            clean: shape (batch, m, hidden), the columns that get logits.
            others: by reference, shape (batch, <= m, hidden), its last columns.
        """
        return None

    def combine_logits(self, step: Step, clean: Tensor, others: list[Tensor]) -> Tensor:
        """Logits for the caller, shape (batch, m, vocabulary).

        Args:
            step: the forward.
            clean: shape (batch, m, vocabulary).
            others: by reference, shape (batch, <= m, vocabulary), its last columns.
        """
        return clean

    @property
    def is_idle(self) -> bool:
        """Whether the forward that runs is none of the session's business."""
        return False

    # -- one forward -----------------------------------------------------------------------------------

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lay out the streams of the forward that is about to run.

        Raises:
            UnsupportedModelError: the call can't be contrasted; says why.
            ModalityError: the vision positions can't be told.
        """
        self.step = self._normed = self._kept = None
        self._attention = attention_name(self.decoder)
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        check_call(self.decoder.model, given)
        ids, cache = given["input_ids"], cache_of(given)
        has_images = _has_images(given)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0:
            if cache is not None:
                detach(cache)
            mask = given.get("attention_mask")
            mask = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None
            parts = self._begin(modality_map(ids, self._vision_ids, mask, has_images), given)
        elif has_images:
            raise UnsupportedModelError(
                "an image came after the first forward (an image later in a conversation), which moves the "
                "text tail; pass the whole prompt in one forward"
            )
        else:
            parts = [one.resume(self, number, cache, past, ids) for number, one in enumerate(self.references)]
        self.step = Step(past, ids.shape[1], parts, cache)

    def _begin(self, where: ModalityMap, given: dict[str, Any]) -> list[Part]:
        if not bool(where.has_vision.any()) and any(one.needs_image for one in self.references):
            raise ModalityError(
                "no row of this batch has a vision token, so there is no image for the text to compete with; "
                "decode text-only prompts without TCCD"
            )
        prepared = [one.prepare(self.decoder, given) for one in self.references]
        return [one.begin(self, number, where) for number, one in enumerate(prepared)]

    def end(self, output: Any) -> Any:
        """Keep the streams' keys and values, and combine the logits where the states were not."""
        step, self.step = self.step, None
        if step is None or self._normed is None:
            raise UnsupportedModelError(
                f"{type(self.decoder.model).__name__} did not run its final norm and head as expected, so "
                "its logits can't be combined"
            )
        cache = step.cache if step.cache is not None else cache_from(output)
        if step.prefill and isinstance(cache, Cache):
            self._ride(step, cache)
        if self._kept is None:
            return output
        logits = output[0] if isinstance(output, tuple) else output.logits
        m, widths = self._kept
        clean, *found = logits.split([m, *(width for some in widths for width in some)], dim=1)
        others = []
        for part, some in zip(step.parts, widths, strict=True):
            others.append(part.logits(clean, found[: len(some)]))
            del found[: len(some)]
        combined = self.combine_logits(step, clean, others)
        if isinstance(output, tuple):
            return replace_first(output, combined)
        output.logits = combined
        return output

    def _ride(self, step: Step, cache: Cache) -> None:
        for part in step.parts:
            cache.layers += part.riders(self.decoder.num_layers)
        self._caches.append(weakref.ref(cache))

    # -- layers, norm and head -------------------------------------------------------------------------

    def run_layer(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one decoder layer on the clean columns and on those of every stream begun below it.

        Raises:
            UnsupportedModelError: the layer can't run them, whatever it failed with.
        """
        step = self._running()
        packs = step.activate(index)
        output = None if packs else forward(*args, **kwargs)
        # Where a cache was filled before, the layer can't be run again.
        alone = partial(run_alone, self.decoder, forward, args, kwargs) if step.prefill else None
        with naming_layer(self.decoder, index, alone):
            if index == 0:
                self._depart(EMBEDDINGS, args[0] if args else kwargs["hidden_states"])
            if packs:
                output = self._run_packed(step, index, forward, args, kwargs)
            else:
                step.leave(first_tensor(output))
                if step.prefill and step.active:  # a twin without a column so far
                    clean, named = by_name(forward, args, kwargs)
                    self._apart[index] = runs_apart(self.decoder, index, self._attention, forward, clean, named)
            self._depart(index, first_tensor(output))
        return output

    def _depart(self, layer: int, clean: Tensor) -> None:
        found: dict[Any, Tensor] = {}
        for part in self._running().parts:
            part.after(layer, clean, found)

    def _run_packed(
        self, step: Step, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        clean, kwargs = by_name(forward, args, kwargs)
        if step.cache is None:
            step.cache = cache_of(kwargs)
            check_cache(step.cache)
        if step.prefill and not self._prefix_checked:
            self._check_prefix(step.active[0].stream.columns.start, forward, clean, kwargs)
            self._prefix_checked = True
        step.dtype = _attention_dtype(clean)
        if step.prefill:
            self._apart[index] = runs_apart(self.decoder, index, self._attention, forward, clean, kwargs)
        apart = self._apart[index]
        cache = PackedCache(step, index, apart)
        packed = step.arguments(index, kwargs, apart, partial(self._follows, index, forward, clean, kwargs))
        mask, name = packed["attention_mask"], self._attention
        with PackedAttention(step, cache, index, mask, apart, name) as attention:
            output = forward(step.pack(clean), **with_cache(packed, cache))
        if apart and not attention.seen:
            raise UnsupportedModelError(
                f"decoder layer {index} did not run its attention ({name}) with what it was given, so its erased "
                "stream is lost; load the model with attn_implementation='eager', or use a new TCCD after "
                "model.set_attn_implementation(...)"
            )
        if not step.stood_in(index):
            raise UnsupportedModelError(
                f"decoder layer {index} did not run its attention as expected, so a mean image can't stand in it"
            )
        if not cache.updated:
            raise UnsupportedModelError(
                f"decoder layer {index} did not pass its keys and values through the cache (shared keys, "
                "linear attention or a convolution), so its erased stream can't be run"
            )
        return replace_first(output, step.unpack(first_tensor(output)))

    def _follows(
        self,
        index: int,
        forward: Callable[..., Any],
        clean: Tensor,
        kwargs: dict[str, Any],
        name: str,
        prefill: bool,
    ) -> bool:
        """Whether an argument that the engine has never heard of has one row a token; asked at a prompt, once."""
        value = kwargs[name]
        suspect = value.ndim > 1 and value.shape[1] == clean.shape[1] > 1
        if name not in self._follow_tokens and prefill and suspect:

            def run(other: Tensor) -> Tensor:
                return first_tensor(run_alone(self.decoder, forward, (clean,), kwargs | {name: other}))

            self._follow_tokens[name] = has_row_per_token(index, name, value, run)
        return self._follow_tokens.get(name, False)

    def _check_prefix(
        self, start: Tensor, forward: Callable[..., Any], clean: Tensor, kwargs: dict[str, Any]
    ) -> None:
        # The self-test costs two runs of a layer on the whole prompt. It asks about the architecture, so a model
        # passes once; a mask that would show the prefix its tail has it asked again.
        model, mask = self.decoder.model, kwargs.get("attention_mask")
        passed = _prefix_equal.setdefault(model, set())
        if (mask is None) in passed and not masks.sees_ahead(mask, start):
            return
        check_prefix(type(model).__name__, forward, clean, start, kwargs)
        passed.add(mask is None)

    def run_norm(self, forward: Callable[..., Any], hidden: Tensor) -> Tensor:
        """Norm every stream in one call; the clean part goes on to the model."""
        step = self._running()
        step.activate(None)
        self._norm, self._normed = forward, step.unpack(forward(step.pack(hidden)))
        return self._normed

    def run_head(self, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """Give the head either combined states, or every reference's."""
        step = self._running()
        if self._normed is None or self._norm is None or not is_suffix(states, self._normed):
            raise UnsupportedModelError(
                "the head ran on states that are not the last columns of the sequence (logits_to_keep as "
                "a tensor of indices?); give logits_to_keep as a number"
            )
        m = states.shape[1]
        found = [[on(one, states) for one in part.states(m, self._norm)] for part in step.parts]
        if not any(one.needs_logits for one in self.references):
            combined = self.combine_states(step, states, [one for (one,) in found])
            if combined is not None:
                return forward(combined)
        self._kept = m, [[one.shape[1] for one in some] for some in found]
        return forward(torch.cat([states, *(one for some in found for one in some)], 1))

    def run_attention(
        self, index: int | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Give stand-ins their states; show whoever records attention the clean stream's weights, in plain
        shapes."""
        if index is not None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            self._running().stand_in(index, hidden)
        output = forward(*args, **kwargs)
        cache = cache_of(kwargs)
        if not isinstance(cache, PackedCache) or not isinstance(output, tuple):
            return output
        return (
            output[0],
            *(cache.plain_weights(x) if isinstance(x, Tensor) and x.ndim == 4 else x for x in output[1:]),
        )

    def _running(self) -> Step:
        if self.step is None:
            raise UnsupportedModelError(
                "a decoder layer ran outside a call of the whole model; call model(...), and neither "
                "model.forward(...) nor a part of it"
            )
        return self.step

    # -- life ------------------------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        """Decode under this session in the calling thread; afterwards nothing is left on the model.

        Raises:
            ConfigError: the thread decodes this model under another session already.
        """
        outer = session_of(self.decoder.model)
        if outer is not None and not outer.yields:
            raise ConfigError("another TCCD is active on this model in this thread; close it first")
        if outer is not None:
            outer.close()
        with running(self):
            yield

    def close(self) -> None:
        """Take the streams' keys and values out of every cache they ride on."""
        self.is_open = False
        self.step = self._normed = self._norm = None
        for reference in self._caches:
            cache = reference()
            if cache is not None:
                detach(cache)
        self._caches.clear()


def _attention_dtype(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _vision_ids(config: Any, needed: bool) -> tuple[int, ...]:
    try:
        return vision_token_ids(config)
    except ModalityError:
        if needed:
            raise
        return ()  # a language model


def _has_images(given: dict[str, Any]) -> bool:
    # transformers' generate runs the vision tower itself and passes its outputs on, none for text alone.
    encoded = given.get("mm_encoder_outputs") or {}
    pixels = (given.get(name) for name in ("pixel_values", "pixel_values_videos"))
    return any(value is not None for value in (*encoded.values(), *pixels))
