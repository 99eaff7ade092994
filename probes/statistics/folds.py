"""Settings chosen on some folds and judged on the others: pure functions of per-item outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tccd.errors import ConfigError, DataError

OFF = -1
"""The choice to change nothing."""


@dataclass(frozen=True)
class HeldOut:
    """Outcomes of a choice that never saw the items it is judged on.

    Attributes:
        outcomes: right or not, boolean, shape (n,), each item by what the other folds chose.
        chosen: what was chosen for each fold: the index of a setting, or `OFF`.
    """

    outcomes: NDArray[np.bool_]
    chosen: tuple[int, ...]


def folds(clusters: Sequence[str] | ArrayLike, n_folds: int, seed: int = 0) -> NDArray[np.int_]:
    """The fold of each item; items of one cluster (the questions about one image) share theirs.

    Clusters are dealt out in a random order, so that folds differ by at most one cluster in size. The order of
    the items makes no difference.

    Args:
        clusters: (n,) labels.
        n_folds: at least 2.
        seed: of numpy's default generator.

    Returns:
        (n,) whole numbers, 0 to n_folds - 1.

    Raises:
        ConfigError: fewer than two folds.
        DataError: fewer clusters than folds.
    """
    if n_folds < 2:
        raise ConfigError(f"n_folds = {n_folds}; expected at least 2: one to choose on, one to judge on")
    labels, which = np.unique(np.asarray(clusters), return_inverse=True)
    if len(labels) < n_folds:
        raise DataError(f"{len(labels)} images for {n_folds} folds; expected at least one image a fold")
    dealt = np.empty(len(labels), dtype=int)
    dealt[np.random.default_rng(seed).permutation(len(labels))] = np.arange(len(labels)) % n_folds
    return dealt[which]


def best(scores: ArrayLike, allowed: ArrayLike | None = None) -> int:
    """The setting with the highest score, of equals the first: order settings from the mildest.

    Args:
        scores: shape (settings,): right answers, or changes in accuracy, of items that judge nothing else.
        allowed: which settings may be chosen, boolean, shape (settings,), at least one; None for all.
    """
    scores = np.asarray(scores, dtype=float)
    return int((scores if allowed is None else np.where(np.asarray(allowed, bool), scores, -np.inf)).argmax())


def choose(plain: ArrayLike, settings: ArrayLike) -> int:
    """The setting with the most right answers, or `OFF` where none has more than plain decoding.

    Of equals the first: order settings from the mildest.

    Args:
        plain: right or not, shape (n,).
        settings: the same by setting, shape (settings, n).
    """
    right = np.asarray(settings).sum(axis=1)
    found = best(right)
    return found if right[found] > np.asarray(plain).sum() else OFF


def held_out(plain: ArrayLike, settings: ArrayLike, fold: ArrayLike) -> HeldOut:
    """Choose on all folds but one, and answer that one by the choice; every fold in turn.

    Args:
        plain: right or not, boolean, shape (n,).
        settings: the same by setting, shape (settings, n), mildest first.
        fold: of each item, shape (n,), at least two different ones.

    Raises:
        DataError: shapes that don't fit, no setting, or a single fold.
    """
    plain, settings, fold = np.asarray(plain, bool), np.asarray(settings, bool), np.asarray(fold)
    if settings.ndim != 2 or not len(settings) or not settings.shape[1:] == plain.shape == fold.shape:
        raise DataError(
            f"outcomes of shape {settings.shape} by setting, {plain.shape} plain, {fold.shape} folds; "
            "expected (settings, n), (n,) and (n,) with at least one setting"
        )
    names = np.unique(fold)
    if len(names) < 2:
        raise DataError("all items are in one fold; expected at least two")
    outcomes = plain.copy()
    chosen = []
    for name in names:
        judged = fold == name
        choice = choose(plain[~judged], settings[:, ~judged])
        if choice != OFF:
            outcomes[judged] = settings[choice, judged]
        chosen.append(choice)
    return HeldOut(outcomes, tuple(chosen))
