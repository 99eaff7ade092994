"""Settings of every test: one thread (tiny models gain nothing from more) and no hub."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from importlib.util import find_spec

import hypothesis
import pytest

# Some tests need no torch, and run under Pythons that have no small build of it.
HAS_TORCH = find_spec("torch") is not None
if HAS_TORCH:
    import torch

    torch.set_num_threads(1)
# Other processes share the cores: how long one example takes says nothing of the code.
hypothesis.settings.register_profile("tccd", deadline=None)
hypothesis.settings.load_profile("tccd")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    if HAS_TORCH:
        torch.manual_seed(0)
