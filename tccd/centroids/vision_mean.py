"""The vision mean: what each decoder layer's attention is given for a token of an image, on average.

It is summed up batch by batch, so that nothing is kept of a token but its part in the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tccd.errors import FitError

#: Values that are turned into fp64 at a time: 32 MiB.
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class VisionSums:
    """Sums of what each layer's attention is given for vision tokens, over any number of prompts.

    Attributes:
        sums: of the finite states, shape (num_layers, hidden), fp64.
        kept: how many states each sum is of, shape (num_layers,), int64.
        dropped: how many were left out because they held a value that is not finite, shape (num_layers,), int64.
    """

    sums: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray

    #: Name in a shard -> attribute.
    NAMES: ClassVar = {f"vision_mean.{part}": part for part in ("sums", "kept", "dropped")}

    @classmethod
    def zeros(cls, num_layers: int, hidden_size: int) -> VisionSums:
        """Nothing summed yet."""
        counts = np.zeros((2, num_layers), dtype=np.int64)
        return cls(np.zeros((num_layers, hidden_size)), *counts)

    def add(self, layer: int, states: Tensor) -> None:
        """Add what a layer's attention is given at some vision positions.

        Args:
            layer: index of the decoder layer.
            states: shape (tokens, hidden), any floating dtype, on any device.
        """
        total = _sum(states)
        if not np.isfinite(total).all():
            everything, states = len(states), states[torch.isfinite(states).all(-1)]
            self.dropped[layer] += everything - len(states)
            total = _sum(states)
        self.sums[layer] += total
        self.kept[layer] += len(states)

    def check(self) -> None:
        """Make sure that there is a mean.

        Raises:
            FitError: a layer has no finite state.
        """
        empty = np.flatnonzero(self.kept == 0).tolist()
        if empty:
            raise FitError(
                f"vision tokens have no finite state in the attention of layers {empty}, so there is no vision "
                "mean: load the model in another precision (--dtype), or leave the mean out (--no-vision-mean)"
            )

    def mean(self) -> tuple[Tensor, dict[str, Any]]:
        """The mean, of shape (num_layers, hidden), fp32, and what is known of it.

        Returns:
            The mean; and `tokens` (vision tokens that were read) and `dropped_states` (states that were left out
            because they held a value that is not finite, over all layers).

        Raises:
            FitError: a layer has no finite state.
        """
        self.check()
        mean = torch.from_numpy((self.sums / self.kept[:, None]).astype(np.float32))
        tokens = int((self.kept + self.dropped).max())
        return mean, {"tokens": tokens, "dropped_states": int(self.dropped.sum())}

    def tensors(self) -> dict[str, Tensor]:
        """As they stand in a shard."""
        return {name: torch.from_numpy(getattr(self, part)) for name, part in self.NAMES.items()}

    @classmethod
    def total(cls, shards: Iterable[dict[str, Tensor]]) -> VisionSums:
        """The sums of several shards, in their order, each as `tensors` gives it."""
        found = None
        for shard in shards:
            each = cls(*(shard[name].numpy() for name in cls.NAMES))
            if found is None:
                found = cls.zeros(*each.sums.shape)
            for part in cls.NAMES.values():
                getattr(found, part).__iadd__(getattr(each, part))
        assert found is not None, "a harvest has at least one shard"
        return found


def _sum(states: Tensor) -> np.ndarray:
    """Over the tokens, in fp64."""
    if not states.is_cuda:  # other accelerators may have no fp64
        states = states.cpu()
    total = torch.zeros(states.shape[1], dtype=torch.float64, device=states.device)
    for part in states.split(max(1, _CHUNK_ELEMENTS // states.shape[1])):
        total += part.double().sum(0)
    return total.cpu().numpy()
