"""`make demo`: the whole job on the default models and easy-VQA's test split, in one report.

Banks are fitted on train images. Centroid cost is measured by layer. TCCD's settings are chosen on half of
the test pictures with the competing model, and both models are measured at them on the other half, by really
generating.
"""

from __future__ import annotations

import base64
import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from eval.banks import arms, fit_banks
from eval.datasets.easy_vqa import balanced, halves, majority_answers, minority, sample
from eval.zoo import load
from probes.asking.arms import answer
from probes.replacement import run
from probes.report import write_report
from probes.report.envelope import envelope
from probes.report.prose import shared
from probes.report.sections import answer as answer_of
from probes.statistics.clusters import clusters_of_samples
from probes.statistics.folds import best
from probes.statistics.outcomes import accuracy, gain
from tccd import TCCD, CentroidBank, TCCDConfig
from tccd.data import Sample, load_samples
from tccd.inputs import encode

MODELS = {
    "grounded": "Looks at the image. There is little to recover, and contrast should leave it alone.",
    "competing": "The same model with a strengthened language prior: it sees, and often answers by the prior.",
}
WORKERS = 2
#: What the competing model chooses from, on one half of the test images.
LAYERS, KS = (0, 1, 2, 3), (4, 8, 16)
ALPHA_INTERP, ALPHA_CD, BETA = (0.0, 0.4), (0.5, 1.0, 2.0), (0.0, 0.1)


def grid() -> Iterator[tuple[int, TCCDConfig]]:
    """Every K and settings that the competing model chooses from."""
    for layer, k, kept in itertools.product(LAYERS, KS, ALPHA_INTERP):
        for alpha, beta in itertools.product(ALPHA_CD, BETA):
            yield k, TCCDConfig(alpha_cd=alpha, alpha_interp=kept, layer=layer, beta=beta)


class Measured(NamedTuple):
    """A model on the held-out half: the gain, every item's two answers, and a few examples."""

    blocks: dict[str, Any]
    rows: list[dict[str, Any]]
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """How much the demo looks at.

    Attributes:
        fit: train questions that the banks are fitted on.
        cost: test questions that centroid cost is measured on.
        choose: test questions of the first half that settings are chosen on.
        held_out: test questions of the other half that the gain is measured on; None for all.
        k: centroids of the banks whose cost is measured.
    """

    fit: int = 1500
    cost: int = 1500
    choose: int = 1600
    held_out: int | None = None
    k: tuple[int, ...] = (16,)


Tick = Callable[[int, int], None]
#: (what is being done, done, in all)
Report = Callable[[str, int, int], None]


