"""Reports that tests of the page and its JSON look at, and a reader of pages."""

from __future__ import annotations

from html.parser import HTMLParser

from probes.compare import compare
from probes.report import SCHEMA
from probes.statistics.intervals import difference_interval, mcnemar_counts, wilson
from tests.probes.probed import picture, probed

HOSTILE = "<script>alert('x')</script> \"&amp; $x^2$ {{ 7 * 7 }} \x07"


def change(n, right, b, c):
    low, high = difference_interval(c, b, n)
    return {
        "n": n,
        "baseline": right / n,
        "accuracy": (right + c - b) / n,
        "delta": (c - b) / n,
        "ci95": [low, high],
        "p_value": mcnemar_counts(b, c).p_value,
        "helped": c,
        "harmed": b,
    }


def cell(model, modality, layer, lost, gained=1, n=400, right=380, **more):
    low, high = difference_interval(lost, gained, n)
    accuracy = (right - lost + gained) / n
    by_task = [{"task": t, "n": n // 2, "baseline": right / n, "accuracy": accuracy} for t in ("shape", "colour")]
    return {
        "model": model,
        "modality": modality,
        "layer": layer,
        "k": 16,
        "alpha_interp": 0.0,
        "segment": "all",
        "n": n,
        "baseline": right / n,
        "accuracy": accuracy,
        "cost": (lost - gained) / n,
        "ci95": [low, high],
        "p_value": mcnemar_counts(lost, gained).p_value,
        "by_task": by_task,
        **more,
    }


def run(n, right, b, c):
    tasks = [
        {"task": name, "n": n // 2, "baseline": right / n, "accuracy": (right + c - b) / n}
        for name in ("shape yes/no", "the colour of a shape, asked at some length")
    ]
    return {
        "settings": {"layer": 3, "k": 8, "alpha_interp": 0.4, "alpha_cd": 2.0, "gate": None},
        **change(n, right, b, c),
        "balanced": change(n // 2, right // 2, b // 2, c // 2),
        "by_task": tasks,
        "chosen_on": {"n": n, "baseline": 0.8, "accuracy": 0.85},
    }


def example(model, prompt="Is there a circle?"):
    return {
        "model": model,
        "image": picture(),
        "prompt": prompt,
        "answer": "yes",
        "plain": "no",
        "tccd": "yes",
        "plain_probability": {"no": 0.6, "yes": 0.4},
        "tccd_probability": {"yes": 0.9, "no": 0.1},
    }


def result():
    models = {
        name: {
            "description": f"the {name} one",
            "accuracy": {
                "n": 800,
                "correct": right,
                "accuracy": right / 800,
                "ci95": list(wilson(right, 800)),
            },
            "blind": {"n": 800, "accuracy": 0.67},
            "parameters": 1_459_840,
        }
        for name, right in (("competing", 640), ("grounded", 784))
    }
    cells = [
        cell(model, modality, layer, lost=(60 if modality == "text" else 6) - 4 * layer)
        for model in models
        for modality in ("text", "vision")
        for layer in range(2)
    ]
    return {
        "schema": SCHEMA,
        "title": "A report",
        "created": "2026-01-31T12:00:00+00:00",
        "versions": {"tccd": "0.1.0"},
        "config": {"seed": 42},
        "models": models,
        "cells": cells,
        "ratio": {
            "competing": {"layer": 1, "ratio": 4.0, "ci95": [2.5, 7.0], "reason": None},
            "grounded": {"layer": 1, "ratio": None, "ci95": None, "reason": "not estimable: it reaches zero"},
        },
        "tccd": {"competing": run(400, 320, 10, 40), "grounded": run(400, 392, 3, 2)},
        "examples": [example("competing"), example("grounded", HOSTILE)],
        "items": {"competing": [{"id": "q1", "answer": "yes", "plain": "no", "tccd": "yes"}], "grounded": []},
    }


def compared():
    """Two models of two families, one of them with a name and labels that are long."""
    return compare(
        {"a": probed(), "b": probed("a-model-with-quite-a-long-name-7b", "qwen2_5_vl", seed=1, helped=0)}
    )


RESULTS = {"demo": result, "one": probed, "two": compared}


class Reader(HTMLParser):
    """Open tags, text, and every attribute of a page; fails where tags don't nest."""

    VOID = frozenset(["meta", "link", "img", "br", "path", "use", "rect"])

    def __init__(self, page):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
