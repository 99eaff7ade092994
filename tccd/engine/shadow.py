"""A shadow: the model's own forward a second time a step, over a prompt of its own and with a cache of its own.

Where two streams share no column (other words before the same answer), there is nothing to pack behind the clean
columns. The second stream is then a sequence of its own, which is fed every token that the clean one is fed. What
the model needs besides, position ids first, is made as transformers' `generate` makes it for the same prompt.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from tccd.engine.arguments import cache_from
from tccd.engine.reference import Part, Rider
from tccd.errors import UnsupportedModelError

#: What a model is given one value a token of, all of shape (..., batch, tokens); `generate` makes them longer.
_PER_TOKEN = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")

#: One at a time has its own state on a model's modules.
_turns: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


class ShadowPart(Part):
    """A shadow in one forward.

    Args:
        rider: where the shadow is kept.
        ids: new tokens of the forward, shape (batch, n).
        begins: whether the prompt stands before them.
    """

    def __init__(self, rider: ShadowLayer, ids: Tensor, begins: bool = False) -> None:
        self._rider, self._ids, self._begins = rider, ids, begins
        self.queries = ids.shape[1] + begins
        self.answers = torch.ones(ids.shape[0], self.queries, dtype=torch.bool, device=ids.device)

    def logits(self, clean: Tensor, found: list[Tensor]) -> Tensor:
        """Run the shadow on what the clean stream has just run on."""
        shadow = self._rider.shadow
        logits = [shadow.prefill()] if self._begins else []
        if self._ids.shape[1]:
            logits.append(shadow.step(self._ids))
        return torch.cat(logits, 1)[:, -clean.shape[1] :]

    def riders(self, num_layers: int) -> list[ShadowLayer]:
        """One for the whole shadow."""
        return [self._rider]


class ShadowLayer(Rider, CacheLayerMixin):
    """A shadow at the end of the clean stream's cache: what happens to the cache happens to the shadow's.

    Args:
        owner, number: see `Rider`.
        width: columns of the clean prompt.
        shadow: whose cache it carries.
    """

    # What a cache says of itself it asks of all its layers: these answers leave it to the model's own.
    is_compileable = True
    supports_early_init = False

    def __init__(self, owner: object, number: int, width: int, shadow: Shadow) -> None:
        super().__init__()
        self.owner, self.number, self.width, self.shadow = owner, number, width, shadow

    def __deepcopy__(self, memo: dict[int, Any]) -> ShadowLayer:
        return ShadowLayer(self.owner, self.number, self.width, copy.deepcopy(self.shadow, memo))

    @property
    def is_croppable(self) -> bool:
        """Whether a crop leaves no trace."""
        return self.shadow.is_croppable

    def get_seq_length(self) -> int:
        """Columns of the clean stream."""
        return self.width + self.shadow.generated

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As a plain layer that holds every column."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """None."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to set up."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """No layer of the model writes here."""
        raise NotImplementedError

    def activate_past_recording(self) -> None:
        """Keep what a crop may need."""
        self.shadow.record_past()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last columns; a positive number, the legacy form, is the whole length to keep."""
        if tokens_to_remove > 0:
            tokens_to_remove = min(0, tokens_to_remove - self.get_seq_length())
        self.shadow.crop(-tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows."""
        self.shadow.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.shadow.select(torch.arange(self.shadow.rows, device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row several times."""
        self.shadow.select(torch.arange(self.shadow.rows).repeat_interleave(repeats))


class Shadow:
    """A second sequence beside a clean one: another prompt, then the same tokens.

    Args:
        model: the whole model, whose forward returns logits.
        inputs: what it takes for the prompts, one a row, by name: the processor's output, left padded.
        cache: the clean stream's, still empty; the shadow's is of the same kind. A dynamic one where this is None,
            or static: that is as long as the clean sequence.
        copies: how many sequences there are of each prompt, side by side.

    Attributes:
        generated: how many tokens it was fed after its prompt.

    Raises:
        UnsupportedModelError: the model takes something else one value a token of (Mllama's cross-attention mask).
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], cache: Cache | None = None, copies: int = 1) -> None:
        self._model = model
        _check_per_token(type(model).__name__, inputs)
        self._inputs: dict[str, Any] | None = dict(inputs)
        if self._inputs.get("attention_mask") is None:
            self._inputs["attention_mask"] = torch.ones_like(self._inputs["input_ids"])
        self._copies = copies
        growing = cache is not None and not cache.is_compileable
        self._cache: Cache = copy.deepcopy(cache) if growing else DynamicCache(config=model.config)
        self._state = ModuleState(model)
        self._tokens: dict[str, Tensor] = {}
        self.generated = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Shadow:
        twin = copy.copy(self)
        twin._cache, twin._state = copy.deepcopy(self._cache, memo), copy.copy(self._state)
        return twin

    @property
    def rows(self) -> int:
        """Sequences that it runs."""
        if self._inputs is not None:
            return int(self._inputs["input_ids"].shape[0]) * self._copies
        return int(self._tokens["attention_mask"].shape[0])

    @property
    def is_croppable(self) -> bool:
        """Whether a crop leaves no trace in its cache."""
        return bool(self._cache.is_croppable)

    def prefill(self) -> Tensor:
        """Run the prompts; returns the logits of their last column, shape (rows, 1, vocabulary)."""
        assert self._inputs is not None
        given, self._inputs = self._inputs, None
        takes = inspect.signature(self._model.forward).parameters
        with self._state.apart():
            if "position_ids" in takes and given.get("position_ids") is None:
                ids, known = given["input_ids"], {k: v for k, v in given.items() if k != "input_ids"}
                given["position_ids"] = self._model._prepare_position_ids_for_generation(ids, known)
            more = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
            output = self._forward(given, is_first_iteration=True, **more)
        kept: Any = cache_from(output)
        if kept is not self._cache:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} does not keep its keys and values in the cache that it is given, "
                "which a second forward a step needs; contrast with a reference that has the same prompt"
            )
        self._tokens = {name: given[name] for name in _PER_TOKEN if given.get(name) is not None}
        for layer in self._cache.layers:
            if getattr(layer, "record_past", False):
                layer.crop(0)  # older releases of transformers take a crop after each forward for granted
        logits = output.logits[:, -1:]
        if self._copies > 1:
            copies = torch.arange(len(logits), device=logits.device).repeat_interleave(self._copies)
            self.select(copies)
            logits = logits[copies]
        return logits

    def step(self, ids: Tensor) -> Tensor:
        """Run new tokens.

        Args:
            ids: token ids, shape (rows, n).

        Returns:
            Their logits, shape (rows, n, vocabulary).
        """
        self.generated += ids.shape[1]
        grown = dict(self._tokens)
        if "token_type_ids" in grown:  # a new token has the type of the last, and no other is looked at
            grown["token_type_ids"] = grown["token_type_ids"][..., -1:].expand(-1, self.generated)
        grown = self._model._update_model_kwargs_for_generation({}, grown, False, num_new_tokens=self.generated)
        with self._state.apart():
            return self._forward({"input_ids": ids, **grown}, next_sequence_length=ids.shape[1]).logits

    def _forward(self, given: dict[str, Any], **how: Any) -> Any:
        model = self._model
        prepared = model.prepare_inputs_for_generation(**given, past_key_values=self._cache, use_cache=True, **how)
        # In an empty context, where no session is on and nobody records outputs.
        return Context().run(model, **prepared | {"return_dict": True})

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` columns.

        Raises:
            UnsupportedModelError: some of them are the prompt's.
        """
        if tokens > self.generated:
            raise UnsupportedModelError(
                f"the cache was cropped by {tokens} columns, of which {self.generated} came after the prompt; the "
                "other prompt has other columns and can't follow"
            )
        self.generated -= tokens
        self._cache.crop(-tokens)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in their order, one or several times each: indices, shape (rows,)."""
        self._tokens = {name: x.index_select(-2, rows.to(x.device)) for name, x in self._tokens.items()}
        self._cache.reorder_cache(rows)  # which, unlike other ways to choose rows, every kind of layer has

    def record_past(self) -> None:
        """Keep what a crop may need."""
        self._cache.activate_past_recording()


def _check_per_token(name: str, inputs: Mapping[str, Any]) -> None:
    shape = inputs["input_ids"].shape
    for key, value in inputs.items():
        known = key in ("input_ids", *_PER_TOKEN, *MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL)
        if not known and isinstance(value, Tensor) and value.shape[:2] == shape:
            raise UnsupportedModelError(
                f"{name} takes {key!r} of shape {tuple(value.shape)}, one value a token, and what that is for new "
                "tokens after other words is not known"
            )


class ModuleState:
    """What one stream's forwards leave on the model's modules (Qwen's `rope_deltas`), apart from the others'.

    It is found by comparing all modules' attributes and buffers before and after a forward: tensors and numbers
    that were replaced. An attribute that was not there before is no stream's own: transformers sets some up at
    first use. What is changed in place isn't found.

    Args:
        model: the whole model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [place for module in model.modules() for place in (module.__dict__, module._buffers)]
        self._own: dict[tuple[int, str], Any] = {}
        with _turns_lock:
            self._turn = _turns.setdefault(model, threading.Lock())

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Meanwhile the modules have what this stream left last time; afterwards, what they had before."""
        with self._turn:
            yield from self._swapped()

    def _swapped(self) -> Iterator[None]:
        before = [dict(place) for place in self._places]
        self._put(self._own)
        try:
            yield
        finally:
            own, others = {}, {}
            for at, was in enumerate(before):
                now = self._places[at]
                for name, value in was.items():
                    if now.get(name) is not value and (_is_state(value) or _is_state(now.get(name))):
                        own[at, name], others[at, name] = now.get(name), value
            self._own = own
            self._put(others)

    def _put(self, values: dict[tuple[int, str], Any]) -> None:
        for (at, name), value in values.items():
            self._places[at][name] = value


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor | float | int) and not isinstance(value, bool)
