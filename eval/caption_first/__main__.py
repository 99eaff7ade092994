"""Tests claims of "Caption First, VQA Second" (arXiv 2604.13054): `python -m eval.caption_first --work-dir DIR`.

The first claim, so far: VQA adds little to captions, for it can be rebuilt from them. Four arms are trained
alike: the same pictures, steps, batches, about as many text tokens a step, and the same weights to begin with.
These have learnt text-only question answering over written captions, as a pretrained language model has; it is
rehearsed in every arm.

A model is asked about test pictures in two ways: directly, and through its caption: it writes a caption, and
answers the question from that caption alone. What is done is kept in DIR by seed and arm, and a run that was cut
short goes on. This is small: a language model of 1.2 M parameters, 24 kinds of scene.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.caption_first.arms import NAMES, Speaker
from eval.caption_first.facts import Scene, scenes
from eval.caption_first.model import Learner, Text
from eval.zoo.words import BOS
from probes.report.envelope import envelope
from probes.statistics.clusters import Clusters, clustered, clustered_wilson
from tccd.atomic import write_atomic
from tccd.locking import locked

BATCH, RATE = 16, 1.5e-3
#: Of so many steps of an arm one is text-only.
REHEARSAL = 4


def train(learner: Learner, steps: int, loss: Callable[[int], torch.Tensor]) -> None:
    """So many steps of AdamW, warmed up and cooled down by a cosine."""
    learner.model.train()
    learner.family.vision(learner.model).eval()
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / (1 + steps / 10)) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    for step in range(steps):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    learner.model.eval()


def answers(
    learner: Learner, shown: Sequence[Scene], seen: torch.Tensor, prefix: Sequence[int], empty: Sequence[int]
) -> dict[str, Any]:
    """What a model says to every question about test scenes, directly and through its own caption."""
    texts: list[tuple[int, ...]] = [()] * len(shown)
    for _ in range(3):
        said = learner.next(prefix, texts, seen)
        texts = [(*text, token) for text, token in zip(texts, said, strict=True)]
    captions = [learner.words.decode(text) for text in texts]
    found: dict[str, list[Any]] = {"direct": [], "through": [], "task": [], "picture": [], "prompt": []}
    for at, scene in enumerate(shown):
        asked = [learner.ids(sample.prompt) for sample in scene.samples]
        direct = learner.next(prefix, asked, seen[at : at + 1].expand(len(asked), -1, -1))
        behind = [learner.ids(f"{captions[at]} . {sample.prompt}") for sample in scene.samples]
        through = learner.next(empty, behind, None)
        for sample, one, other in zip(scene.samples, direct, through, strict=True):
            found["direct"].append(learner.words.decode([one]) == sample.answer)
            found["through"].append(learner.words.decode([other]) == sample.answer)
            found["task"].append(sample.task)
            found["picture"].append(sample.image_id)
            found["prompt"].append(sample.prompt)
    right = [caption == scene.caption for caption, scene in zip(captions, shown, strict=True)]
    return {**found, "captions_right": float(np.mean(right)), "captions": captions[:5]}


def run(arm: str, seed: int, options: argparse.Namespace, start: dict[str, Any], material: dict[str, Any]) -> Any:
    """Train and ask one arm."""
    learner, speaker, shown, seen = (material[key] for key in ("learner", "speaker", "train", "seen"))
    learner.load(start)
    draw, order = random.Random(f"{seed} texts"), random.Random(f"{seed} order")
    prefix, bos = material["prefix"], material["bos"]

    def loss(step: int) -> torch.Tensor:
        rows = [order.randrange(len(shown)) for _ in range(BATCH)]
        if step % REHEARSAL == REHEARSAL - 1:
            return learner.loss(bos, [speaker.written(shown, draw) for _ in rows], None)
        texts: list[list[Text]] = [speaker.about(arm, shown[row], draw) for row in rows]
        return learner.loss(prefix, texts, seen[rows])

    began = time.process_time()
    train(learner, options.steps, loss)
    result = answers(learner, material["test"], material["test_seen"], prefix, bos)
    return result | {"arm": arm, "seed": seed, "cpu_seconds": round(time.process_time() - began, 1)}


def table(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by arm, way of asking and task, with the difference from "caption+vqa", over seeds together."""
    rows = []
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        by_arm.setdefault(one["arm"], []).append(one)
    base = by_arm["caption+vqa"]
    tasks = ["all", *dict.fromkeys(base[0]["task"])]
    for arm, runs in by_arm.items():
        for way in ("direct", "through"):
            for task in tasks:
                keep = [np.array([task in ("all", name) for name in one["task"]]) for one in runs]
                right, before = (
                    np.concatenate([np.array(one[key])[at] for one, at in zip(of, keep, strict=True)])
                    for of, key in ((runs, way), (base[: len(runs)], "direct"))
                )
                clusters = Clusters.of(
                    np.concatenate([np.array(one["picture"])[at] for one, at in zip(runs, keep, strict=True)]),
                    np.concatenate([np.array(one["prompt"])[at] for one, at in zip(runs, keep, strict=True)]),
                )
                more = clustered(before, right, clusters)
                rows.append({
                    "arm": arm, "asked": way, "task": task, "n": len(right), "seeds": len(runs),
                    "accuracy": float(right.mean()), "ci95": list(clustered_wilson(right, clusters)),
                    "more": more.value, "more_ci95": [more.low, more.high], "p_value": more.p_value,
                })  # fmt: skip
    return rows


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="keeps what is done, by seed and arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="train pictures")
    parser.add_argument("--tests", type=int, default=200, help="test pictures")
    parser.add_argument("--steps", type=int, default=1000, help="of each arm")
    parser.add_argument("--text-steps", type=int, default=600, help="text-only, before the arms")
    parser.add_argument("--out", type=Path, default=Path("eval/results/caption-first.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: getattr(options, key) for key in ("images", "tests", "steps", "text_steps")}
    with locked(options.work_dir, "eval.caption_first"):
        results = [one for seed in range(options.seeds) for one in _seed(seed, options, settings)]
    rows = table(results)
    config = settings | {"seeds": options.seeds, "batch": BATCH, "rate": RATE, "arms": NAMES}
    result = envelope("Caption first, VQA second: claim 1", config, schema="tccd-caption-first/1")
    runs = [{key: one[key] for key in ("arm", "seed", "captions_right", "cpu_seconds")} for one in results]
    options.out.write_text(json.dumps(result | {"runs": runs, "rows": rows}, indent=1) + "\n")
    for row in rows:
        if row["task"] == "all":
            low, high = (100 * bound for bound in row["more_ci95"])
            print(f"{row['arm']:16} {row['asked']:8} {100 * row['accuracy']:5.1f} %  "
                  f"{100 * row['more']:+5.1f} ({low:+.1f} to {high:+.1f})")  # fmt: skip


def _seed(seed: int, options: argparse.Namespace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """All arms of one seed; those that are kept are read."""
    kept = {arm: options.work_dir / f"{arm.replace('+', '-')}-{seed}.json" for arm in NAMES}
    found = {arm: json.loads(file.read_text()) for arm, file in kept.items() if file.exists()}
    for arm, one in found.items():
        if one["settings"] != settings:
            raise SystemExit(
                f"{kept[arm]} was made with {one['settings']}, not {settings}; give another --work-dir"
            )
    if len(found) < len(NAMES):
        material, start = _material(seed, options)
        for arm in NAMES:
            if arm not in found:
                found[arm] = run(arm, seed, options, start, material) | {"settings": settings}
                write_atomic(kept[arm], json.dumps(found[arm]).encode())
                print(f"seed {seed}, {arm}: {found[arm]['cpu_seconds']} CPU seconds", flush=True)
    return [found[arm] for arm in NAMES]


def _material(seed: int, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the arms of a seed share, and the weights that they begin with."""
    learner = Learner(seed)
    shown, test = scenes("train", options.images), scenes("test", options.tests)
    questions = sorted({sample.prompt for scene in scenes("train") for sample in scene.samples})
    material: dict[str, Any] = {
        "learner": learner,
        "speaker": Speaker(learner, questions),
        "train": shown,
        "seen": learner.see(shown),
        "test": test,
        "test_seen": learner.see(test),
        "prefix": learner.prefix(shown[0]),
        "bos": list(learner.words(BOS, add_special_tokens=False)["input_ids"]),
    }
    draw = random.Random(f"{seed} written")

    def loss(_: int) -> torch.Tensor:
        rows = [material["speaker"].written(shown, draw) for _ in range(2 * BATCH)]
        return learner.loss(material["bos"], rows, None)

    train(learner, options.text_steps, loss)
    return material, learner.state()


if __name__ == "__main__":
    main()
