"""The saturation probe: from which layer on an answer no longer needs the image.

Attention to the image, however large, does not say that it is needed. So beside it stands the causal curve: the
same model, whose tail can't see the image's keys above some layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.asking.fingerprint import fingerprint
from probes.asking.forward import encode_samples, run_streams
from probes.asking.journal import open_journal
from probes.asking.scoring import Scorer, Target, targets
from probes.saturation.depth import by_depth, divergence
from probes.statistics.clusters import Clusters
from probes.statistics.outcomes import accuracy, bits, cost
from tccd.data import Sample
from tccd.data.pictures import picture_digest
from tccd.decoder import find_decoder, identify
from tccd.decoding.references import no_vision
from tccd.errors import ConfigError, DataError
from tccd.inputs import check_samples

#: Samples, from the first, that VTW measures the divergence of the last token on.
VTW_SAMPLES = 20

#: Layers that DPVR's rule goes below the transition of the logit lens.
DPVR_MARGIN = 4


def run(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    eps: float = 0.01,
    batch_size: int = 16,
    journal: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure attention to the image, states and the causal curve by layer, and advise a split.

    A split `s` leaves the image to layers 0 to s - 1: the tail sees none of its keys from layer s on.

    Args:
        model: a vision-language model in eval mode.
        processor: its processor.
        samples: questions with answers of one token, or with choices.
        eps: accuracy that a split may lose: the upper end of the loss's 95 % interval has to be at most this.
        batch_size: samples a forward.
        journal: folder that keeps what is done.
        resume: go on with what the journal holds.
        progress: called with (samples done, samples in all).

    Returns:
        `model`, `num_layers`, `accuracy`, `layers` (means over samples), `curve` (one entry a split) and `advice`.

    Raises:
        ConfigError: eps is out of range, or a journal of other settings.
        DataError: no sample, or one that can't be asked or scored by its next token.
        UnsupportedModelError: the engine is not exact for this model, or its attention shows no weights.
    """
    if not 0 < eps < 1:
        raise ConfigError(f"eps is {eps:g}; expected a share of the questions between 0 and 1, such as 0.01")
    scorer, goals = targets(processor, samples)
    if any(goal.is_generated for goal in goals):
        raise DataError(
            "some answers are more than one token, and saturation is measured on the next token alone; give data "
            "with choices, or with answers of one token"
        )
    check_samples(model, processor, samples, new_tokens=0)
    settings = fingerprint(model, samples, {}) | {"probe": "saturation", "batch_size": batch_size}
    held: AbstractContextManager[Any] = nullcontext()
    if journal is not None:
        held = open_journal(journal, settings, resume=resume)
    chunks = []
    with held as kept:
        for start in range(0, len(samples), batch_size):
            some = slice(start, min(start + batch_size, len(samples)))

            def make(some: slice = some) -> dict[str, Any]:
                return _ask(model, processor, scorer, samples[some], goals[some])

            chunks.append(make() if kept is None else kept.chunk(start, samples[some], make))
            if progress is not None:
                progress(some.stop, len(samples))
    return _result(model, samples, goals, chunks, eps)


@torch.no_grad()
def _ask(
    model: Any, processor: Any, scorer: Scorer, samples: Sequence[Sample], goals: Sequence[Target]
) -> dict[str, Any]:
    """One chunk: answers and KL by split, sums of statistics by layer, digests of pictures."""
    decoder = find_decoder(model)
    images = [sample.image for sample in samples]
    inputs = encode_samples(model, processor, samples, images)
    splits = [no_vision(split - 1 if split else None) for split in range(decoder.num_layers)]
    streams = run_streams(decoder, inputs, splits)
    return {
        "pictures": [picture_digest(image) for image in images],
        "clean": scorer.read(goals, streams.clean),
        "splits": [scorer.read(goals, logits) for logits in streams.others],
        "kl": [divergence(streams.clean, logits).tolist() for logits in streams.others],
        "sums": by_depth(decoder, inputs),
    }


def _result(
    model: Any,
    samples: Sequence[Sample],
    goals: Sequence[Target],
    chunks: Sequence[Mapping[str, Any]],
    eps: float,
) -> dict[str, Any]:
    truth = np.array([goal.answer for goal in goals])
    clean = np.array([word for chunk in chunks for word in chunk["clean"]]) == truth
    pictures = [digest for chunk in chunks for digest in chunk["pictures"]]
    clusters = Clusters.of(pictures, [s.prompt for s in samples])
    tasks = [s.task or "all" for s in samples]
    layers = len(chunks[0]["splits"])
    curve = []
    for split in range(layers):
        right = np.array([word for chunk in chunks for word in chunk["splits"][split]]) == truth
        kl = np.array([value for chunk in chunks for value in chunk["kl"][split]])
        figures = cost(clean, right, tasks, clusters)
        told = {"kl": float(kl.mean()), "kl_vtw": float(kl[:VTW_SAMPLES].mean()), "right": bits(right)}
        curve.append({"split": split} | figures | told)
    names = chunks[0]["sums"]
    by_layer = [
        {"layer": layer} | {n: sum(c["sums"][n][layer] for c in chunks) / len(samples) for n in names}
        for layer in range(layers)
    ]
    return {
        "model": identify(model).model_id,
        "num_layers": layers,
        "accuracy": accuracy(clean, clusters),
        "layers": by_layer,
        "curve": curve,
        "advice": advise(curve, [row["lens_vision"] for row in by_layer], eps),
    }


def advise(curve: Sequence[Mapping[str, Any]], lens: Sequence[float], eps: float) -> dict[str, Any]:
    """The smallest split from which on no split loses more than eps, over all questions and by task.

    Args:
        curve: one entry a split, from 0, with `ci95` of the loss and `by_task`.
        lens: KL of the vision tokens' logit lens to the last layer, by layer.
        eps: accuracy that may be lost.

    Returns:
        `split` (None where no split is safe), `by_task`, and beside them `transition`, the first layer whose lens
        is at most half of the first layer's, and `dpvr_split`, that layer less `DPVR_MARGIN`.
    """
    tasks = [row["task"] for row in curve[0]["by_task"]]
    half = next(layer for layer, value in enumerate(lens) if value <= lens[0] / 2)
    return {
        "eps": eps,
        "split": _smallest([row["ci95"][1] for row in curve], eps),
        "by_task": {
            task: _smallest([row["by_task"][number]["ci95"][1] for row in curve], eps)
            for number, task in enumerate(tasks)
        },
        "transition": half,
        "dpvr_split": max(0, half - DPVR_MARGIN),
    }


def _smallest(bounds: Sequence[float], eps: float) -> int | None:
    """The first of the splits at the end of the list that all stay within eps."""
    found = None
    for split in reversed(range(len(bounds))):
        if bounds[split] > eps:
            break
        found = split
    return found
