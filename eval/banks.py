"""Banks of the default models for the demo and the benchmarks: every layer, several K, one harvest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from probes.asking.arms import Arm
from tccd import CentroidBank, TCCDConfig, fit_bank
from tccd.data import Sample
from tccd.decoding.references import centroid_erasure
from tccd.engine import Erasure


def fit_banks(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    ks: Iterable[int],
    *,
    seed: int = 42,
    data: str = "easy-vqa train",
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, CentroidBank]:
    """Fit a bank for each K at every layer that has one above it, on the samples' own prompts.

    Args:
        model, processor: a default model.
        samples: what to harvest.
        ks: numbers of centroids.
        seed: of the harvest and k-means.
        data: name of the samples, for the banks' provenance.
        progress: called with (banks done, banks in all).
    """
    layers = tuple(range(model.config.get_text_config().num_hidden_layers - 1))
    wanted = sorted(set(ks))
    fitted = {}
    with tempfile.TemporaryDirectory(prefix="tccd-banks-") as folder:
        for done, k in enumerate(wanted, 1):
            # One harvest serves every K: each fit after the first finds the shards there.
            fitted[k] = fit_bank(
                model,
                processor,
                samples,
                layers={"text": layers, "vision": layers},
                k=k,
                images=None,
                prompt=None,
                max_vision_tokens_per_image=8,
                batch_size=50,
                seed=seed,
                data=data,
                work_dir=folder,
            )
            if progress is not None:
                progress(done, len(wanted))
    return fitted


def arms(banks: Mapping[int, CentroidBank], settings: Iterable[tuple[int, TCCDConfig]]) -> list[Arm]:
    """An arm for each K and settings; those with the same erased stream share it, and so its computation.

    Args:
        banks: by K.
        settings: K and settings, their layer given.
    """
    erasures: dict[tuple[Any, ...], Erasure] = {}
    found = []
    for k, config in settings:
        assert config.layer is not None
        key = k, config.layer, config.alpha_interp
        if key not in erasures:
            erasures[key] = centroid_erasure(banks[k], config.layer, config.alpha_interp)
        found.append(Arm(erasures[key], config))
    return found
