"""One forward of a routed model, and what of it a later one needs.

Below `split` every row runs. There the image's rows leave: the side branch runs them once, and the layers from
`split` on run the others alone, at their own positions. The last `fuse` layers run whole again, over the branch's
output in the image's places. By causality nothing that is generated reaches the branch, so a decode step never
runs it; it runs each layer on the new columns, and a routed layer's cache holds no image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tccd.decoder import Decoder, first_tensor, replace_first
from tccd.engine.arguments import by_name, cache_from, cache_of, has_row_per_token
from tccd.engine.installation import running, session_of
from tccd.engine.support import run_alone
from tccd.errors import ConfigError, UnsupportedModelError
from tccd.modality import modality_map, vision_token_ids
from tccd.routing import columns as at
from tccd.routing.branch import Branch
from tccd.routing.cache import Memory, TextColumns, memory, route_layers, routed_layers
from tccd.routing.columns import Columns
from tccd.routing.support import check_call


@dataclass(frozen=True)
class Route:
    """Which layers the image's rows run.

    Attributes:
        split: the first that they do not.
        stop: the first that they run again; the number of layers where they are withdrawn for good.
        branch: what stands in for the layers between; None for nothing: they wait as layer `split - 1` left them.
    """

    split: int
    stop: int
    branch: Branch | None


@dataclass
class _Step:
    """One forward.

    Attributes:
        past: columns before it.
        text: columns of it that run the routed layers.
        vision: columns that do not; None in a forward that has none.
        cache: the model's, once it is known.
        rows: states of the text's columns, shape (batch, places, hidden), while they run alone.
        whole: states of all columns as the last routed layer's output showed them.
        branched: the branch's output, shape (batch, places, hidden).
        memo: masks and positions of some columns, by the argument they are made of.
    """

    past: int
    text: Columns
    vision: Columns | None
    cache: Cache | None
    rows: Tensor | None = None
    whole: Tensor | None = None
    branched: Tensor | None = None

    def __post_init__(self) -> None:
        self.memo: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def once(self, key: tuple[Any, ...], value: Any, make: Callable[[], Any]) -> Any:
        """What is made of an argument: layers of one kind share theirs. It is kept, so its id stays its own."""
        key = (*key, id(value))
        if key not in self.memo:
            self.memo[key] = value, make()
        return self.memo[key][1]


class RoutedSession:
    """A routed model in one thread, for as long as `active` lasts.

    Args:
        decoder: the model's parts.
        route: which layers the image's rows run.
        owner: what a cache remembers, so that it is filled along one route only.

    Attributes:
        memory: of the cache after the last forward; None where there was no cache.
    """

    yields = False
    is_idle = False

    def __init__(self, decoder: Decoder, route: Route, owner: object) -> None:
        self.decoder, self.route, self.owner = decoder, route, owner
        self.is_open = True
        self.memory: Memory | None = None
        self._vision_ids = vision_token_ids(decoder.model.config)
        self._signature = inspect.signature(decoder.model.forward)
        self._follow_tokens: dict[str, bool] = {}
        self._step: _Step | None = None

    # -- one forward -----------------------------------------------------------------------------------

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the image's columns from the others.

        Raises:
            UnsupportedModelError: the call can't be routed; says why.
            ModalityError: the image's place can't be told.
        """
        self._step = None
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        cache = cache_of(given)
        past = 0 if cache is None else int(cache.get_seq_length())
        check_call(self.decoder, given, past)
        ids, mask = given["input_ids"], given.get("attention_mask")
        if past:
            self._check_cache(cache, past, len(ids))
            text = at.columns_from(past, ids.shape[1], len(ids), ids.device)
            self._step = _Step(past, text, None, cache)
            return
        mask = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        where = modality_map(ids, self._vision_ids, mask)
        vision = at.columns_where(where.vision) if bool(where.vision.any()) else None
        self._step = _Step(0, at.columns_where(at.staying(where)), vision, cache)

    def _check_cache(self, cache: Cache, past: int, batch: int) -> None:
        mine = [layer for layer in routed_layers(cache) if layer.route is self.owner]
        if len(mine) < self.route.stop - self.route.split:
            raise UnsupportedModelError(
                f"past_key_values holds {past} columns that were not computed by this Routed, so its routed "
                "layers hold the image too; pass the whole prompt without past_key_values"
            )
        rows = {layer.keys.shape[0] for layer in mine}
        if rows - {batch}:
            raise UnsupportedModelError(
                f"past_key_values was filled for {rows.pop()} rows, this forward has {batch}"
            )

    def end(self, output: Any) -> Any:
        """Measure the cache; the output stays as it is."""
        step, self._step = self._running(), None
        cache = step.cache if step.cache is not None else cache_from(output)
        self.memory = memory(cache) if isinstance(cache, Cache) else None
        return output

    # -- layers, norm and head -------------------------------------------------------------------------

    def run_layer(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one decoder layer on the rows that are its own.

        Raises:
            UnsupportedModelError: the layer can't run some rows alone, or the model changed the image's rows while
                they were away.
        """
        step, route = self._running(), self.route
        hidden, named = by_name(forward, args, kwargs)
        if step.cache is None:
            step.cache = cache_of(named)
        if index == route.split and step.vision is not None and route.branch is not None:
            step.branched = self._run_branch(step, route.branch, forward, hidden, named)
        if route.split <= index < route.stop:
            return self._run_routed(step, index, forward, hidden, named)
        return forward(self._join(step, index, hidden), **named)

    def _run_routed(
        self, step: _Step, index: int, forward: Callable[..., Any], hidden: Tensor, kwargs: dict[str, Any]
    ) -> Any:
        if index == self.route.split:
            if step.cache is not None and not step.past:
                route_layers(step.cache, index, self.route.stop, self.owner)
            rows = hidden if step.past else at.take(hidden, step.text)
        else:
            self._check_unchanged(step, index, hidden)
            assert step.rows is not None
            rows = step.rows if step.rows.device == hidden.device else step.rows.to(hidden.device)
        held, offset = step.text, 0
        kept = None if step.cache is None else step.cache.layers[index]
        if isinstance(kept, TextColumns):
            _, offset = kept.get_mask_sizes(step.text.places)
            held = step.once(("held",), kept.columns, partial(kept.held_with, step.text))
            kept.coming = held, kept.total + hidden.shape[1]
        own = self._arguments(step, index, kwargs, step.text, held, offset, forward, hidden)
        output = forward(rows, **own)
        if isinstance(kept, TextColumns) and kept.coming is not None:
            raise UnsupportedModelError(
                f"decoder layer {index} did not pass its keys and values through the cache, so what it keeps of "
                "the text can't be told from the image"
            )
        step.rows = first_tensor(output)
        step.whole = step.rows if step.past else at.put(hidden, step.text, step.rows)
        return replace_first(output, step.whole)

    def _run_branch(
        self, step: _Step, branch: Branch, forward: Callable[..., Any], hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        assert step.vision is not None
        everything = branch.settings.mask == "full"
        own = self._arguments(
            step, self.route.split, kwargs, step.vision, step.vision, 0, forward, hidden, everything
        )
        return branch(at.take(hidden, step.vision), own)

    def _join(self, step: _Step, index: int, hidden: Tensor) -> Tensor:
        """The states of all rows where they run together again: the branch's output in the image's places."""
        if index != self.route.stop or step.vision is None:
            return hidden
        if self.route.stop > self.route.split:
            self._check_unchanged(step, index, hidden)
        return hidden if step.branched is None else at.put(hidden, step.vision, step.branched)

    def _check_unchanged(self, step: _Step, index: int, hidden: Tensor) -> None:
        if hidden is step.whole or step.whole is None or step.past:
            return
        if not torch.equal(hidden, step.whole.to(hidden)):
            raise UnsupportedModelError(
                f"{type(self.decoder.model).__name__} adds to its states before decoder layer {index} (deepstack: "
                f"visual features, at the image's places), where the image's rows are away from layer "
                f"{self.route.split} on; expected a split of {index} or more"
            )

    def run_norm(self, forward: Callable[..., Any], hidden: Tensor) -> Tensor:
        """The final norm, over the branch's output too where no layer ran it."""
        return forward(self._join(self._running(), self.decoder.num_layers, hidden))

    def run_head(self, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """The head as it is."""
        return forward(states)

    def run_attention(
        self, index: int | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A layer's attention as it is."""
        return forward(*args, **kwargs)

    # -- what a layer is called with for some of its columns --------------------------------------------

    def _arguments(
        self,
        step: _Step,
        index: int,
        kwargs: dict[str, Any],
        queries: Columns,
        keys: Columns,
        offset: int,
        forward: Callable[..., Any],
        hidden: Tensor,
        everything: bool = False,
    ) -> dict[str, Any]:
        """A layer's keyword arguments for some columns, `keys` those that they may see."""
        found, n = {}, hidden.shape[1]
        for name, value in kwargs.items():
            if name == "attention_mask":
                if value is not None and not (isinstance(value, Tensor) and value.ndim == 4):
                    raise UnsupportedModelError(
                        f"attention mask of kind {type(value).__name__}; load the model with "
                        "attn_implementation='sdpa' or 'eager'"
                    )
                make = partial(at.mask_between, value, queries, keys, step.past, offset, everything)
                found[name] = step.once((name, id(queries), keys.places, offset, everything), value, make)
            elif step.past or value is None:  # every new column runs every layer
                found[name] = value
            elif name == "cache_position":
                found[name] = value[..., n - queries.places :]  # no cache that takes it is routed
            else:
                dim = self._dim(index, name, value, kwargs, forward, hidden)
                pick = partial(_some, value, queries, dim)
                found[name] = value if dim is None else step.once((name, id(queries)), value, pick)
        return found

    def _dim(
        self,
        index: int,
        name: str,
        value: Any,
        kwargs: dict[str, Any],
        forward: Callable[..., Any],
        hidden: Tensor,
    ) -> int | None:
        """Where an argument has its columns; None where it has none."""
        if name.startswith("position_embeddings"):
            return -2
        if name == "position_ids":
            return -1
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != hidden.shape[1]:
            return None
        if name not in self._follow_tokens:

            def run(other: Tensor) -> Tensor:
                return first_tensor(run_alone(self.decoder, forward, (hidden,), kwargs | {name: other}))

            self._follow_tokens[name] = has_row_per_token(index, name, value, run)
        return 1 - value.ndim if self._follow_tokens[name] else None

    def _running(self) -> _Step:
        if self._step is None:
            raise UnsupportedModelError(
                "a decoder layer ran outside a call of the whole model; call model(...), and neither "
                "model.forward(...) nor a part of it"
            )
        return self._step

    # -- life ------------------------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        """Route the model in the calling thread; afterwards nothing is left on it but the cache's own columns.

        Raises:
            ConfigError: the thread decodes this model under another session already.
        """
        outer = session_of(self.decoder.model)
        if isinstance(outer, RoutedSession):
            raise ConfigError("this model is routed already in this thread; close that Routed first")
        if outer is not None:
            raise ConfigError(
                "a contrast is active on this model in this thread, and a contrast inside a routed model is not "
                "built; use one of the two"
            )
        with running(self):
            yield

    def close(self) -> None:
        """Be done. Caches stay as they are: another session of the same `Routed` can go on with them."""
        self.is_open = False
        self._step = None


def _some(value: Any, columns: Columns, dim: int | None) -> Any:
    """An argument's rows at some columns; of a tuple, each one's."""
    assert dim is not None
    if isinstance(value, tuple | list):
        return type(value)(_some(one, columns, dim) for one in value)
    return at.rows_of(value, columns, dim)
