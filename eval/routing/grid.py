"""The grid: every route of one default model on the same test questions, by task, against the plain model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from eval.datasets.easy_vqa import sample
from probes.asking.forward import encode_samples
from probes.asking.scoring import targets
from probes.statistics.clusters import Clusters, clustered, clustered_wilson, clusters_of_samples
from tccd.data import Sample, load_samples
from tccd.routing import Branch, Routed
from tccd.routing.training import Training, train_branch

Kind = Literal["plain", "none", "identity", "branch"]

SOURCES = ("easy-vqa", "digits")
BATCH = 50


@dataclass(frozen=True)
class Arm:
    """One way to run a model.

    Attributes:
        kind: what the image's rows run above the split; "plain" for no route.
        split, fuse: the route.
        seed: of the branch's start and the order of its training; None where nothing is trained.
    """

    kind: Kind
    split: int = 0
    fuse: int = 0
    seed: int | None = None


def arms(layers: int, trained: Sequence[tuple[int, int]], seeds: Sequence[int]) -> Iterator[Arm]:
    """Every arm of a model of so many layers.

    Args:
        layers: of the decoder.
        trained: splits and fusions of a branch. The one with no layer between trains as much and routes nothing:
            what it gains, training gains.
        seeds: of each of them.
    """
    yield Arm("plain")
    for split in range(1, layers):
        yield Arm("none", split)
    for fuse in (1, 2):
        for split in range(1, layers - fuse):
            yield Arm("identity", split, fuse)
    for split, fuse in trained:
        for seed in seeds:
            yield Arm("branch", split, fuse, seed)


def questions(split: str, each: int, seed: int = 42) -> list[Sample]:
    """Drawn questions of both sources."""
    return [one for source in SOURCES for one in sample(list(load_samples(source, split=split)), each, seed)]


@torch.no_grad()
def answers(model: Any, processor: Any, samples: Sequence[Sample], routed: Routed | None) -> NDArray[np.bool_]:
    """Whether the next token is the right answer, shape (samples,)."""
    scorer, goals = targets(processor, samples)
    right: list[bool] = []
    with routed or nullcontext():
        for start in range(0, len(samples), BATCH):
            inputs = encode_samples(model, processor, samples[start : start + BATCH])
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            batch = goals[start : start + BATCH]
            found = scorer.read(batch, logits)
            right += [one == goal.answer for one, goal in zip(found, batch, strict=True)]
    return np.array(right)


def measure(
    model: Any,
    processor: Any,
    test: Sequence[Sample],
    train: Sequence[Sample],
    tried: Sequence[Arm],
    training: Training,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Accuracy of every arm, by task, with its difference to the plain model on the same questions.

    Args:
        model, processor: a default model.
        test: what is asked.
        train: what branches are trained on.
        tried: the arms; the first is the plain one.
        training: how; an arm's seed stands in for its own.
        progress: told of arms.
    """
    clusters = clusters_of_samples(test)
    tasks = np.array([one.task or "all" for one in test])
    rows: list[dict[str, Any]] = []
    right: dict[Arm, NDArray[np.bool_]] = {}
    for number, arm in enumerate(tried):
        told: dict[str, Any] = asdict(arm)
        routed: Routed | None = None
        if arm.kind == "branch":
            branch = Branch.new(model, arm.split, arm.fuse, seed=arm.seed)
            started = time.process_time()
            chosen = Training(**{**asdict(training), "seed": arm.seed})
            losses = train_branch(model, processor, train, branch, chosen)
            told |= {
                "share": branch.share(model),
                "loss_first": losses.mean(first=True),
                "loss_last": losses.mean(first=False),
                "cpu_seconds": time.process_time() - started,
            }
            routed = Routed(model, branch=branch)
        elif arm.kind != "plain":
            routed = Routed(model, arm.split, arm.fuse or None, arm.kind)
        right[arm] = answers(model, processor, test, routed)
        control = right.get(Arm("identity", arm.split, arm.fuse)) if arm.kind == "branch" else None
        told["tasks"] = _by_task(right[tried[0]], right[arm], control, tasks, clusters)
        rows.append(told)
        progress(number + 1, len(tried))
    return rows


def _by_task(
    plain: NDArray[np.bool_],
    arm: NDArray[np.bool_],
    control: NDArray[np.bool_] | None,
    tasks: NDArray[np.str_],
    clusters: Clusters,
) -> dict[str, Any]:
    found = {}
    for task in ("all", *sorted(set(tasks))):
        at = np.ones(len(tasks), dtype=bool) if task == "all" else tasks == task
        some = clusters[at]
        cell: dict[str, Any] = {
            "n": int(at.sum()),
            "accuracy": float(arm[at].mean()),
            "interval": clustered_wilson(arm[at], some),
            "to_plain": asdict(clustered(plain[at], arm[at], some)),
        }
        if control is not None:
            cell["to_identity"] = asdict(clustered(control[at], arm[at], some))
        found[task] = cell
    return found