class Demo:
    """The demo's steps on its models, data and two halves of the test images; one in each worker process."""

    def __init__(self, sizes: Sizes, report: Report, seed: int = 42) -> None:
        self.sizes, self.seed, self._report = sizes, seed, report
        self.zoo = {name: load(f"llava-{name}") for name in MODELS}
        self.train = list(load_samples("easy-vqa", split="train"))
        test = list(load_samples("easy-vqa", split="test"))
        self.majority = majority_answers(self.train)
        self.choosing, rest = halves(test, seed)
        self.held_out = rest[: sizes.held_out]
        self.test = test

    def tick(self, title: str) -> Tick:
        """A callback that reports (done, total) under a title."""
        return lambda done, total: self._report(title, done, total)

    def banks(self, name: str) -> dict[int, CentroidBank]:
        """Banks of a model by K, fitted on train questions at every layer that has one above it."""
        model, processor = self.zoo[name]
        samples = sample(self.train, self.sizes.fit, self.seed)
        tick = self.tick(f"{name}: fit banks")
        return fit_banks(model, processor, samples, (*self.sizes.k, *KS), seed=self.seed, progress=tick)

    def cost(self, name: str) -> tuple[dict[int, CentroidBank], dict[str, Any]]:
        """A model's banks, and its centroid cost by layer and modality."""
        banks = self.banks(name)
        samples = sample(self.test, self.sizes.cost, self.seed)
        wanted = [banks[k] for k in self.sizes.k]
        tick = self.tick(f"{name}: centroid cost")
        return banks, run(*self.zoo[name], samples, wanted, name=name, batch_size=50, progress=tick)

    def try_settings(
        self, name: str, banks: dict[int, CentroidBank], share: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """Right or not on a share of the choosing half: plain, shape (n,), and by setting, (settings, n)."""
        samples = sample(self.choosing, self.sizes.choose, self.seed)[share]
        tried = arms(banks, grid())
        tick = self.tick(f"{name}: try {len(tried)} settings, part {(share.start or 0) + 1}")
        answers = answer(*self.zoo[name], samples, tried, batch_size=50, progress=tick)
        return answers.clean_correct, answers.arms_correct

    def measure(self, name: str, bank: CentroidBank, config: TCCDConfig) -> Measured:
        """Generate plain and with TCCD on the held-out half."""
        model, processor = self.zoo[name]
        tccd = TCCD(model, bank, config=config)
        words: dict[str, list[str]] = {
            arm: self._generate(f"{name}: {title}", model, processor, door)
            for arm, title, door in (("plain", "plain answers", None), ("tccd", "TCCD answers", tccd))
        }
        rows = [
            {"id": s.id, "image_id": s.image_id, "picture": s.picture_digest, "task": s.task}
            | {"prompt": s.prompt, "answer": s.answer}
            | {arm: words[arm][i] for arm in words}
            for i, s in enumerate(self.held_out)
        ]
        return Measured(self._blocks(rows), rows, self.examples(name, bank, config, rows))

    def _generate(self, title: str, model: Any, processor: Any, tccd: TCCD | None) -> list[str]:
        tick, words, size = self.tick(title), [], 50
        for start in range(0, len(self.held_out), size):
            chunk = self.held_out[start : start + size]
            inputs = encode(processor, [[s.image] for s in chunk], [s.prompt for s in chunk])
            tokens = model.generate(**inputs, custom_generate=tccd, max_new_tokens=3, do_sample=False)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            words += [w.strip() for w in processor.batch_decode(new, skip_special_tokens=True)]
            tick(start + len(chunk), len(self.held_out))
        return words

    def _blocks(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        plain = np.array([r["plain"] == r["answer"] for r in rows])
        contrasted = np.array([r["tccd"] == r["answer"] for r in rows])
        clusters = clusters_of_samples(self.held_out)

        def subset(samples: Sequence[Sample], note: str) -> dict[str, Any]:
            ids = {s.id for s in samples}
            at = np.array([r["id"] in ids for r in rows])
            return gain(plain[at], contrasted[at], clusters=clusters[at]) | {"note": note}

        return gain(plain, contrasted, [r["task"] for r in rows], clusters) | {
            "balanced": subset(balanced(self.held_out), "yes/no questions, as many yes as no for each question"),
            "minority": subset(
                minority(self.held_out, self.majority), "answers that are not their question's most frequent one"
            ),
        }

    def blind(self) -> dict[str, Any]:
        """Accuracy of each question's most frequent train answer: what can be had without the image."""
        right = np.array([self.majority.get(s.prompt) == s.answer for s in self.held_out])
        return accuracy(right, clusters_of_samples(self.held_out))

    def examples(
        self, name: str, bank: CentroidBank, config: TCCDConfig, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """A few held-out questions, the first of each kind: put right, made wrong, and kept."""
        helped: dict[str, dict[str, Any]] = {}
        harmed: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        for row in rows:
            plain, contrasted = row["plain"] == row["answer"], row["tccd"] == row["answer"]
            if contrasted and not plain:
                helped.setdefault(row["task"], row)  # one of a task shows more than four of one
            elif plain:
                (kept if contrasted else harmed).append(row)
        chosen = [*list(helped.values())[:4], *harmed[:1], *kept[:1]]
        by_id = {s.id: s for s in self.held_out}
        return [self._example(name, bank, config, by_id[row["id"]], row) for row in chosen]

    def _example(
        self, name: str, bank: CentroidBank, config: TCCDConfig, of: Sample, row: dict[str, Any]
    ) -> dict[str, Any]:
        model, processor = self.zoo[name]
        inputs = encode(processor, [[of.image]], [of.prompt])
        tccd = TCCD(model, bank, config=config)
        block: dict[str, Any] = {"model": name, "image": _data_uri(of), "prompt": of.prompt}
        block |= {key: row[key] for key in ("answer", "plain", "tccd")}
        for arm, door in (("plain", None), ("tccd", tccd)):
            output = model.generate(
                **inputs,
                custom_generate=door,
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            top = output.logits[0][0].float().softmax(-1).topk(3)
            block[f"{arm}_probability"] = {
                processor.decode([int(t)]).strip(): float(p) for p, t in zip(*top, strict=True) if p > 0.001
            }
        return block


def _data_uri(sample: Sample) -> str:
    buffer = io.BytesIO()
    sample.image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def result(pool: Workers, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Run the whole demo; a result as `probes.report` writes it."""
    found = dict(zip(MODELS, pool.map("cost", [(name,) for name in MODELS]), strict=True))
    shares = [slice(i, None, WORKERS) for i in range(WORKERS)]
    tried = pool.map("try_settings", [("competing", found["competing"][0], share) for share in shares])
    plain, contrasted = np.concatenate([t[0] for t in tried]), np.concatenate([t[1] for t in tried], axis=1)
    chosen = best(contrasted.sum(1))
    k, config = list(grid())[chosen]
    measured = pool.map("measure", [(name, found[name][0][k], config) for name in MODELS])
    choices = {"layer": LAYERS, "k": KS, "alpha_interp": ALPHA_INTERP, "alpha_cd": ALPHA_CD, "beta": BETA}
    report = envelope(
        "What language costs a small vision-language model, and what TCCD gives back",
        {"seed": seed, "sizes": asdict(sizes), "grid": choices, "workers": WORKERS, "data": "easy-vqa 1.0"},
    )
    (blind,) = pool.map("blind", [()])
    report |= {
        "models": {n: found[n][1]["models"][n] | {"description": MODELS[n], "blind": blind} for n in MODELS},
        "cells": [cell for name in MODELS for cell in found[name][1]["cells"]],
        "ratio": {key: value for name in MODELS for key, value in found[name][1]["ratio"].items()},
        "data": {n: found[n][1]["data"][n] for n in MODELS},
        "warnings": [warning for name in MODELS for warning in found[name][1]["warnings"]],
        "tccd": {},
        "examples": [],
        "items": {},
        "questions": {name: found[name][1]["questions"][name] for name in MODELS},
    }
    in_sample = float(contrasted[chosen].mean() - plain.mean())
    chosen_on = {"model": "competing", "n": len(plain), "in_sample_delta": in_sample}
    settings = {"chosen_with": "competing", "k": k} | asdict(config)
    for name, (blocks, rows, examples) in reversed(list(zip(MODELS, measured, strict=True))):
        report["tccd"][name] = {"settings": settings, "chosen_on": chosen_on} | blocks
        report["examples"] += examples
        report["items"][name] = rows
    return report


class Workers:
    """Processes of one thread each: on two cores twice as fast as one process of two threads.

    Args:
        sizes, seed: of each process's `Demo`.
        progress: shows what the processes report.
    """

    def __init__(self, sizes: Sizes, seed: int, progress: Progress) -> None:
        self._progress = progress
        self._context = get_context("spawn")
        self._queue = self._context.Queue()
        start = (sizes, seed, self._queue)
        self._pool = ProcessPoolExecutor(WORKERS, self._context, initializer=_start_worker, initargs=start)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of `Demo` with each of the arguments, side by side."""
        return [future.result() for future in [self._pool.submit(_call, method, *call) for call in calls]]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()
        self._queue.put(None)
        self._listener.join()

    def _listen(self) -> None:
        tasks: dict[str, TaskID] = {}
        while (message := self._queue.get()) is not None:
            title, done, total = message
            if title not in tasks:
                tasks[title] = self._progress.add_task(title)
            self._progress.update(tasks[title], completed=done, total=total)


_demo: Demo


def _start_worker(sizes: Sizes, seed: int, queue: Any) -> None:
    global _demo
    torch.set_num_threads(1)
    disable_progress_bar()
    _demo = Demo(sizes, lambda *message: queue.put(message), seed)


def _call(method: str, *args: Any) -> Any:
    return getattr(_demo, method)(*args)


def table(report: dict[str, Any]) -> list[Table]:
    """The answer, as two small tables."""
    cost = Table(title="Centroid cost: accuracy points lost when a modality is replaced by its centroids")
    layers = sorted({cell["layer"] for cell in report["cells"]})
    for head in ("model", "modality", "K", *(f"layer {layer}" for layer in layers)):
        cost.add_column(head, justify="right" if head.startswith("layer") or head == "K" else "left")
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for cell in report["cells"]:
        rows.setdefault((cell["model"], cell["modality"], cell["k"]), {})[cell["layer"]] = cell
    for (model, modality, k), by_layer in rows.items():
        cost.add_row(model, modality, str(k), *(f"{100 * by_layer[layer]['cost']:.1f}" for layer in layers))
    gains = Table(title="TCCD on held-out pictures, settings chosen on the others with the competing model")
    for head in ("model", "questions", "n", "plain", "TCCD", "change", "95 % interval", "p"):
        gains.add_column(head, justify="left" if head in ("model", "questions") else "right")
    for model, block in report["tccd"].items():
        for title, part in (("all", block), ("balanced", block["balanced"]), ("minority", block["minority"])):
            low, high = part["ci95"]
            figures = [f"{100 * part[key]:.1f}" for key in ("baseline", "accuracy")]
            figures.append(f"{100 * part['delta']:+.1f}")
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            gains.add_row(model, title, str(part["n"]), *figures, interval, f"{part['p_value']:.2g}")
    return [cost, gains]


def main(out: Path = Path("out/demo"), sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the demo, print its tables, write report.json and report.html to `out`."""
    started, sizes, seed = time.perf_counter(), sizes or Sizes(), 42
    with Progress(console=Console(stderr=True)) as progress:
        pool = Workers(sizes, seed, progress)
        try:
            report = result(pool, sizes, seed)
        finally:
            pool.close()
    report["config"]["seconds"] = round(time.perf_counter() - started, 1)
    files = write_report(report, out)
    console = Console()
    for each in table(report):
        console.print(each)
    console.print(
        f"Held out: {shared(report['tccd']['competing'])}; the strings were seen when settings were chosen. "
        "Intervals and p: the widest and the largest of by question, by picture and by question string."
    )
    for sentence in answer_of(report):
        console.print(sentence, markup=False)
    for example in report["examples"][:4]:
        question = f"{example['prompt']} (truth: {example['answer']})"
        console.print(f"{question}  plain: [red]{example['plain']}[/]  TCCD: [green]{example['tccd']}[/]")
    console.print(f"{report['config']['seconds']:.0f} s. Report: {files[0]}, {files[1]}")
    return report


if __name__ == "__main__":
    main()
