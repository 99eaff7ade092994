"""The twin engine: erased streams computed inside the clean stream's own forward.

Three facts make it almost free and exact. Layers up to and including `L` are the same in both streams. By
causality so is every column before the first replaced one, at every layer. So the erased stream is the tail
columns above `L`, and here they ride behind the clean columns in the same call of each layer: weights are
read once, the prefix's keys and values are shared, and only the tail's are kept a second time.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from tccd.decoder import Decoder, first_tensor, replace_first
from tccd.decoding import masks, streams
from tccd.decoding.streams import Erasure, ErasedLayer, Part
from tccd.errors import ConfigError, UnsupportedModelError
from tccd.modality import modality_map, vision_token_ids

_PIXELS = ("pixel_values", "pixel_values_videos")

#: The session that this thread (or asyncio task) decodes under.
_current: ContextVar[Session | None] = ContextVar("tccd_session", default=None)


class Step:
    """One forward of the model under a session."""

    def __init__(self, past: int, n: int, prefill: bool, parts: list[Part], cache: Cache | None) -> None:
        self.past = past
        self.n = n
        self.prefill = prefill
        self.parts = parts
        self.cache = cache
        self.normed: Tensor | None = None
        self.erased_normed: list[Tensor] = []
        self.packed: Tensor | None = None
        self.clean_view: Tensor | None = None
        self.active: list[Part] = []
        self.kept = 0  # clean logit columns of this forward
        self.memo: dict[tuple, tuple[Any, Any]] = {}

    def active_at(self, layer: int) -> list[Part]:
        """The streams that have begun below this layer."""
        return [p for p in self.parts if p.stream.erasure.layer < layer and p.hidden is not None]


class Session:
    """Erased streams of one model, for as long as `active` lasts.

    Args:
        decoder: the model's parts.
        erasures: one stream each.

    Subclasses say what becomes of the streams by overriding `combine_states` or `combine_logits`.
    """

    def __init__(self, decoder: Decoder, erasures: tuple[Erasure, ...]) -> None:
        self.decoder = decoder
        self.erasures = erasures
        self.vision_ids = vision_token_ids(decoder.model.config)
        self.step: Step | None = None
        self.closed = False
        self._checked = False
        self._caches: list[weakref.ref[Cache]] = []
        self._signature = inspect.signature(decoder.model.forward)
        for erasure in erasures:
            decoder.check_layer(erasure.layer, last_allowed=False)
        check_model(decoder)

    # -- what becomes of the streams -------------------------------------------------------------------

    def combine_states(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor | None:
        """Post-norm states to give to the head, or None when the combination needs logits.

        Args:
            step: the forward.
            clean: shape (batch, m, hidden), the columns that get logits.
            erased: per stream, shape (batch, <= m, hidden), its last columns.
        """
        return None

    def combine_logits(self, step: Step, clean: Tensor, erased: list[Tensor]) -> Tensor:
        """Logits for the caller, shape (batch, m, vocabulary), from those of all streams."""
        return clean

    # -- one forward -----------------------------------------------------------------------------------

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Lay out the streams of the forward that is about to run."""
        self.step = None
        refuse_gradients(self.decoder.model)
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        if given.get("labels") is not None:
            raise UnsupportedModelError("labels were given, but contrasted logits have no loss; leave them out")
        ids = given.get("input_ids")
        if ids is None:
            raise UnsupportedModelError(
                "the model was called without input_ids; TCCD reads the image's place from token ids, so pass "
                "input_ids instead of inputs_embeds"
            )
        cache = given.get("past_key_values")
        refuse_cache(cache)
        past = 0 if cache is None else int(cache.get_seq_length())
        has_images = any(given.get(name) is not None for name in _PIXELS)
        if past == 0:
            if cache is not None:
                streams.detach(cache)
            mask = given.get("attention_mask")
            mask = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None
            parts = streams.begin(self.erasures, modality_map(ids, self.vision_ids, mask, has_images))
        else:
            if has_images:
                raise UnsupportedModelError(
                    "an image came after the first forward (an image later in a conversation), which moves the "
                    "text tail; pass the whole prompt in one forward"
                )
            assert cache is not None
            parts = streams.resume(self, self.erasures, cache, past, ids)
        self.step = Step(past, ids.shape[1], past == 0, parts, cache)

    def end(self, output: Any) -> Any:
        """Split the forward's logits by stream, combine them, and keep the streams' keys and values."""
        step, self.step = self.step, None
        assert step is not None
        cache = step.cache if step.cache is not None else getattr(output, "past_key_values", None)
        if isinstance(cache, Cache):
            self._keep(step, cache)
        if step.normed is None:
            raise UnsupportedModelError(
                f"{type(self.decoder.model).__name__} did not run its final norm and head as expected, so its "
                "logits can't be combined"
            )
        if not step.erased_normed:
            return output
        logits = first_tensor(output) if isinstance(output, tuple) else output.logits
        clean, erased = logits[:, : step.kept], []
        at = step.kept
        for part in step.parts:
            width = min(part.queries, step.kept)
            erased.append(logits[:, at : at + width])
            at += width
        combined = self.combine_logits(step, clean, erased)
        if isinstance(output, tuple):
            return replace_first(output, combined)
        output.logits = combined
        return output

    def _keep(self, step: Step, cache: Cache) -> None:
        if not step.prefill:
            return
        for index, part in enumerate(step.parts):
            for layer in range(part.stream.erasure.layer + 1, self.decoder.num_layers):
                kept = part.layers.get(layer) or ErasedLayer(self, index, layer, part.stream)
                cache.layers.append(kept)
        self._caches.append(weakref.ref(cache))

    # -- one layer -------------------------------------------------------------------------------------

    def run_layer(self, index: int, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run one decoder layer on the clean columns and on those of every stream begun below it."""
        step = self.step
        if step is None:
            raise UnsupportedModelError(
                "a decoder layer ran outside a call of the whole model; call model(...), not model.forward(...) "
                "or a part of it"
            )
        step.active = step.active_at(index)
        if any(part.queries for part in step.active):
            output = self._run_packed(step, index, forward, args, kwargs)
        else:
            output = forward(*args, **kwargs)
        for part in step.parts:
            if part.stream.erasure.layer == index:
                part.erase(first_tensor(output))
        return output

    def _run_packed(self, step: Step, index: int, forward: Callable, args: tuple, kwargs: dict) -> Any:
        clean, args, kwargs = _hidden_argument(args, kwargs)
        if step.cache is None and isinstance(kwargs.get("past_key_values"), Cache):
            step.cache = kwargs["past_key_values"]
            refuse_cache(step.cache)
        if not self._checked and step.prefill:
            self._check_prefix(step, forward, clean, args, kwargs)
        proxy = _PackedCache(self, step, index)
        packed_kwargs = self._pack_arguments(step, index, kwargs) | {"past_key_values": proxy}
        output = forward(self._pack_hidden(step, clean), *args, **packed_kwargs)
        if not proxy.updated:
            raise UnsupportedModelError(
                f"decoder layer {index} did not pass its keys and values through the cache (shared keys, linear "
                "attention or a convolution); TCCD can't run its erased stream"
            )
        packed = first_tensor(output)
        at = step.n
        for part in step.active:
            part.hidden = packed[:, at : at + part.queries]
            at += part.queries
        step.packed, step.clean_view = packed, packed[:, : step.n]
        return replace_first(output, step.clean_view)

    def _pack_hidden(self, step: Step, clean: Tensor) -> Tensor:
        width = step.n + sum(part.queries for part in step.active)
        if clean is step.clean_view and step.packed is not None and step.packed.shape[1] == width:
            return step.packed
        return torch.cat([clean, *(_on(part.hidden, clean) for part in step.active)], 1)

    def _pack_arguments(self, step: Step, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        packed = {}
        for name, value in kwargs.items():
            if name == "attention_mask":
                sizes = self._kv_sizes(step, index)
                make = partial(self._pack_mask, step, *sizes)
                packed[name] = self._memo(step, name, value, make, sizes)
            elif name.startswith("position_embeddings"):
                packed[name] = self._memo(step, name, value, partial(_pack_columns, step, -2))
            elif name in ("position_ids", "cache_position"):
                packed[name] = self._memo(step, name, value, partial(_pack_columns, step, -1))
            elif isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == step.n > 1:
                raise UnsupportedModelError(
                    f"decoder layer {index} takes {name!r} of shape {tuple(value.shape)}, one row a token, which "
                    "TCCD does not know how to repeat for its erased stream"
                )
            else:
                packed[name] = value
        return packed

    def _memo(
        self, step: Step, name: str, value: Any, make: Callable[[Any], Any], index_key: Any = None
    ) -> Any:
        # Layers of one kind share their arguments, so one packing a forward and kind is enough. The value is
        # kept beside its packing, so that its id is not used again.
        key = (name, id(value), index_key, tuple(id(part) for part in step.active))
        if key not in step.memo:
            step.memo[key] = (value, make(value))
        return step.memo[key][1]

    def _pack_mask(self, step: Step, kv_length: int, kv_offset: int, mask: Any) -> Tensor:
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            raise UnsupportedModelError(
                f"attention mask of kind {type(mask).__name__}; load the model with attn_implementation='sdpa' or "
                "'eager'"
            )
        device = step.parts[0].own.device if mask is None else mask.device
        if mask is None:
            clean = masks.causal(step.n, step.past, kv_length, kv_offset, device)
        else:
            clean = mask if mask.dtype == torch.bool else mask == 0
        columns = [(part.stream.columns, part.queries) for part in step.active]
        packed = masks.packed(clean, columns, step.past, kv_offset)
        if mask is not None and mask.dtype != torch.bool:
            return torch.zeros_like(packed, dtype=mask.dtype).masked_fill(~packed, torch.finfo(mask.dtype).min)
        return packed

    def _kv_sizes(self, step: Step, index: int) -> tuple[int, int]:
        if step.cache is None or index >= len(step.cache.layers):
            return step.past + step.n, 0
        layer = step.cache.layers[index]
        if isinstance(layer, ErasedLayer):
            return step.past + step.n, 0
        length, offset = layer.get_mask_sizes(step.n)
        return int(length), int(offset)

    def _check_prefix(self, step: Step, forward: Callable, clean: Tensor, args: tuple, kwargs: dict) -> None:
        """Refuse a model whose prefix sees the text after it: claim two fails, exactness with it."""
        part = step.active[0]
        if not part.queries:
            return
        position = torch.arange(step.n, device=clean.device)
        prefix = position[None] < part.stream.columns.start[:, None].to(clean.device)
        changed = torch.where(prefix[..., None], clean, clean.flip(-1) + 1)
        alone = dict(kwargs)
        if "past_key_values" in alone:
            alone["past_key_values"] = None
        mask = alone.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4:
            alone["attention_mask"] = mask = mask[..., : step.n]
            itself = mask.diagonal(dim1=-2, dim2=-1)[:, 0]  # padding does not even see itself
            prefix = prefix & (itself if mask.dtype == torch.bool else itself == 0)
        before = first_tensor(forward(clean, *args, **alone))[prefix]
        after = first_tensor(forward(changed, *args, **alone))[prefix]
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().amax()), equal_nan=True):
            worst = float((before - after).abs().amax())
            raise UnsupportedModelError(
                f"{type(self.decoder.model).__name__}: hidden states before the text tail change by {worst:.2g} "
                "with the tail, so its prefix attends to the text after it (prefix-LM attention); TCCD's shared "
                "prefix would be wrong"
            )
        self._checked = True

    # -- norm and head ---------------------------------------------------------------------------------

    def run_norm(self, forward: Callable, hidden: Tensor) -> Tensor:
        """Norm every stream in one call; the clean part goes on to the model."""
        step = self.step
        assert step is not None
        step.active = step.parts
        normed = forward(self._pack_hidden(step, hidden))
        step.normed = normed[:, : step.n]
        at = step.n
        for part in step.parts:
            part.hidden = normed[:, at : at + part.queries]
            at += part.queries
        return step.normed

    def run_head(self, forward: Callable, states: Tensor) -> Tensor:
        """Give the head either combined states, or every stream's."""
        step = self.step
        assert step is not None
        if step.normed is None or not _is_suffix(states, step.normed):
            raise UnsupportedModelError(
                "the head ran on states that are not the last columns of the sequence (logits_to_keep as a tensor "
                "of indices?); give logits_to_keep as a number"
            )
        m = states.shape[1]
        erased = [p.hidden[:, p.queries - min(m, p.queries) :] for p in step.parts if p.hidden is not None]
        combined = self.combine_states(step, states, [_on(e, states) for e in erased])
        if combined is not None:
            return forward(combined)
        step.kept = m
        step.erased_normed = erased
        return forward(torch.cat([states, *(_on(e, states) for e in erased)], 1))

    # -- life ------------------------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        """Decode under this session in the calling thread; afterwards nothing is left on the model."""
        outer = _current.get()
        if outer is not None and not outer.closed and outer.decoder.model is self.decoder.model:
            raise UnsupportedModelError("another TCCD is active on this model in this thread; close it first")
        install(self.decoder)
        token = _current.set(self)
        try:
            yield
        finally:
            self.close()
            # A processor may be dropped in another context than it was made in; a closed session is off anyway.
            with suppress(ValueError):
                _current.reset(token)
            uninstall(self.decoder)

    def close(self) -> None:
        """Take the streams' keys and values out of every cache they ride on."""
        self.closed = True
        self.step = None
        for reference in self._caches:
            cache = reference()
            if cache is not None:
                streams.detach(cache)
        self._caches.clear()


class _PackedCache:
    """Stands in for the model's cache in one packed layer call: clean columns go to it, erased ones beside."""

    def __init__(self, session: Session, step: Step, index: int) -> None:
        self._session, self._step, self._index = session, step, index
        self.updated = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step.cache, name)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple:
        """Keep [clean | erased ...] columns where each belongs, and return all that the queries may see."""
        step, n = self._step, self._step.n
        if layer_idx != self._index:
            raise UnsupportedModelError(f"decoder layer {self._index} writes the cache of layer {layer_idx}")
        self.updated = True
        all_keys, all_values = keys[:, :, :n], values[:, :, :n]
        if step.cache is not None:
            all_keys, all_values = step.cache.update(all_keys, all_values, layer_idx, *args, **kwargs)
        seen = [(all_keys, all_values)]
        at = n
        for part in step.active:
            own = keys[:, :, at : at + part.queries], values[:, :, at : at + part.queries]
            at += part.queries
            if step.cache is not None:
                if layer_idx not in part.layers:
                    index = step.parts.index(part)
                    part.layers[layer_idx] = ErasedLayer(self._session, index, layer_idx, part.stream)
                own = part.layers[layer_idx].update(*own)
            seen.append(own)
        return torch.cat([k for k, _ in seen], 2), torch.cat([v for _, v in seen], 2)


