"""`verify` on an engine whose plugin was broken on purpose: `python broken.py KIND verify OPTIONS`.

Its processes import this file anew, so each of them breaks what it loads.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor

from tccd.decoding.vllm import plugin

VARIABLE = "TCCD_TEST_BREAK"
register = plugin.register


class Others:
    """Centroids that erase with the ones after the nearest."""

    def __init__(self, centroids: Any) -> None:
        self.centroids = centroids

    def replace(self, x: Tensor, alpha: Tensor) -> Tensor:
        at = (self.centroids.nearest(x) + 1) % self.centroids.k
        return self.centroids.vectors[at].lerp(x.float(), alpha[:, None]).to(x.dtype)


def other_centroids() -> None:
    from tccd.decoding.vllm import erasure

    fill = erasure.Buffers.fill

    def others(self: Any, places: Any) -> None:
        for layer, held in self.sets.items():
            self.sets[layer] = [(n, c if isinstance(c, Others) else Others(c)) for n, c in held]
        fill(self, places)

    erasure.Buffers.fill = others  # type: ignore[method-assign]


def neighbours_and_cache() -> None:
    """A step's logits reach the whole batch, and every TCCD request shares the erased states of the others."""
    from tccd.decoding.vllm import pairs
    from tccd.decoding.vllm.sampling import ContrastingHead

    call = ContrastingHead.__call__

    def spread(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        contrasts = self.pending is not None
        logits = call(self, hidden, *args, **kwargs)
        return logits + logits.mean(0) if contrasts and len(hidden) > 1 else logits

    pairs.mark = lambda found, banks, moved: ""
    ContrastingHead.__call__ = spread  # type: ignore[method-assign]


def broken() -> None:
    register()
    globals()[os.environ[VARIABLE]]()


if VARIABLE in os.environ:
    plugin.register = broken

if __name__ == "__main__":
    from tccd.__main__ import main

    os.environ[VARIABLE] = sys.argv.pop(1)
    main()
