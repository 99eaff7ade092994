"""The Vendi score by its library is that of its definition, where the library is installed."""

from __future__ import annotations

import numpy as np
import pytest

from probes.coverage.vendi import vendi
from tests.probes.coverage.sets import drawn, store


def test_the_score_is_that_of_its_definition():
    pytest.importorskip("vendi_score")
    made, k = store(drawn(40)), {"text": 6, "vision": 8}
    for row in vendi("a", made, k):
        hit = np.zeros((40, k[row["codebook"]]))
        for number, picture in enumerate(made.pictures()):
            hit[number, getattr(picture, row["codebook"])] = 1
        hit /= np.linalg.norm(hit, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(hit @ hit.T / len(hit))
        values = values[values > 1e-12]
        assert row["value"] == pytest.approx(np.exp(-(values * np.log(values)).sum()))
