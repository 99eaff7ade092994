"""What stands beside a centroid cost: doses of the same size that erase nothing in particular.

The draws are a function of the seed, a position's distance from the prompt's end and its nearest centroid, so
that they are the same however samples are batched, and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from tccd.centroids.replacement import Centroids
from tccd.errors import ConfigError

#: Random directions, and random shifts, that are drawn from; a prime, so that strides visit all of them.
DRAWS = 1021

#: Rows of hidden states and the number of each one's nearest centroid -> the rows replaced.
Replace = Callable[[Tensor, Tensor], Tensor]


def random_direction(centroids: Centroids, alpha_interp: float, seed: int) -> Replace:
    """Move each state as far as replacement would, in a random direction.

    `x -> x + (1 - alpha_interp) |x - mu| u`, `mu` the nearest centroid, `u` a random unit vector (the equal-norm
    control of arXiv 2604.14363).

    Args:
        centroids: of the replacement that is controlled.
        alpha_interp: as of the replacement that is controlled.
        seed: of the directions.
    """

    def replace(hidden: Tensor, nearest: Tensor) -> Tensor:
        x = hidden.float()
        norm = (x - centroids.to(x.device).vectors[nearest]).norm(dim=-1, keepdim=True)
        u = _directions(seed, x.shape[-1]).to(x.device)[_draw(nearest)]
        return (x + (1 - alpha_interp) * norm * u).to(hidden.dtype)

    return replace


def random_centroid(centroids: Centroids, alpha_interp: float, seed: int) -> Replace:
    """Replace each state by a random centroid that is not its nearest.

    `x -> mu_r + alpha_interp (x - mu_r)`: the bank's own points, without the assignment.

    Args:
        centroids: of the replacement that is controlled, at least two.
        alpha_interp: as of the replacement that is controlled.
        seed: of the assignment.

    Raises:
        ConfigError: one centroid has no other.
    """
    k = centroids.k
    if k < 2:
        raise ConfigError(
            "the random-centroid control needs at least 2 centroids, this bank has K = 1; leave --controls out or "
            "fit a larger bank"
        )
    shifts = torch.randint(1, k, (DRAWS,), generator=torch.Generator().manual_seed(seed))

    def replace(hidden: Tensor, nearest: Tensor) -> Tensor:
        x = hidden.float()
        other = (nearest + shifts.to(x.device)[_draw(nearest)]) % k
        return torch.lerp(centroids.to(x.device).vectors[other], x, alpha_interp).to(hidden.dtype)

    return replace


def matched_alpha(alpha_interp: float, own: float, other: float) -> float:
    """The `alpha_interp` at which a replacement moves states by what another moves its own.

    A replacement moves a state by `(1 - alpha_interp) |x - mu|`, so the mean is in proportion to
    `1 - alpha_interp`.

    Args:
        alpha_interp: what `own` was measured at, below 1.
        own: mean norm of the stronger replacement's displacement.
        other: of the weaker one; at most `own`.

    Example:
        >>> matched_alpha(0.0, own=4.0, other=1.0)
        0.75
    """
    return 1 - (1 - alpha_interp) * other / own


def _draw(nearest: Tensor) -> Tensor:
    """Which draw each position takes, shape and device of `nearest`, (batch, positions)."""
    from_end = torch.arange(nearest.shape[-1], 0, -1, device=nearest.device)
    return (from_end * 31 + nearest * 17) % DRAWS


@lru_cache(maxsize=8)
def _directions(seed: int, width: int) -> Tensor:
    drawn = torch.randn(DRAWS, width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=-1, keepdim=True)
