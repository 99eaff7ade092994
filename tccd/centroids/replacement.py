"""Centroid replacement: `x -> mu + alpha_interp * (x - mu)`, `mu` the nearest centroid of row `x`.

Source: Paruchuri et al., "The Cost of Language", COLM 2026, arXiv 2604.14363.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tccd.errors import BankMismatchError, ConfigError

# fp32 elements of rows worked on at once (16 MiB): what a call needs beside input and output stays near it.
_CHUNK_ELEMENTS = 2**22


# Up to so many rows (a decode step) oneDNN with packed weights is 1.1 to 3 times as fast on a CPU as a plain GEMM,
# which reads every weight once a row.
_FEW_ROWS = 16


class Centroids:
    """The centroids of one modality at one layer, ready for the nearest-centroid search.

    The search is one GEMM: `argmin |x - c|^2 = argmax x.(c - m) - (|c|^2 - |m|^2) / 2` for any constant `m`.
    With `m` the mean of the centroids, what all of them share (the residual stream has a few enormous
    components that hardly vary) can't swamp the differences in fp32. Both factors are computed once, here.

    Args:
        vectors: shape (K, hidden), floating point; kept in fp32 on its device, not copied if it is fp32.

    Attributes:
        vectors: shape (K, hidden), fp32.

    Raises:
        ConfigError: not a floating-point matrix with at least one row, or not finite.

    Example:
        >>> centroids = Centroids(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
        >>> x = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
        >>> centroids.nearest(x)
        tensor([0, 1])
        >>> centroids.replace(x, alpha_interp=0.5)
        tensor([[0.5000, 0.5000],
                [3.5000, 0.0000]])
    """

    def __init__(self, vectors: Tensor):
        if not isinstance(vectors, Tensor) or not vectors.is_floating_point() or vectors.ndim != 2:
            raise ConfigError(f"centroids are {_describe(vectors)}; expected a (K, hidden) floating-point tensor")
        if not vectors.numel():
            raise ConfigError(f"centroids have shape {tuple(vectors.shape)}; expected at least one row and column")
        self.vectors = vectors.detach().to(torch.float32).contiguous()
        if not bool(torch.isfinite(self.vectors).all()):
            raise ConfigError("centroids hold values that are not finite in fp32; refit them")
        exact = self.vectors.double()
        mean = exact.mean(0)
        self._directions = (exact - mean).float()
        bias = (mean.square().sum() - exact.square().sum(-1)) / 2
        # Rounding depends on a column's place in the GEMM, so equal centroids need not tie in it: all but the
        # first of them are put out of the running.
        _, group = torch.unique(self.vectors, dim=0, return_inverse=True)
        order = torch.arange(len(group), device=group.device)
        first = torch.full_like(order, len(group)).scatter_reduce_(0, group, order, "amin")
        self._bias = bias.masked_fill(first[group] != order, -torch.inf).float()
        self._step = max(1, _CHUNK_ELEMENTS // self.vectors.shape[1])
        self._devices: dict[torch.device, Centroids] = {}
        self._keep_at_hand()

    def _keep_at_hand(self) -> None:
        self._width, self._device, self._kind = self.vectors.shape[1], self.device, self.device.type
        self._packed: Tensor | None = None  # made at the first few rows on a CPU

    @property
    def k(self) -> int:
        """Number of centroids."""
        return self.vectors.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.vectors.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the centroids are."""
        return self.vectors.device

    def to(self, device: torch.device | str) -> Centroids:
        """The same centroids on another device, moved once; `self` if they are there."""
        device = torch.device(device)
        if device == self.device:
            return self
        if device not in self._devices:
            moved = copy.copy(self)
            moved.vectors = self.vectors.to(device)
            moved._directions = self._directions.to(device)
            moved._bias = self._bias.to(device)
            moved._keep_at_hand()
            self._devices[device] = moved
        return self._devices[device]

    def search(self, x: Tensor) -> Tensor:
        """As `nearest`, on the device of `x`."""
        return self.to(x.device).nearest(x)

    def nearest(self, x: Tensor) -> Tensor:
        """The index of the nearest centroid of each row; the lowest index where several are as near.

        Args:
            x: shape (..., hidden), any floating dtype; distances are in fp32.

        Returns:
            int64 indices of shape (...).

        Raises:
            BankMismatchError: x has another width than the centroids.
            ConfigError: x is not floating point, or on another device.
        """
        rows = self._rows(x)
        if torch.is_autocast_enabled(self._kind):
            with torch.autocast(self._kind, enabled=False):
                return self.nearest(x)
        if _is_rounded(self._kind):
            with _unrounded(self._kind):
                return self.nearest(x)
        if len(rows) <= self._step:
            index = self._nearest(rows.float())
        else:
            index = torch.cat([self._nearest(part.float()) for part in rows.split(self._step)])
        return index.view(x.shape[:-1])

    def replace(self, x: Tensor, alpha_interp: float | Tensor, nearest: Tensor | None = None) -> Tensor:
        """Blend each row with its nearest centroid: `mu + alpha_interp * (x - mu)`.

        Memory beside the result is bounded (rows are worked on in chunks), nothing waits for the device, and
        no gradient flows.

        Args:
            x: shape (..., hidden), any floating dtype; the blend is in fp32 and rounded once.
            alpha_interp: 0 is full collapse, 1 the identity; a number, or a tensor that broadcasts to
                `x.shape[:-1]`.
            nearest: what `nearest` found for the same rows, where it is known already.

        Returns:
            A new tensor of x's shape and dtype; x itself for the number 1.

        Raises:
            BankMismatchError: x has another width than the centroids.
            ConfigError: x is not floating point, or on another device.
        """
        # A decode step calls this on a few rows, where every small operation of torch counts: none is idle.
        rows = self._rows(x)
        # Autocast would take the distances in half precision, which picks another centroid for 1 % of rows.
        if torch.is_autocast_enabled(self._kind):
            with torch.autocast(self._kind, enabled=False):
                return self.replace(x, alpha_interp, nearest)
        if nearest is None and _is_rounded(self._kind):
            with _unrounded(self._kind):
                return self.replace(x, alpha_interp)
        alpha: float | Tensor
        if isinstance(alpha_interp, Tensor):
            alpha = alpha_interp.detach().to(x.device, torch.float32).expand(x.shape[:-1]).reshape(-1, 1)
        elif alpha_interp == 1:
            return x
        else:
            alpha = float(alpha_interp)
        step = self._step
        if nearest is not None:
            out = self._blend(rows, alpha, nearest=nearest.reshape(-1))
        elif len(rows) <= step:
            out = self._blend(rows, alpha)
        else:
            out = torch.empty_like(rows)
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                to = out[part] if rows.dtype is torch.float32 else None
                blend = self._blend(rows[part], alpha[part] if isinstance(alpha, Tensor) else alpha, to)
                if to is None:
                    out[part] = blend
        return out if rows is x else out.view(x.shape)

    def _nearest(self, rows: Tensor) -> Tensor:
        # torch.argmax returns the first of equal maxima, as its documentation says.
        return self._scores(rows).argmax(-1)

    def _scores(self, rows: Tensor) -> Tensor:
        if not (_HAS_PACKED_LINEAR and self._kind == "cpu" and 0 < len(rows) <= _FEW_ROWS):
            return linear(rows, self._directions, self._bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._directions, _FEW_ROWS)
        return torch.ops.mkldnn._linear_pointwise(rows.contiguous(), self._packed, self._bias, "none", [], "")

    def _blend(
        self, rows: Tensor, alpha: float | Tensor, out: Tensor | None = None, nearest: Tensor | None = None
    ) -> Tensor:
        if rows.dtype is torch.float32:
            nearest = self._nearest(rows) if nearest is None else nearest
            return torch.index_select(self.vectors, 0, nearest, out=out).lerp_(rows, alpha)
        rows32 = rows.float()
        nearest = self._nearest(rows32) if nearest is None else nearest
        return self.vectors.index_select(0, nearest).lerp_(rows32, alpha).to(rows.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ConfigError(f"x is {_describe(x)}; expected a floating-point tensor")
        if not x.ndim or x.shape[-1] != self._width:
            raise BankMismatchError(
                f"rows of shape {tuple(x.shape)} meet centroids of width {self._width}; expected "
                f"(..., {self._width}). Use the bank that was fitted for this model"
            )
        if x.device != self._device:
            raise ConfigError(
                f"x is on {x.device}, the centroids on {self._device}; move them once with Centroids.to(x.device)"
            )
        if x.requires_grad:
            x = x.detach()
        return x if x.ndim == 2 else x.reshape(-1, self._width)

    def __repr__(self) -> str:
        return f"Centroids(k={self.k}, hidden_size={self.hidden_size}, device={str(self.device)!r})"


def _matmul(kind: str) -> Any:
    """Torch's switches for matrix products on a kind of device."""
    backends: Any = torch.backends
    return backends.cuda.matmul if kind == "cuda" else backends.mkldnn.matmul


def _is_rounded(kind: str) -> bool:
    """Whether torch may round the factors of fp32 products (TF32 on a GPU, bf16 on a CPU).

    `torch.set_float32_matmul_precision("high")` asks for it, and it picks another centroid for some rows.
    """
    return getattr(_matmul(kind), "fp32_precision", "none") not in ("none", "ieee")


@contextmanager
def _unrounded(kind: str) -> Iterator[None]:
    """Products in fp32 proper, whatever the caller has set."""
    switches = _matmul(kind)
    held, switches.fp32_precision = switches.fp32_precision, "ieee"
    try:
        yield
    finally:
        switches.fp32_precision = held


def _has_packed_linear() -> bool:
    """Whether torch has oneDNN's packed linear map (what its own compiler emits); other builds do without."""
    ops = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, op) for op in ops)


_HAS_PACKED_LINEAR = _has_packed_linear()


def _describe(x: object) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
