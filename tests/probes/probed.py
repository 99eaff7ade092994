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


class Drawn:
    """Outcomes of one model on n questions, four about each image, and what it did under each intervention."""

    def __init__(self, name, n, seed, layers):
        self.generator = np.random.default_rng(seed)
        self.name, self.n, self.layers = name, n, layers
        self.tasks = [TASKS[i % 2] for i in range(n)]
        self.truth = [WORDS[i % len(WORDS)] for i in range(n)]
        self.plain = self.generator.random(n) < 0.7

    def changed(self, helped, harmed):
        return flipped(self.generator, self.plain, helped, harmed)

    def given(self, right):
        return labels(self.answers(right))

    def answers(self, right):
        return [t if ok else "no" for t, ok in zip(self.truth, right, strict=True)]

    def erased(self, modality, layer, alpha, right):
        return {
            "model": self.name,
            "modality": modality,
            "layer": layer,
            "k": 16,
            "bank": "bank",
            "alpha_interp": alpha,
            "segment": "all" if modality == "text" else "tokens",
            **cost(self.plain, right, self.tasks),
            "labels": self.given(right),
            "displacement": 3.0 * (1 - alpha),
            "right": bits(right),
        }

    def cells(self):
        """Two modalities, each layer, three doses."""
        return [
            self.erased(modality, layer, alpha, self.changed(0.02, share * (1 - alpha)))
            for modality, share in (("text", 0.5), ("vision", 0.12))
            for layer in self.layers
            for alpha in (0.0, 0.4, 0.8)
        ]

    def controls(self, cells):
        """The four controls, of the strongest text or vision cell."""
        vision = len(self.layers) * 3
        rows = []
        for kind, of, against in (
            ("random-direction", 0, None),
            ("random-centroid", vision, None),
            ("dose-matched", 0, vision),
            ("spare-answer", 0, None),
        ):
            right = self.changed(0.02, 0.05)
            row = {"kind": kind, "cell": of} | self.erased(cells[of]["modality"], cells[of]["layer"], 0.0, right)
            rows.append(row | ({} if against is None else {"against": against}))
        return rows

    def contrasts(self, helped, harmed):
        """Each layer, two doses, two strengths of TCCD."""
        rows = []
        for layer in self.layers:
            for alpha in (0.0, 0.4):
                for strength in (0.5, 1.0):
                    right = self.changed(helped * strength, harmed)
                    rows.append(
                        {"model": self.name, "layer": layer, "k": 16, "bank": "bank", "alpha_interp": alpha}
                        | {"alpha_cd": strength, "beta": 0.0}
                        | {"gate": None, "gate_threshold": 0.5, "gate_ramp": 0.0}
                        | gain(self.plain, right, self.tasks)
                        | {"labels": self.given(right), "right": bits(right)}
                    )
        return rows

    def model(self, family, blind):
        """The model, its plain answers and those without the image."""
        named = np.array(self.tasks)
        by_task = [
            {"task": t, "n": int((named == t).sum()), "accuracy": float(blind[named == t].mean())} for t in TASKS
        ]
        return {
            "description": f"the {self.name} one",
            "family": family,
            "parameters": 1_459_840,
            "accuracy": accuracy(self.plain),
            "blind": accuracy(blind)
            | {"kind": "the image replaced by a neutral grey one of its size", "by_task": by_task},
            "majority": {"n": self.n, "accuracy": 0.3, "kind": "each question's most frequent answer"},
            "labels": self.given(self.plain),
            "truth": labels(self.truth),
        }

    def questions(self, ids, blind):
        return {
            "id": [f"q{i}" for i in range(self.n)] if ids is None else ids,
            "image_id": [f"i{i // 4}" for i in range(self.n)],
            "task": self.tasks,
            "answer": self.truth,
            "plain": self.answers(self.plain),
            "right": bits(self.plain),
            "blind_right": bits(blind),
        }


def asymmetry(layer):
    told = {"ratio": 4.0, "ci95": [2.5, 7.0], "reason": None}
    matched = {"ratio": None, "ci95": None, "reason": "not estimable: it reaches zero"}
    return {"layer": layer, "k": 16, "alpha_interp": 0.0, **told, "dose_matched": matched}


def example(name, vision_cell):
    asked = {"model": name, "image": picture(), "prompt": "Is there a circle?", "answer": "yes", "plain": "yes"}
    return asked | {"erased": [{"cell": 0, "answer": "no"}, {"cell": vision_cell, "answer": "yes"}]}


def probed(
    name="competing", family="llava", *, n=200, seed=0, helped=0.6, harmed=0.02, layers=(1, 2), questions=None
):
    """A report over one model: two layers, three doses, four controls, eight settings of TCCD."""
    drawn = Drawn(name, n, seed, layers)
    cells = drawn.cells()
    controls = drawn.controls(cells)
    contrasts = drawn.contrasts(helped, harmed)
    for rows in (cells, controls, contrasts):
        for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_holm"] = float(p)
    blind = drawn.generator.random(n) < 0.4
    return {
        "schema": SCHEMA,
        "title": f"Centroid cost of {name}",
        "created": "2026-01-31T12:00:00+00:00",
        "versions": {"tccd": "0.1.0"},
        "config": {"data": "easy-vqa", "split": "test", "limit": n, "seed": 42},
        "models": {name: drawn.model(family, blind)},
        "cells": cells,
        "controls": controls,
        "ratio": {name: asymmetry(layers[0])},
        "tccd_cells": contrasts,
        "protocols": {name: protocols(contrasts)},
        "examples": [example(name, len(layers) * 3)],
        "questions": {name: drawn.questions(questions, blind)},
    }
