"""What contrast gains and what it harms, by rule: `python -m eval.accuracy`.

On both default models: plain decoding, TCCD as published, with plausibility, and with each gate. Settings are
chosen on one half of easy-VQA's test images over both models together, by one rule for all: the largest gain
of the competing model among settings that cost the grounded model at most 0.1 points there (the least harmful
where there is none). The other half is reported.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eval.banks import arms, fit_banks
from eval.datasets.easy_vqa import balanced, halves, majority_answers, minority, sample
from eval.zoo import load
from probes.asking.arms import Answers, answer
from probes.report.envelope import envelope
from probes.statistics.clusters import clusters_of_samples
from probes.statistics.folds import best
from probes.statistics.outcomes import gain
from tccd import CentroidBank, TCCDConfig
from tccd.atomic import write_atomic
from tccd.data import Sample, load_samples

MODELS = ("llava-competing", "llava-grounded")
RULES = ("tccd", "plausibility", "margin", "entropy", "jsd")
LAYERS, KS, ALPHA_INTERP, ALPHA_CD = (0, 1, 2, 3), (4, 8, 16), (0.0, 0.4), (0.5, 1.0, 2.0)
THRESHOLDS = {
    "margin": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    "entropy": (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18),
    "jsd": (0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.6),
}
HARM = 0.001


@dataclass(frozen=True)
class Setting:
    """One row of the grid: which centroids, and how the contrast uses them."""

    rule: str
    k: int
    config: TCCDConfig


def grid() -> Iterator[Setting]:
    """Every setting that is compared."""
    for layer, k, kept, alpha in itertools.product(LAYERS, KS, ALPHA_INTERP, ALPHA_CD):
        base: dict[str, Any] = {"layer": layer, "alpha_interp": kept, "alpha_cd": alpha}
        yield Setting("tccd", k, TCCDConfig(**base))
        yield Setting("plausibility", k, TCCDConfig(**base, beta=0.1))
        for gate, thresholds in THRESHOLDS.items():
            for threshold in thresholds:
                yield Setting(gate, k, TCCDConfig(**base, gate=gate, gate_threshold=threshold))


def measure(
    name: str,
    banks: dict[int, CentroidBank],
    samples: Sequence[Sample],
    settings: Sequence[Setting],
    bar: Progress,
) -> Answers:
    """Answers of one default model to every sample, plain and at every setting."""
    model, processor = load(name)
    task = bar.add_task(f"{name}: {len(settings)} settings, {len(samples)} questions")

    def done(n: int, total: int) -> None:
        bar.update(task, completed=n, total=total)

    tried = arms(banks, ((s.k, s.config) for s in settings))
    return answer(model, processor, samples, tried, batch_size=50, progress=done)


def choose(settings: Sequence[Setting], competing: np.ndarray, grounded: np.ndarray) -> dict[str, int]:
    """The index of each rule's setting, from the changes in accuracy, shape (settings,), on the choosing half."""
    chosen = {}
    for rule in RULES:
        mine = np.array([s.rule == rule for s in settings])
        harmless = mine & (grounded >= -HARM)
        chosen[rule] = best(competing, harmless) if harmless.any() else best(grounded, mine)
    return chosen


def result(bar: Progress, questions: int | None = None, fit: int = 1500, seed: int = 42) -> dict[str, Any]:
    """Choose on one half, report on the other.

    Args:
        bar: shows progress.
        questions: of each half, at most; None for all.
        fit: train questions that the banks are fitted on.
        seed: of the halves, the samples and the banks.
    """
    train, test = list(load_samples("easy-vqa", split="train")), list(load_samples("easy-vqa", split="test"))
    first, second = (sample(half, questions or len(half), seed) for half in halves(test, seed))
    settings = list(grid())
    banks = {name: fit_banks(*load(name), sample(train, fit, seed), KS, seed=seed) for name in MODELS}
    changes = {}
    for name in MODELS:
        answers = measure(name, banks[name], first, settings, bar)
        changes[name] = answers.arms_correct.mean(1) - answers.clean_correct.mean()
    chosen = choose(settings, changes["llava-competing"], changes["llava-grounded"])
    wanted = [settings[i] for i in chosen.values()]
    subsets = {
        "balanced": {s.id for s in balanced(second)},
        "minority": {s.id for s in minority(second, majority_answers(train))},
    }
    rules: dict[str, Any] = {
        rule: {"k": s.k, "settings": asdict(s.config), "models": {}}
        for rule, s in zip(chosen, wanted, strict=True)
    }
    for name in MODELS:
        answers = measure(name, banks[name], second, wanted, bar)
        plain, clusters = answers.clean_correct, clusters_of_samples(second)
        for (rule, index), contrasted in zip(chosen.items(), answers.arms_correct, strict=True):
            block = gain(plain, contrasted, clusters=clusters)
            for subset, ids in subsets.items():
                at = np.array([s.id in ids for s in second])
                block[subset] = gain(plain[at], contrasted[at], clusters=clusters[at])
            block["choosing_delta"] = float(changes[name][index])
            rules[rule]["models"][name] = block
    config = {"seed": seed, "choosing": len(first), "held_out": len(second), "settings": len(settings)}
    head = envelope("Gain and harm of contrast by rule", config | {"harm_allowed": HARM}, schema="tccd-accuracy/1")
    return head | {"rules": rules}


def table(report: dict[str, Any]) -> Table:
    """Held-out change in points by rule and model."""
    shown = Table(title="Change on held-out pictures, points (largest p of by question, picture and string)")
    for head in ("rule", "settings", *(f"{name}: {part}" for name in MODELS for part in ("all", "balanced"))):
        shown.add_column(head)
    for rule, found in report["rules"].items():
        s = found["settings"]
        gate = f", {s['gate']} {s['gate_threshold']}" if s["gate"] else ""
        beta = f", beta {s['beta']}" if s["beta"] else ""
        text = f"layer {s['layer']}, K {found['k']}, keep {s['alpha_interp']}, alpha {s['alpha_cd']}{beta}{gate}"
        blocks = [b for name in MODELS for b in (found["models"][name], found["models"][name]["balanced"])]
        shown.add_row(rule, text, *(f"{100 * b['delta']:+.2f} ({b['p_value']:.1g})" for b in blocks))
    return shown


def main(out: Path = Path("out/accuracy"), questions: int | None = None, fit: int = 1500) -> dict[str, Any]:
    """Measure, print the table, write `out`/accuracy.json."""
    torch.manual_seed(0)
    with Progress(console=Console(stderr=True)) as bar:
        report = result(bar, questions, fit)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "accuracy.json", (json.dumps(report, indent=1) + "\n").encode())
    Console(width=200).print(table(report))
    return report


if __name__ == "__main__":
    main()
