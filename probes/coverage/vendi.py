"""A cross-check by another library: the Vendi score of a set's pictures, by the cosine of the codes they hit.

Source: Friedman and Dieng, "The Vendi Score", arXiv 2210.02410; the library `vendi-score`, which the extra `vendi`
installs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probes.coverage.counts import hill
from probes.coverage.store import Store
from tccd.errors import require

#: Pictures that it is taken over, at most: it needs all of them at once.
PICTURES = 2000


def vendi(
    name: str, store: Store, k: Mapping[str, int], seed: int = 0, most: int = PICTURES
) -> list[dict[str, Any]]:
    """Rows of a report: the score of text codes and of vision codes, beside the effective number of codes.

    The score is the effective number of different pictures, and so at most the number of codes too.

    Args:
        name: of the set.
        store: its codes.
        k: codes by codebook.
        seed: of the draw of pictures.
        most: pictures, at most.

    Raises:
        MissingExtraError: the library is not installed.
    """
    score = require("vendi_score.vendi", "vendi")
    n = len(np.unique(store.digests))
    taken = np.zeros(n, dtype=bool)
    taken[np.random.default_rng(seed).choice(n, min(n, most), replace=False)] = True
    drawn = [picture for picture, keep in zip(store.pictures(), taken, strict=True) if keep]
    rows = []
    for codebook in ("vision", "text"):
        hit = np.zeros((len(drawn), k[codebook]))
        for row, picture in enumerate(drawn):
            hit[row, getattr(picture, codebook)] = 1
        value = float(score.score_dual(hit, normalize=True))
        effective = hill(hit.sum(0).astype(np.int64))
        rows.append(
            {"set": name, "codebook": codebook, "pictures": len(drawn), "value": value, "effective": effective}
        )
    return rows
