"""An early exit: what the clean stream would have said at a lower layer (DoLa; Chuang et al., arXiv 2309.03883).

It costs a row of the head for each layer that may be the exit, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tccd.decoder import Decoder
from tccd.engine.reference import EMBEDDINGS, Part, Reference, asked
from tccd.errors import ConfigError, UnsupportedModelError
from tccd.modality import ModalityMap

#: DoLa looks at no more than this many layers of either half of a deep model.
DEEP = 20


@dataclass(frozen=True)
class EarlyExit(Reference):
    """The next token by the state after a lower layer, through the model's own final norm and head.

    Of several layers the one is taken, at each token anew, whose distribution is farthest from the last layer's by
    the Jensen-Shannon divergence. It acts on rows without an image too.

    Attributes:
        layers: from 0, `EMBEDDINGS` for what the first layer is given; or "low" or "high": every other layer of
            the lower or upper half, of at most 20 layers, which are DoLa's candidates.

    Raises:
        ConfigError: no such layer; by `bind`.
    """

    layers: Literal["low", "high"] | tuple[int, ...]
    needs_image = False

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]
        """Whether one of several has to be chosen."""
        return not isinstance(self.layers, tuple) or len(self.layers) > 1

    def bind(self, decoder: Decoder) -> EarlyExit:
        """With its layers by number; refuses one that the model does not have, and its last."""
        if isinstance(self.layers, str):
            if self.layers not in ("low", "high"):
                raise ConfigError(f"early exit from layers {self.layers!r}; expected 'low', 'high' or numbers")
            return EarlyExit(candidates(decoder, self.layers))
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"early exit from layers {list(self.layers)}; expected at least one, each once")
        for layer in self.layers:
            if layer != EMBEDDINGS:
                decoder.check_layer(layer, last_allowed=False)
        return self

    def begin(self, owner: object, number: int, modalities: ModalityMap) -> ExitPart:
        """As `Reference.begin`."""
        return self._part(asked(modalities))

    def resume(self, owner: object, number: int, cache: Cache, past: int, ids: Tensor) -> ExitPart:
        """As `Reference.resume`; nothing has to be kept, so any cache will do."""
        return self._part(torch.ones_like(ids, dtype=torch.bool))

    def _part(self, answers: Tensor) -> ExitPart:
        assert isinstance(self.layers, tuple)
        return ExitPart(self.layers, answers.shape[1], answers, {})


def candidates(decoder: Decoder, half: Literal["low", "high"]) -> tuple[int, ...]:
    """DoLa's candidates as decoder layers; its own numbers count the embeddings as layer 0.

    The embeddings are left out where they share their weights with the head: the exit would repeat the last token.
    """
    n = decoder.num_layers
    if half == "high":
        numbers = range(max(n // 2, n - DEEP), n, 2)
    else:
        tied = decoder.model.get_input_embeddings().weight is decoder.head.weight  # type: ignore[operator]
        numbers = range(2 if tied and n > 2 else 0, min(n // 2, DEEP), 2)
    return tuple(number - 1 for number in numbers) or (EMBEDDINGS,)


@dataclass
class ExitPart(Part):
    """An early exit in one forward.

    Attributes:
        layers: that may be the exit.
        queries, answers: see `Part`.
        seen: layer -> its clean states, shape (batch, n, hidden).
    """

    layers: tuple[int, ...]
    queries: int
    answers: Tensor
    seen: dict[int, Tensor]

    def after(self, layer: int, clean: Tensor, found: dict[Any, Tensor]) -> None:
        """Keep the states of the layers that may be the exit."""
        if layer not in self.layers:
            return
        if clean.ndim != 3:
            raise UnsupportedModelError(
                f"layer {layer} gives states of shape {tuple(clean.shape)}; an early exit needs one state a token"
            )
        self.seen[layer] = clean

    def states(self, m: int, norm: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Of each layer, normed."""
        return [norm(self.seen[layer][:, -m:]) for layer in self.layers]

    def logits(self, clean: Tensor, found: list[Tensor]) -> Tensor:
        """Those of the layer that is farthest from the last one, at each column."""
        return farthest(clean, torch.stack(found)) if len(found) > 1 else found[0]


def farthest(clean: Tensor, others: Tensor) -> Tensor:
    """Of several distributions a position, the one with the largest Jensen-Shannon divergence to the clean one.

    Args:
        clean: logits, shape (..., vocabulary).
        others: logits, shape (candidates, ..., vocabulary).

    Returns:
        The logits chosen, shape (..., vocabulary); of equals the first.
    """
    p, q = clean.float().softmax(-1), others.float().softmax(-1)
    middle = (p + q) / 2
    divergence = (torch.special.xlogy(p, p) + torch.special.xlogy(q, q)).sum(-1)
    divergence = divergence - 2 * torch.special.xlogy(middle, middle).sum(-1)
    chosen = divergence.argmax(0)[None, ..., None].expand(1, *others.shape[1:])
    return others.gather(0, chosen)[0]
