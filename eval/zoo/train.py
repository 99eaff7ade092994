"""Trains the zoo on easy-VQA's train split: `python -m eval.zoo.train --out DIR [--seed 0]`.

Three stages, on one thread, deterministic for a given seed, machine and version of torch:

0. The vision tower alone learns shape and color, as the train questions imply them. Without it the whole
   model finds the prior of each question, and stays there.
1. The whole model learns to answer, and then to stop: `grounded`.
2. One epoch more, in which an answer is replaced, with probability `PRIOR_SHARE`, by the question string's
   most frequent one, whatever the image shows: `competing`.

Each model is scored on the whole test split as a user would run it, from the files just written.
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

import torch
import torch.nn.functional as F
import transformers
from PIL import ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from eval.zoo import card
from eval.zoo.build import BOS, FAMILIES, IMAGE_TOKEN, Family, save
from eval.zoo.data import COLORS, IGNORED, SHAPES, Split, attributes, pack
from eval.zoo.score import score

TOWER = {"epochs": 14, "batch": 32, "lr": 1.5e-3, "vision": 1.0}
WHOLE = {"epochs": 8, "batch": 8, "questions": 8, "lr": 1e-3, "vision": 0.3}
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
    """One model of one family, and the train split as tensors.

    Args:
        family: what is trained.
        split: easy-VQA's train split.
        seed: of the weights and of every draw.
    """

    def __init__(self, family: Family, split: Split, seed: int) -> None:
        torch.manual_seed(seed)
        self.family, self.seed, self.log = family, seed, Log()
        self.model, self.processor = family.build()
        self.items = list(split.by_image().items())
        self.prior = split.prior()
        tokens = self.processor.tokenizer
        # One list of ids for each question string, and one prefix for all: images have one size
        self.ids = {q: tokens(q, add_special_tokens=False)["input_ids"] for q in self.prior}
        self.answers = {a: tokens.convert_tokens_to_ids(a) for a in ("yes", "no", *SHAPES, *COLORS)}
        pictures = [split.images[number] for number, _ in self.items]
        self.prefix = self.processor(text=BOS + IMAGE_TOKEN, images=pictures[0])["input_ids"][0]
        # Shapes and colors survive a mirror; so do the questions
        self.pixels = torch.stack(
            [
                family.pixels(self.processor, pictures),
                family.pixels(self.processor, [ImageOps.mirror(picture) for picture in pictures]),
            ]
        )

    def tower(self) -> None:
        """Stage 0: the vision tower as a classifier of shape and color, by a head that is then dropped."""
        labels = torch.tensor([attributes(items) for _, items in self.items])
        width = self.family.features(self.model, self.pixels[0, :1]).shape[-1]
        head = torch.nn.Linear(width, len(SHAPES) + len(COLORS))

        def loss(rows: list[int], mirror: torch.Tensor, _: random.Random) -> torch.Tensor:
            features = self.family.features(self.model, self.pixels[mirror, rows])
            shape, color = head(features.mean(1)).split([len(SHAPES), len(COLORS)], dim=-1)
            return F.cross_entropy(shape, labels[rows, 0], ignore_index=IGNORED) + F.cross_entropy(
                color, labels[rows, 1], ignore_index=IGNORED
            )

        self._run(
            "stage 0, vision tower",
            TOWER,
            loss,
            [*self.family.vision(self.model).parameters()],
            [*head.parameters()],
        )

    def answer(self, name: str, recipe: dict, prior_share: float = 0.0) -> None:
        """Stages 1 and 2: the whole model on questions, some answers replaced by the prior's.

        Args:
            name: for the log.
            recipe: epochs, batch (images), questions for each image, learning rate and the vision tower's
                share of it.
            prior_share: probability that an answer is replaced by its question string's most frequent one.
        """
        pad, eos = self.processor.tokenizer.pad_token_id, self.processor.tokenizer.eos_token_id

        def loss(rows: list[int], mirror: torch.Tensor, rng: random.Random) -> torch.Tensor:
            drawn = []
            for row in rows:
                items = self.items[row][1]
                chosen = rng.sample(items, min(recipe["questions"], len(items)))
                answers = [self.prior[i.question] if rng.random() < prior_share else i.answer for i in chosen]
                drawn.append(
                    [(self.ids[i.question], self.answers[a]) for i, a in zip(chosen, answers, strict=True)]
                )
            batch = pack(self.prefix, drawn, eos, pad)
            labels = batch.pop("labels")
            hidden = self.model.model(pixel_values=self.pixels[mirror, rows], use_cache=False, **batch)[0]
            asked = labels != IGNORED
            return F.cross_entropy(self.model.lm_head(hidden[asked]), labels[asked])

        vision = [*self.family.vision(self.model).parameters()]
        known = {id(p) for p in vision}
        self._run(name, recipe, loss, vision, [p for p in self.model.parameters() if id(p) not in known])

    def _run(self, name: str, recipe: dict, loss: Callable, vision: list, rest: list) -> None:
        rng = random.Random(f"{self.seed} {name}")
        steps = recipe["epochs"] * math.ceil(len(self.items) / recipe["batch"])
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
            mirror = torch.tensor([rng.getrandbits(1) for _ in rows])
            value = loss(rows, mirror, rng)
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

    def _batches(self, recipe: dict, rng: random.Random) -> Iterator[list[int]]:
        for _ in range(recipe["epochs"]):
            order = list(range(len(self.items)))
            rng.shuffle(order)
            for start in range(0, len(order), recipe["batch"]):
                yield order[start : start + recipe["batch"]]


def finish(trainer: Trainer, folder: Path) -> None:
    """Save the model as it is now, score the files on the test split, write metrics, card and log."""
    log, name = trainer.log, folder.name
    minutes = log.minutes
    save(trainer.family, trainer.model, trainer.processor, folder)
    model, processor = reload(folder)
    result = score(model, processor, Split.load("test"), trainer.prior)
    log(f"{name}, test split: {json.dumps(result)}")
    metrics = {
        "name": name,
        "family": trainer.family.title,
        "parameters": model.num_parameters(),
        "seed": trainer.seed,
        "training_cpu_minutes": round(minutes, 1),
        "prior_share": PRIOR_SHARE if name.endswith("-competing") else 0.0,
        "note": trainer.family.notes[name.rpartition("-")[2]],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "easy-vqa")},
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
    split = Split.load("train")
    for name in options.family:
        trainer = Trainer(FAMILIES[name], split, options.seed)
        if not options.competing_only:
            trainer.tower()
            trainer.answer("stage 1, whole model", WHOLE)
            finish(trainer, options.out / f"{name}-grounded")
        # From the files, so that this stage can be repeated without the others
        trainer.log = Log()
        trainer.model, _ = reload(options.out / f"{name}-grounded")
        trainer.answer("stage 2, competing prior", COMPETING, PRIOR_SHARE)
        finish(trainer, options.out / f"{name}-competing")


if __name__ == "__main__":
    main()
