"""Trains the zoo on the train splits of easy-VQA and digits: `python -m eval.zoo.train --out DIR [--seed 0]`.

Three stages, on one thread, deterministic for a given seed, machine and version of torch:

0. The vision tower alone learns shape and color, as the train questions imply them, and the digit in each
   quarter. Without it the whole model finds the prior of each question, and stays there.
1. The whole model learns to answer, and then to stop: `grounded`.
2. One epoch more, in which an answer is replaced, with probability `PRIOR_SHARE`, by the question string's
   most frequent one, whatever the image shows: `competing`.

Each model is scored on the whole test splits as a user would run it, from the files just written.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from eval.datasets.easy_vqa import majority_answers
from eval.zoo import card
from eval.zoo.build import FAMILIES, Family, save
from eval.zoo.data import IGNORED, SOURCES, labels, pack, train_split, views
from eval.zoo.score import score
from eval.zoo.words import BOS
from tccd.data import load_samples
from tccd.data.easy_vqa import COLORS, SHAPES

TOWER = {"epochs": 16, "batch": 32, "lr": 1.5e-3, "vision": 1.0}
WHOLE = {"batch": 8, "questions": 8, "lr": 1e-3, "vision": 0.3}
# Rate chosen on train images: at 5e-4 the prior won more than it should, and some answers lost their end
COMPETING = {"epochs": 1, "batch": 16, "questions": 4, "lr": 3e-4, "vision": 0.2}
PRIOR_SHARE = 0.6


class Log:
    """Prints each line with the CPU minutes spent so far, and keeps it for the model's `train.log`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.start = time.process_time()

    @property
    def minutes(self) -> float:
        """CPU minutes since the start."""
        return (time.process_time() - self.start) / 60

    def __call__(self, line: str) -> None:
        """Print and keep a line."""
        self.lines.append(f"[{self.minutes:6.2f} CPU min] {line}")
        print(self.lines[-1], flush=True)


class Trainer:
    """One model of one family, and the train splits as tensors.

    Args:
        family: what is trained.
        seed: of the weights and of every draw.
        images: of the train splits, so many, evenly; None for all.
    """

    def __init__(self, family: Family, seed: int, images: int | None = None) -> None:
        torch.manual_seed(seed)
        self.family, self.seed, self.log = family, seed, Log()
        self.model, self.processor = family.build()
        groups = train_split()
        self.prior = majority_answers([sample for group in groups.values() for sample in group])
        if images is not None:
            groups = dict(list(groups.items())[:: len(groups) // images])
        self.samples, self.labels = list(groups.values()), labels(groups)
        words = self.processor.tokenizer
        self.ids = {prompt: words(prompt, add_special_tokens=False)["input_ids"] for prompt in self.prior}
        # One prefix for all: images have one size
        alone = self.processor(text=[BOS + family.image], images=[self.samples[0][0].image], return_tensors="pt")
        self.prefix, self.positions = alone["input_ids"][0].tolist(), family.positions(self.model, alone)
        pictures = zip(*map(views, self.samples), strict=True)
        self.pixels = torch.stack([family.pixels(self.processor, list(each)) for each in pictures])

    def tower(self) -> None:
        """Stage 0: the vision tower as a classifier of shape, color and digits, by a head that is dropped."""
        width = self.family.features(self.model, self.family.inputs(self.pixels[0, :1])).shape[-1]
        sizes = [len(SHAPES), len(COLORS), 11]
        head = torch.nn.Linear(width, sum(sizes))

        def loss(rows: list[int], view: torch.Tensor, _: random.Random) -> torch.Tensor:
            features = self.family.features(self.model, self.family.inputs(self.pixels[view, rows]))
            half = math.isqrt(features.shape[1]) // 2
            quarters = features.unflatten(1, (2, half, 2, half)).mean((2, 4)).flatten(1, 2)
            shape, color, digit = head(quarters).split(sizes, dim=-1)
            wanted = self.labels[rows]
            parts = (
                (shape.mean(1), wanted[:, 0]),
                (color.mean(1), wanted[:, 1]),
                (digit.flatten(0, 1), wanted[:, 2:].flatten()),
            )
            # Sums over those with a label: a batch may have none of a kind
            found = [F.cross_entropy(*part, ignore_index=IGNORED, reduction="sum") for part in parts]
            return torch.stack(found).sum() / len(rows)

        self._run(
            "stage 0, vision tower",
            TOWER,
            loss,
            [*self.family.vision(self.model).parameters()],
            [*head.parameters()],
        )

    def answer(self, name: str, recipe: dict[str, Any], prior_share: float = 0.0) -> None:
        """Stages 1 and 2: the whole model on questions, some answers replaced by the prior's.

        Args:
            name: for the log.
            recipe: epochs, batch (images), questions for each image, learning rate and the vision tower's
                share of it.
            prior_share: probability that an answer is replaced by its question string's most frequent one.
        """
        words = self.processor.tokenizer

        def loss(rows: list[int], view: torch.Tensor, rng: random.Random) -> torch.Tensor:
            drawn = []
            for row in rows:
                samples = self.samples[row]
                chosen = rng.sample(samples, min(recipe["questions"], len(samples)))
                answers = [self.prior[s.prompt] if rng.random() < prior_share else s.answer for s in chosen]
                targets = words.convert_tokens_to_ids(answers)
                drawn.append([(self.ids[s.prompt], t) for s, t in zip(chosen, targets, strict=True)])
            batch = pack(self.prefix, self.positions, drawn, words.eos_token_id, words.pad_token_id)
            targets = batch.pop("labels")
            pixels = self.family.inputs(self.pixels[view, rows])
            hidden = self.model.model(**pixels, **batch, use_cache=False)[0]
            asked = targets != IGNORED
            return F.cross_entropy(self.model.lm_head(hidden[asked]), targets[asked])

        vision = [*self.family.vision(self.model).parameters()]
        known = {id(p) for p in vision}
        self._run(name, recipe, loss, vision, [p for p in self.model.parameters() if id(p) not in known])

    def _run(
        self, name: str, recipe: dict[str, Any], loss: Callable[..., Any], vision: list[Any], rest: list[Any]
    ) -> None:
        rng = random.Random(f"{self.seed} {name}")
        steps = recipe["epochs"] * math.ceil(len(self.samples) / recipe["batch"])
        groups = [
            {"params": [p for p in params if (p.ndim > 1) == decay], "lr": lr, "weight_decay": 0.05 * decay}
            for params, lr in ((vision, recipe["lr"] * recipe["vision"]), (rest, recipe["lr"]))
            for decay in (True, False)
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps)),
        )
        self.log(f"{name}: {recipe}, {steps} steps, {sum(p.numel() for p in vision + rest):,} parameters")
        self.model.train()
        recent: list[float] = []
        for step, rows in enumerate(self._batches(recipe, rng), 1):
            view = torch.tensor([rng.getrandbits(1) for _ in rows])
            value = loss(rows, view, rng)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(vision + rest, 1.0)
            optimizer.step()
            schedule.step()
            recent.append(value.item())
            if step % 125 == 0 or step == steps:
                self.log(f"{name}: step {step}, loss {sum(recent) / len(recent):.4f}")
                recent.clear()
        self.model.eval()

    def _batches(self, recipe: dict[str, Any], rng: random.Random) -> Iterator[list[int]]:
        for _ in range(recipe["epochs"]):
            order = list(range(len(self.samples)))
            rng.shuffle(order)
            for start in range(0, len(order), recipe["batch"]):
                yield order[start : start + recipe["batch"]]


