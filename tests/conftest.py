"""Settings of every test: one thread (tiny models gain nothing from more) and no hub."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# Other processes share the cores: how long one example takes says nothing of the code.
hypothesis.settings.register_profile("tccd", deadline=None)
hypothesis.settings.load_profile("tccd")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
