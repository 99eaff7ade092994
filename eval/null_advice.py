"""How often `advise` says "on" where contrast gains nothing, and where it does: `python -m eval.null_advice`.

Data sets are drawn whose truth is known. Questions are about pictures and come in question strings, and both have
a say in what a setting changes: a change is a normal value beyond a threshold, the sum of a picture's part, a
string's part and the question's own. Settings of one reference share most of it, as doses of one thing do, and
change from 1 to 6 % of the right answers. Those of two references share a third of that, and every third setting
has the other sign. The thresholds are such that each setting's true gain is what is asked for. Each data set
becomes a report, and `probes.advise.advise` judges it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from probes.advise import advise
from probes.references import KINDS, TEXT
from probes.report.envelope import envelope
from probes.statistics.outcomes import bits
from probes.statistics.signs import GAINS
from tccd.atomic import write_atomic

RIGHT = 0.75
"""Plain accuracy."""
HARMED = (0.01, 0.06)
"""Share of right answers made wrong, from the mildest setting to the strongest."""
BY_PICTURE, BY_STRING, SHARED = 0.15, 0.10, 0.6
"""Shares of a change's variance: a picture's part, a question string's, and what all settings have in common."""
ALIKE = 1 / 3
"""Of what settings of one reference have in common, the share that those of two references have."""
HARM = 0.05
"""What the strongest setting costs where contrast harms."""


@dataclass(frozen=True)
class Case:
    """One row of the simulation.

    Attributes:
        name: `nothing`: every true gain is zero; `harm`: gains from zero down to -0.05; `gain`: from zero up to
            `best`.
        settings: to choose from.
        pictures, each, strings: pictures, questions about each, question strings.
        best: the largest true gain.
        references: that the settings are of, by turns.
    """

    name: str
    settings: int
    pictures: int = 250
    each: int = 4
    strings: int = 80
    best: float = 0.0
    references: int = 1

    def gains(self) -> np.ndarray:
        """The true gain of each setting, the mildest first, shape (settings,)."""
        strongest = {"nothing": 0.0, "harm": -HARM, "gain": self.best}[self.name]
        if self.settings == 1:
            return np.array([strongest])
        return np.linspace(0.0, strongest, self.settings)


def draw(case: Case, generator: np.random.Generator) -> dict[str, Any]:
    """A report of one data set: what `advise` reads of it."""
    n, m = case.pictures * case.each, case.settings
    picture = np.repeat(np.arange(case.pictures), case.each)
    often = 1 / np.sqrt(np.arange(1, case.strings + 1))  # some wordings are asked more often than others
    string = generator.choice(case.strings, n, p=often / often.sum())

    def change(rows: int) -> np.ndarray:
        value = np.sqrt(BY_PICTURE) * generator.standard_normal((rows, case.pictures))[:, picture]
        value += np.sqrt(BY_STRING) * generator.standard_normal((rows, case.strings))[:, string]
        return value + np.sqrt(1 - BY_PICTURE - BY_STRING) * generator.standard_normal((rows, n))

    of = np.arange(m) % case.references
    if case.references == 1:
        shared = change(1)
    else:
        shared = np.sqrt(ALIKE) * change(1) + np.sqrt(1 - ALIKE) * change(case.references)[of]
    sign = np.where((of > 0) & (np.arange(m) % 3 == 2), -1, 1)
    value = np.sqrt(SHARED) * sign[:, None] * shared + np.sqrt(1 - SHARED) * change(m)
    plain = generator.random(n) < RIGHT
    gains = case.gains()
    harmed = np.linspace(*HARMED, m) if m > 1 else np.array([np.mean(HARMED)])
    helped = (harmed * RIGHT + np.maximum(gains, 0)) / (1 - RIGHT)
    harmed = harmed + np.maximum(-gains, 0) / RIGHT
    right = np.where(plain, value >= norm.ppf(harmed)[:, None], value > norm.isf(helped)[:, None])
    rest = {"model": "drawn", "layer": 1, "k": 16, "alpha_interp": 0.0, "beta": 0.0, "gate": None}
    names = [list(KINDS)[number] for number in of] if case.references > 1 else [TEXT] * m
    return {
        "models": {"drawn": {}},
        "tccd_cells": [
            rest | {"reference": name, "alpha_cd": float(s * (i + 1)), "right": bits(row)}
            for i, (name, s, row) in enumerate(zip(names, sign, right, strict=True))
        ],
        "questions": {
            "drawn": {"image_id": [str(i) for i in picture], "prompt": [str(i) for i in string]}
            | {"task": ["all"] * n, "right": bits(plain)}
        },
    }