# -- the model's side ----------------------------------------------------------------------------------


class _Installation:
    """What is changed on a model while any session is active on it, and how to undo it."""

    def __init__(self, decoder: Decoder) -> None:
        self.count = 0
        self._undo: list[Callable[[], None]] = []
        model = decoder.model
        for index, layer in enumerate(decoder.layers):
            self._wrap(layer, lambda s, f, a, k, i=index: s.run_layer(i, f, a, k))
            for module in layer.modules():
                if "attention" in type(module).__name__.lower():
                    self._wrap(module, _plain_weights)
        self._wrap(decoder.norm, lambda s, f, a, k: s.run_norm(f, *a, **k))
        self._wrap(decoder.head, lambda s, f, a, k: s.run_head(f, *a, **k))
        before = model.register_forward_pre_hook(_before_forward, with_kwargs=True)
        after = model.register_forward_hook(_after_forward)
        self._undo += [before.remove, after.remove]

    def _wrap(self, module: nn.Module, run: Callable) -> None:
        own = module.__dict__.get("forward")  # accelerate and others put one here
        original = module.forward
        owner = self

        def forward(*args: Any, **kwargs: Any) -> Any:
            session = owner.session()
            if session is None:
                return original(*args, **kwargs)
            return run(session, original, args, kwargs)

        def undo() -> None:
            if own is None:
                del module.forward
            else:
                module.forward = own

        module.forward = forward  # type: ignore[method-assign]
        self._undo.append(undo)

    def session(self) -> Session | None:
        session = _current.get()
        if session is None or session.closed or _installed.get(session.decoder.model) is not self:
            return None
        return session

    def remove(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


_installed: weakref.WeakKeyDictionary[nn.Module, _Installation] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def install(decoder: Decoder) -> None:
    """Make the model able to run sessions; counted, so that several threads can share it."""
    with _lock:
        if decoder.model not in _installed:
            _installed[decoder.model] = _Installation(decoder)
        _installed[decoder.model].count += 1


def uninstall(decoder: Decoder) -> None:
    """Undo one `install`; the last one leaves the model as it was."""
    with _lock:
        installation = _installed[decoder.model]
        installation.count -= 1
        if installation.count == 0:
            installation.remove()
            del _installed[decoder.model]


def _before_forward(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    session = _current.get()
    if session is not None and not session.closed and session.decoder.model is model:
        session.begin(args, kwargs)


def _after_forward(model: nn.Module, args: tuple, output: Any) -> Any:
    session = _current.get()
    if session is not None and not session.closed and session.decoder.model is model:
        return session.end(output)
    return None


def _plain_weights(session: Session, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Show whoever records attention the clean stream's weights only, in plain shapes."""
    output = forward(*args, **kwargs)
    step, cache = session.step, kwargs.get("past_key_values")
    if step is None or not isinstance(cache, _PackedCache) or not isinstance(output, tuple):
        return output
    extra = sum(part.queries for part in step.active)
    kept = sum(
        part.layers[cache._index].get_seq_length() if cache._index in part.layers else part.queries
        for part in step.active
    )
    return tuple(
        item[:, :, : item.shape[2] - extra, : item.shape[3] - kept]
        if i and isinstance(item, Tensor) and item.ndim == 4
        else item
        for i, item in enumerate(output)
    )


# -- refusals ------------------------------------------------------------------------------------------


def check_model(decoder: Decoder) -> None:
    """Refuse a model that the twin engine is not exact for.

    Raises:
        UnsupportedModelError: compiled, not sdpa or eager, or with layers that are not attention.
    """
    model: Any = decoder.model
    if type(model).__name__ == "OptimizedModule" or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in (model, *decoder.layers)
    ):
        raise UnsupportedModelError(
            "the model is compiled by torch.compile, which would bake one stream's shapes in; use it uncompiled"
        )
    text = model.config.get_text_config()
    attention = getattr(text, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"attention implementation {attention!r}; TCCD is exact with 'sdpa' and 'eager': "
            "model.set_attn_implementation('sdpa')"
        )
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UnsupportedModelError(
            f"decoder layers of kind {sorted(kinds)}; TCCD knows full_attention and sliding_attention"
        )


def refuse_gradients(model: nn.Module) -> None:
    """Refuse training mode and gradients: contrasted logits are for decoding.

    Raises:
        UnsupportedModelError: says which of the two it is.
    """
    if model.training:
        raise UnsupportedModelError("the model is in training mode; call model.eval()")
    if torch.is_grad_enabled():
        raise UnsupportedModelError("gradients are on; wrap the call in torch.no_grad()")


def refuse_cache(cache: Any) -> None:
    """Refuse a cache whose layers can't have erased ones beside them.

    Raises:
        UnsupportedModelError: not a transformers cache of layers, or an offloaded one.
    """
    if cache is not None and not isinstance(cache, Cache):
        raise UnsupportedModelError(f"past_key_values is a {type(cache).__name__}; pass a transformers Cache")
    if getattr(cache, "offloading", False):
        raise UnsupportedModelError("an offloaded cache prefetches the model's own layers only; use another")


# -- small things --------------------------------------------------------------------------------------


def _hidden_argument(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, tuple, dict[str, Any]]:
    if args:
        if len(args) > 1:
            raise ConfigError("decoder layers with several positional arguments are not known to TCCD")
        return args[0], (), kwargs
    kwargs = dict(kwargs)
    return kwargs.pop("hidden_states"), (), kwargs


def _pack_columns(step: Step, dim: int, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return type(value)(_pack_columns(step, dim, item) for item in value)
    if value.shape[dim] != step.n:
        raise UnsupportedModelError(f"a per-token argument has shape {tuple(value.shape)} for {step.n} tokens")
    tails = [value.narrow(dim, step.n - part.queries, part.queries) for part in step.active]
    return torch.cat([value, *tails], dim)


def _on(value: Tensor | None, like: Tensor) -> Tensor:
    assert value is not None
    return value if value.device == like.device else value.to(like.device)


def _is_suffix(states: Tensor, normed: Tensor) -> bool:
    """Whether `states` is a slice of the last columns of `normed`, without comparing values."""
    if states.shape[0] != normed.shape[0] or states.shape[1] > normed.shape[1]:
        return False
    suffix = normed[:, normed.shape[1] - states.shape[1] :]
    return states.data_ptr() == suffix.data_ptr() and states.stride() == suffix.stride()
