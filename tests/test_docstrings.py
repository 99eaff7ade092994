"""The examples in the docstrings of public names run as they stand."""

from __future__ import annotations

import doctest
import importlib
from functools import cache
from typing import Any

import pytest
import torch

from eval.zoo import load
from tccd import CentroidBank
from tccd.data import load_samples

MODULES = [
    "tccd.centroids.bank",
    "tccd.centroids.fit",
    "tccd.centroids.kmeans",
    "tccd.centroids.replacement",
    "tccd.data.load",
    "tccd.data.sample",
    "tccd.decoding.config",
    "tccd.decoding.huggingface",
    "tccd.routing.columns",
    "tccd.routing.routed",
    "eval.zoo",
]


@cache
def names() -> dict[str, Any]:
    """What an example may take for granted: a loaded model, its processor, a bank and samples."""
    model, processor = load("llava-grounded")
    centroids = torch.randn(8, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    bank = CentroidBank.from_arrays(model, {("text", 3): centroids})
    samples = load_samples("easy-vqa", split="test", limit=40, seed=0)
    return {"model": model, "processor": processor, "bank": bank, "samples": samples, "torch": torch}


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    examples = [test for test in found if test.examples]
    assert examples, f"{module} has no example"
    for test in examples:
        test.globs.update(names())
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        assert runner.run(test).failed == 0, test.name
        assert not any(e.options.get(doctest.SKIP) for e in test.examples), f"{test.name} skips its example"
