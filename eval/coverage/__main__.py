"""Validates the coverage probe where the truth is known: `python -m eval.coverage [--out FILE]`.

On each of two sources, easy-VQA by its 24 kinds of scene and single digits by their 10 values:

- kinds are dropped, in nested steps and in an order that is drawn anew several times: does coverage at an equal
  number of pictures rank the choices as their number of kinds does?
- every image stands in the set twice: does coverage stay?
- images get all their questions rather than one: does the density of text codes rise, and that of vision codes
  stay?

The codebooks are of `llava-grounded`, fitted on train images of both sources together. Under a minute on a
CPU core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.coverage.known import scenes, taken
from eval.zoo import load
from probes.coverage import Source, coverage
from probes.coverage.assigning import Codebooks
from probes.coverage.counts import growth
from probes.coverage.measure import gather
from probes.coverage.store import Store
from probes.report.envelope import envelope
from tccd import CentroidBank, fit_bank
from tccd.data import Samples, load_samples, union
from tccd.errors import require
from tccd.modality import Modality

MODEL, K = "llava-grounded", 64
LAYERS: dict[Modality, int] = {"text": 3, "vision": 3}
SOURCES = ("easy-vqa", "digits")
#: Images of each kind; kinds that the choices keep; draws of the order in which kinds are dropped.
EACH, ORDERS = 40, 20
STEPS = {"easy-vqa": range(2, 25, 2), "digits": range(1, 11)}


def rank_correlation(
    store: Store, kinds: Sequence[int], steps: Sequence[int], codebooks: Codebooks
) -> dict[str, Any]:
    """Spearman's correlation of coverage with the number of kinds, by codebook, over several orders of dropping.

    Args:
        store: codes of one sample an image.
        kinds: of each.
        steps: numbers of kinds that are kept.
        codebooks: that the codes are of.
    """
    spearman = require("scipy.stats", "report").spearmanr
    total = max(kinds) + 1
    least = min(np.bincount(kinds, minlength=total))
    size = int(least) * min(steps)
    found: dict[str, list[float]] = {name: [] for name in ("vision", "text", "pairs")}
    rows = []
    for seed in range(ORDERS):
        order = np.random.default_rng(seed).permutation(total)
        shares: dict[str, list[float]] = {name: [] for name in found}
        for count in steps:
            kept = set(order[:count].tolist())
            tallies = gather(taken(store, [kind in kept for kind in kinds]), codebooks.k, draws=0).codebooks()
            for name in found:
                covered = growth(tallies[name].counts, tallies[name].n, [size])[0]
                shares[name].append(covered / codebooks.k[name])
        for name, values in shares.items():
            found[name].append(float(spearman(list(steps), values).statistic))
        rows.append(shares)
    return {
        "kinds": list(steps),
        "at_pictures": size,
        "orders": ORDERS,
        "spearman": {
            name: {"mean": float(np.mean(values)), "lowest": min(values), "of_means": _of_means(rows, name, steps)}
            for name, values in found.items()
        },
        "coverage": {name: np.mean([row[name] for row in rows], axis=0).tolist() for name in found},
    }


def _of_means(rows: Sequence[dict[str, list[float]]], name: str, steps: Sequence[int]) -> float:
    spearman = require("scipy.stats", "report").spearmanr
    return float(spearman(list(steps), np.mean([row[name] for row in rows], axis=0)).statistic)


def validate(model: Any, processor: Any, bank: CentroidBank, source: str) -> dict[str, Any]:
    """All three on one source.

    Args:
        model, processor: that the bank is of.
        bank: the codebooks'.
        source: one of `SOURCES`.
    """

    def measured(samples: Samples, draws: int = 0) -> Any:
        return coverage(model, processor, [Source(source, samples)], bank, draws=draws)

    samples, kinds = scenes(source, EACH)
    whole = measured(samples)
    ranked = rank_correlation(whole.stores[source], kinds, list(STEPS[source]), whole.codebooks)
    twice = [replace(one, id=f"copy {one.id}", image_id=f"copy {one.image_id}") for one in samples]
    copied = measured(Samples((*samples.items, *twice), source, "train"))
    densities = []
    for per_image in (1, None):
        asked = load_samples(source, split="train", images=200, per_image=per_image, seed=0)
        result = measured(asked, 200).result
        densities.append(
            {row["measure"]: {"value": row["value"], "ci95": row["ci95"]} for row in result["density"]}
        )
    return {
        "images": len(samples),
        "kinds_of_scene": max(kinds) + 1,
        "dropping_kinds": ranked,
        "copies_change_nothing": copied.result["coverage"] == whole.result["coverage"],
        "one_question": densities[0],
        "all_questions": densities[1],
    }


def main() -> None:
    """Fit the codebooks, validate on each source, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("eval/results/coverage.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    model, processor = load(MODEL)
    both = union([load_samples(one, split="train", images=1000, per_image=1, seed=3) for one in SOURCES])
    bank = fit_bank(
        model, processor, both, layers=LAYERS, k=K, images=None, prompt=None, batch_size=32, vision_mean=False
    )
    found = {source: validate(model, processor, bank, source) for source in SOURCES}
    config = {"model": MODEL, "layers": LAYERS, "k": K, "each": EACH}
    result = envelope("Coverage where the truth is known", config, schema="tccd-coverage-validation/1")
    result |= {"sources": found, "cpu_seconds": round(time.process_time() - started, 1)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for source, one in found.items():
        print(source, json.dumps(one["dropping_kinds"]["spearman"]))
        print(" copies change nothing:", one["copies_change_nothing"])
        for name in ("text", "vision"):
            few, many = (one[key][name]["value"] for key in ("one_question", "all_questions"))
            print(f" {name} codes a picture, with one question {few:.2f}, with all {many:.2f}")
    print(f"{result['cpu_seconds']} CPU seconds; written to {options.out}")


if __name__ == "__main__":
    main()
