"""Drawn sets: which codes each picture hits, as stores that the probe reads."""

from __future__ import annotations

import numpy as np

from probes.coverage.store import Record, Store


def record(text, vision, tokens=None):
    text, vision = (np.array(sorted(set(codes)), np.int64) for codes in (text, vision))
    home = (int(text[0]) if len(text) else 0, int(vision[0]) if len(vision) else 0)
    return Record(text, vision, len(text) if tokens is None else tokens, home, (1.0, 2.0))


def store(records, pictures=None):
    """One picture a record, or the pictures named."""
    made = Store()
    names = range(len(records)) if pictures is None else pictures
    made.add(list(records), [f"{name:016x}" for name in names])
    return made


def drawn(n, text=6, vision=8, seed=0, per=3):
    """`n` samples that hit codes with unequal chances."""
    chance = np.random.default_rng(seed)
    return [
        record(
            chance.choice(text, min(per, text), replace=False, p=_unequal(text)),
            chance.choice(vision, min(per, vision), replace=False, p=_unequal(vision)),
        )
        for _ in range(n)
    ]


def _unequal(k):
    p = 1 / np.arange(1, k + 1)
    return p / p.sum()