def simulate(case: Case, sets: int, seed: int) -> dict[str, float]:
    """Shares of drawn data sets.

    Returns:
        `on`: `advise` says so; `held_out`: the held-out interval alone lies above zero and its p is below 0.05;
        `told`: the mean power that `advise` tells for a true gain of `case.best`, where it is one of `GAINS`.
    """
    found = []
    for one in range(sets):
        generator = np.random.default_rng([seed, one])
        advice = advise(draw(case, generator), seed=one)
        evidence = advice["held_out"]
        alone = evidence["ci95"][0] > 0 and evidence["p_value"] < 0.05
        told = [p["power"] for p in advice["power"] if p["gain"] == case.best]
        found.append((advice["on"], alone, *told))
    means = np.mean(np.array(found, dtype=float), axis=0).tolist()
    return dict(zip(("on", "held_out", "told"), means, strict=False))


def cases() -> list[tuple[Case, bool]]:
    """Every case, and whether contrast does nothing in it: what the bound is about."""
    many = (1, 12, 36)
    nothing = [Case("nothing", m) for m in many]
    nothing += [Case("nothing", m, pictures=100, each=10, strings=30) for m in many]
    nothing += [Case("nothing", m, references=7) for m in (84, 252)]
    some = [Case("harm", m) for m in many] + [Case("gain", m, best=g) for m in many for g in GAINS]
    some += [Case("gain", 12, pictures=1000, best=g) for g in GAINS]
    some += [Case("gain", 84, pictures=pictures, best=g, references=7) for pictures in (250, 1000) for g in GAINS]
    return [(case, True) for case in nothing] + [(case, False) for case in some]


def result(null_sets: int, other_sets: int, workers: int, seed: int = 42) -> dict[str, Any]:
    """All cases, each over so many data sets."""
    every = cases()
    sets = [null_sets if null else other_sets for _, null in every]
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(simulate, [case for case, _ in every], sets, [seed] * len(every)))
    rows = [
        asdict(case) | {"questions": case.pictures * case.each, "sets": n} | shares
        for (case, _), n, shares in zip(every, sets, found, strict=True)
    ]
    config = {
        "seed": seed,
        "right": RIGHT,
        "harmed": HARMED,
        "by_picture": BY_PICTURE,
        "by_string": BY_STRING,
        "alike": ALIKE,
    }
    head = envelope('How often advise says "on"', config | {"shared": SHARED}, schema="tccd-null-advice/1")
    return head | {"rows": rows}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Shares in percent."""
    shown = Table(title='Data sets told "on", %')
    for head in (
        "truth",
        "references",
        "settings",
        "questions",
        "pictures",
        "strings",
        "sets",
        "on",
        "held-out interval alone",
        "power told",
    ):
        shown.add_column(head, justify="left" if head == "truth" else "right")
    for row in rows:
        truth = f"gain {100 * row['best']:g}" if row["name"] == "gain" else row["name"]
        counts = [
            f"{row[key]:,}" for key in ("references", "settings", "questions", "pictures", "strings", "sets")
        ]
        shares = [f"{100 * row[key]:.1f}" if key in row else "" for key in ("on", "held_out", "told")]
        shown.add_row(truth, *counts, *shares)
    return shown


def main() -> None:
    """Simulate, print the table, write null-advice.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/null-advice"))
    parser.add_argument("--null-sets", type=int, default=2500, help="data sets where contrast does nothing")
    parser.add_argument("--other-sets", type=int, default=200, help="data sets of every other case")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report = result(options.null_sets, options.other_sets, options.workers)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "null-advice.json", (json.dumps(report, indent=1) + "\n").encode())
    Console(width=140).print(table(report["rows"]))


if __name__ == "__main__":
    main()
