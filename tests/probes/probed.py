"""A report as `tccd probe replacement` writes it, of drawn outcomes and made by the probe's own functions."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from probes.report import SCHEMA
from probes.statistics.intervals import holm
from probes.statistics.outcomes import accuracy, bits, cost, gain, labels
from probes.statistics.protocols import protocols

TASKS = ("shape", "colour")
WORDS = ("circle", "square", "red", "blue", "yes", "no", "green", "line", "dot", "grey", "none")


def picture(size=(8, 8), noise=False):
    buffer = io.BytesIO()
    image = Image.new("RGB", size, (200, 40, 40))
    if noise:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image.save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def flipped(generator, right, helped, harmed):
    """Outcomes after a share of the wrong answers were put right, and of the right ones made wrong."""
    draw = generator.random(len(right))
    return np.where(right, draw >= harmed, draw < helped)


def probed(
    name="competing", family="llava", *, n=200, seed=0, helped=0.6, harmed=0.02, layers=(1, 2), questions=None
):
    """A report over one model: two layers, three doses, four controls, eight settings of TCCD."""
    generator = np.random.default_rng(seed)
    ids = [f"q{i}" for i in range(n)] if questions is None else questions
    images = [f"i{i // 4}" for i in range(n)]
    tasks = [TASKS[i % 2] for i in range(n)]
    truth = [WORDS[i % len(WORDS)] for i in range(n)]
    plain = generator.random(n) < 0.7

    def given(right):
        return labels([t if ok else "no" for t, ok in zip(truth, right, strict=True)])

    def erased(modality, layer, alpha, right):
        return {
            "model": name,
            "modality": modality,
            "layer": layer,
            "k": 16,
            "bank": "bank",
            "alpha_interp": alpha,
        } | {
            "segment": "all" if modality == "text" else "tokens",
            **cost(plain, right, tasks),
            "labels": given(right),
            "displacement": 3.0 * (1 - alpha),
            "right": bits(right),
        }

    cells = []
    for modality, share in (("text", 0.5), ("vision", 0.12)):
        for layer in layers:
            for alpha in (0.0, 0.4, 0.8):
                cells.append(erased(modality, layer, alpha, flipped(generator, plain, 0.02, share * (1 - alpha))))
    vision = len(layers) * 3
    controls = []
    for kind, of, against in (
        ("random-direction", 0, None),
        ("random-centroid", vision, None),
        ("dose-matched", 0, vision),
        ("spare-answer", 0, None),
    ):
        right = flipped(generator, plain, 0.02, 0.05)
        row = {"kind": kind, "cell": of} | erased(cells[of]["modality"], cells[of]["layer"], 0.0, right)
        controls.append(row | ({} if against is None else {"against": against}))
    contrasts = []
    for layer in layers:
        for alpha in (0.0, 0.4):
            for strength in (0.5, 1.0):
                right = flipped(generator, plain, helped * strength, harmed)
                contrasts.append(
                    {"model": name, "layer": layer, "k": 16, "bank": "bank", "alpha_interp": alpha}
                    | {"alpha_cd": strength, "beta": 0.0, "gate": None, "gate_threshold": 0.5, "gate_ramp": 0.0}
                    | gain(plain, right, tasks)
                    | {"labels": given(right), "right": bits(right)}
                )
    for rows in (cells, controls, contrasts):
        for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_holm"] = float(p)
    blind = generator.random(n) < 0.4
    named = np.array(tasks)
    return {
        "schema": SCHEMA,
        "title": f"Centroid cost of {name}",
        "created": "2026-01-31T12:00:00+00:00",
        "versions": {"tccd": "0.1.0"},
        "config": {"data": "easy-vqa", "split": "test", "limit": n, "seed": 42},
        "models": {
            name: {
                "description": f"the {name} one",
                "family": family,
                "parameters": 1_459_840,
                "accuracy": accuracy(plain),
                "blind": accuracy(blind)
                | {
                    "kind": "the image replaced by a neutral grey one of its size",
                    "by_task": [
                        {"task": t, "n": int((named == t).sum()), "accuracy": float(blind[named == t].mean())}
                        for t in TASKS
                    ],
                },
                "majority": {"n": n, "accuracy": 0.3, "kind": "each question's most frequent answer"},
                "labels": given(plain),
                "truth": labels(truth),
            }
        },
        "cells": cells,
        "controls": controls,
        "ratio": {
            name: {
                "layer": layers[0],
                "k": 16,
                "alpha_interp": 0.0,
                "ratio": 4.0,
                "ci95": [2.5, 7.0],
                "reason": None,
            }
            | {"dose_matched": {"ratio": None, "ci95": None, "reason": "not estimable: it reaches zero"}}
        },
        "tccd_cells": contrasts,
        "protocols": {name: protocols(contrasts)},
        "examples": [
            {"model": name, "image": picture(), "prompt": "Is there a circle?", "answer": "yes", "plain": "yes"}
            | {"erased": [{"cell": 0, "answer": "no"}, {"cell": vision, "answer": "yes"}]}
        ],
        "questions": {
            name: {
                "id": ids,
                "image_id": images,
                "task": tasks,
                "answer": truth,
                "plain": [t if ok else "no" for t, ok in zip(truth, plain, strict=True)],
                "right": bits(plain),
                "blind_right": bits(blind),
            }
        },
    }