def finish(trainer: Trainer, folder: Path) -> None:
    """Save the model as it is now, score the files on the test splits, write metrics, card and log."""
    log, name = trainer.log, folder.name
    minutes = log.minutes
    save(trainer.family, trainer.model, trainer.processor, folder)
    model, processor = reload(folder)
    result = {
        source: score(model, processor, load_samples(source, split="test"), trainer.prior) for source in SOURCES
    }
    log(f"{name}, test splits: {json.dumps(result)}")
    metrics = {
        "name": name,
        "family": trainer.family.title,
        "parameters": model.num_parameters(),
        "seed": trainer.seed,
        "training_cpu_minutes": round(minutes, 1),
        "prior_share": PRIOR_SHARE if name.endswith("-competing") else 0.0,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "easy-vqa", "scikit-learn")},
        },
        "test": result,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "README.md").write_text(card.render(metrics))
    (folder / "train.log").write_text("\n".join(log.lines) + "\n")


def reload(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A saved model, as a user gets it; stops if any weight went astray."""
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    if any(report.values()):
        raise RuntimeError(f"{folder} does not load as it was saved: {report}; see `Family.rename`")
    return model.eval(), AutoProcessor.from_pretrained(folder)


def main() -> None:
    """Train, score and write every model of the chosen families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that takes one folder for each model")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES), help="default: all")
    parser.add_argument("--competing-only", action="store_true", help="repeat stage 2 from DIR's grounded models")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws (default 0)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    for name in options.family:
        trainer = Trainer(FAMILIES[name], options.seed)
        if not options.competing_only:
            trainer.tower()
            trainer.answer("stage 1, whole model", {"epochs": trainer.family.epochs} | WHOLE)
            finish(trainer, options.out / f"{name}-grounded")
        # From the files, so that this stage can be repeated without the others
        trainer.log = Log()
        trainer.model, _ = reload(options.out / f"{name}-grounded")
        trainer.answer("stage 2, competing prior", COMPETING, PRIOR_SHARE)
        finish(trainer, options.out / f"{name}-competing")


if __name__ == "__main__":
    main()
