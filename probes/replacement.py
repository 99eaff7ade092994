"""The replacement probe: the accuracy a model loses when one modality is replaced by its centroids.

Source: Paruchuri et al., "The Cost of Language", COLM 2026, arXiv 2604.14363.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probes.arms import Answers, Arm, answer
from probes.outcomes import accuracy, cost
from probes.statistics import paired_bootstrap_ratio
from tccd.centroids.bank import CentroidBank
from tccd.data import Sample
from tccd.decoder import identify
from tccd.decoding.huggingface import centroid_erasure
from tccd.errors import ConfigError
from tccd.modality import MODALITIES, Modality

Cell = tuple[Modality, int, CentroidBank]


def run(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    bank: CentroidBank | Sequence[CentroidBank],
    *,
    layers: Mapping[str, Sequence[int]] | None = None,
    alpha_interp: float = 0.0,
    name: str | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure text and vision centroid cost by layer.

    Args:
        model: a vision-language model in eval mode.
        processor: its processor.
        samples: questions with answers.
        bank: centroids fitted for the model; several banks give several K.
        layers: modality -> layers to erase at; None takes all that every bank holds.
        alpha_interp: what erasure keeps of a state's offset from its centroid; 0 is full collapse.
        name: what the report calls the model; its id when None.
        batch_size: samples a forward.
        progress: called with (samples done, samples in all).

    Returns:
        A result of the schema that `probes.report` writes, with `cells`, `models`, `ratio` and `items`.

    Raises:
        ConfigError: no cell to measure, or a layer that a bank does not hold.
        BankMismatchError: a bank was fitted for another model.
        DataError: no sample, or one that can't be scored.
    """
    banks = [bank] if isinstance(bank, CentroidBank) else list(bank)
    cells = _cells(model, banks, layers)
    arms = [Arm(centroid_erasure(b, layer, alpha_interp, modality)) for modality, layer, b in cells]
    answers = answer(model, processor, samples, arms, batch_size=batch_size, progress=progress)
    name = name or identify(model).model_id
    tasks = [s.task or "all" for s in answers.samples]
    rows = [
        {"model": name, "modality": modality, "layer": layer, "k": len(b.centroids(modality, layer))}
        | {"alpha_interp": alpha_interp, "segment": "all" if modality == "text" else "tokens"}
        | cost(answers.clean_correct, answers.arms_correct[index], tasks)
        for index, (modality, layer, b) in enumerate(cells)
    ]
    return envelope(f"Centroid cost of {name}", config={"alpha_interp": alpha_interp}) | {
        "models": {name: describe(model, answers)},
        "cells": rows,
        "ratio": ratio(name, rows, answers),
        "items": {name: items(answers)},
    }


def ratio(name: str, rows: Sequence[Mapping[str, Any]], answers: Answers) -> dict[str, Any]:
    """Asymmetry ratio, text cost over vision cost, at the middle layer that both modalities were erased at.

    Chosen by position and not by outcome. Images are resampled, since questions about one image go together.
    """
    by_place: dict[tuple[int, int], dict[str, int]] = {}
    for index, row in enumerate(rows):
        by_place.setdefault((row["layer"], row["k"]), {})[row["modality"]] = index
    places = sorted(place for place, found in by_place.items() if len(found) == len(MODALITIES))
    if not places:
        return {}
    middle = places[len(places) // 2]
    found = by_place[middle]
    estimate = paired_bootstrap_ratio(
        answers.clean_correct,
        answers.arms_correct[found["text"]],
        answers.arms_correct[found["vision"]],
        clusters=np.array([s.image_id for s in answers.samples]),
    )
    interval = None if estimate.low is None else [estimate.low, estimate.high]
    return {
        name: {"layer": middle[0], "k": middle[1], "ratio": estimate.value, "ci95": interval}
        | {"reason": estimate.reason}
    }


def describe(model: Any, answers: Answers, description: str = "") -> dict[str, Any]:
    """A model's entry in a report: its size and its clean accuracy with a Wilson interval."""
    identity = identify(model)
    return {
        "description": description or f"{identity.model_id} ({identity.model_type})",
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": accuracy(answers.clean_correct),
    }


def items(answers: Answers) -> list[dict[str, Any]]:
    """Per-item outcomes of the clean stream and how many arms kept them right."""
    word = answers.scorer.word
    kept = answers.arms_correct.sum(0)
    return [
        {"id": s.id, "image_id": s.image_id, "task": s.task, "answer": s.answer, "plain": word(int(p))}
        | {"arms_correct": int(k)}
        for s, p, k in zip(answers.samples, answers.clean, kept, strict=True)
    ]


def envelope(title: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What every report says of itself: schema, title, time, versions, configuration."""
    packages = ("tccd", "torch", "transformers", "numpy", "faiss-cpu", "scikit-learn", "scipy", "statsmodels")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "schema": "tccd-report/1",
        "title": title,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "config": dict(config),
    }


def _cells(model: Any, banks: Sequence[CentroidBank], layers: Mapping[str, Sequence[int]] | None) -> list[Cell]:
    cells: list[Cell] = []
    for bank in banks:
        bank.check(model)
        for modality in MODALITIES:
            held = bank.layers(modality)
            for layer in held if layers is None else layers.get(modality, ()):
                cells.append((modality, layer, bank))
    if not cells:
        raise ConfigError(f"nothing to erase: layers={dict(layers or {})} and banks {banks}")
    return cells
