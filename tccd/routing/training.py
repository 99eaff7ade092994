"""Training a branch: its weights alone, on the tokens of answers.

The model is frozen, and nothing below the fusion layers depends on the branch, so only the branch, those layers
and the head are run with gradients. What the paper states is the default: one epoch, batches of 4, AdamW without
weight decay, a rate of 1e-4 that warms up over 3 % of the steps and falls by a cosine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tccd.atomic import write_atomic
from tccd.centroids.bankfile import Kind, pack, unpack
from tccd.data import Sample
from tccd.errors import BranchError, ConfigError
from tccd.locking import locked
from tccd.routing.answers import IGNORED, with_answers
from tccd.routing.branch import Branch
from tccd.routing.routed import Routed

#: Where a run that was interrupted goes on from, in its folder.
STATE_FILE = "training.safetensors"

_STATE = Kind(
    "tccd_route_training",
    "state",
    "training that was interrupted",
    "begin anew in an empty folder",
    "begin anew in an empty folder",
    BranchError,
)


@dataclass(frozen=True)
class Training:
    """How a branch is trained.

    Attributes:
        epochs: times that each sample is seen.
        batch_size: samples a step.
        learning_rate: at its highest. The published one is 1e-4 for a model of 7 billion parameters; a small model
            takes a higher one.
        weight_decay: of AdamW.
        warmup: share of the steps in which the rate climbs.
        clip: greatest norm of the gradients; the paper states none, and 1 is the custom.
        seed: of the order of samples.
    """

    epochs: int = 1
    batch_size: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.03
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected an integer, 1 or more")
        for name, low, high in (
            ("learning_rate", 0.0, 1.0),
            ("weight_decay", -1e-300, 1.0),
            ("warmup", -1e-300, 1.0),
            ("clip", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
                raise ConfigError(
                    f"{name} is {value!r}; expected a number {'above 0' if low == 0 else 'from 0'}"
                    + ("" if high == math.inf else " and below 1")
                )

    def steps(self, samples: int) -> int:
        """Steps that so many samples take."""
        return self.epochs * math.ceil(samples / self.batch_size)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0: a linear warm-up, then a cosine to 0.

        Example:
            >>> [round(Training(learning_rate=1e-3, warmup=0.2).rate(step, 10), 6) for step in (0, 1, 2, 6)]
            [0.0005, 0.001, 0.001, 0.0005]
        """
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2

    def order(self, samples: int) -> Iterator[list[int]]:
        """The samples of each step."""
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
            order = torch.randperm(samples, generator=generator).tolist()
            for start in range(0, samples, self.batch_size):
                yield order[start : start + self.batch_size]


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        losses: mean loss of the answers' tokens, by step.
    """

    losses: tuple[float, ...]

    def mean(self, first: bool, steps: int = 20) -> float:
        """Mean loss of the first or the last steps."""
        some = self.losses[:steps] if first else self.losses[-steps:]
        return sum(some) / len(some)


def train_branch(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    branch: Branch,
    training: Training | None = None,
    work_dir: Path | None = None,
    every: int = 50,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Trained:
    """Train a branch in place.

    Args:
        model: a loaded model in eval mode; its weights are frozen meanwhile.
        processor: its processor.
        samples: questions with answers.
        branch: of this model, with at least one fusion layer.
        training: how; the published settings when None.
        work_dir: a folder for the state, so that an interrupted run that is given the same one goes on where it
            was; None to keep none. The state takes three times the branch.
        every: steps between two states.
        progress: told of every step.

    Returns:
        The losses. The same samples, settings and machine give the same branch, interrupted or not.

    Raises:
        ConfigError: the folder holds the state of another run; nothing would reach the branch.
        DataError: a sample has no answer.
        BranchError: the loss is not finite; the state is damaged.
        UnsupportedModelError: routing is not exact for this model.
    """
    training = training or Training()
    routed = Routed(model, branch=branch)
    run = _Run(model, processor, samples, branch, training)
    with nullcontext() if work_dir is None else locked(work_dir, "tccd route train"):
        file = None if work_dir is None else work_dir / STATE_FILE
        if file is not None and file.exists():
            run.resume(file)
        with routed, _only_trained(model, branch), _told_how_to_go_on(file):
            for step, chosen in enumerate(training.order(len(samples))):
                if step < len(run.losses):
                    continue
                run.step([samples[i] for i in chosen])
                if file is not None and (len(run.losses) % every == 0 or len(run.losses) == run.steps):
                    run.save(file)
                progress("train", len(run.losses), run.steps)
    return Trained(tuple(run.losses))


@contextmanager
def _told_how_to_go_on(file: Path | None) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if file is not None and file.exists() and not isinstance(error, BranchError):
            error.add_note(f"The state is kept; go on with --work-dir {file.parent} and the same options")
        raise


@contextmanager
def _only_trained(model: Any, branch: Branch) -> Iterator[None]:
    """Gradients for a branch and nothing else."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
        branch.zero_grad()


class _Run:
    """A training under way."""

    def __init__(
        self, model: Any, processor: Any, samples: Sequence[Sample], branch: Branch, training: Training
    ) -> None:
        self.model, self.processor, self.branch, self.training = model, processor, branch, training
        self.steps = training.steps(len(samples))
        self.losses: list[float] = []
        self._optimizer = torch.optim.AdamW(
            branch.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        digest = hashlib.sha256()
        for sample in samples:
            digest.update(json.dumps([sample.id, sample.prompt, sample.answer]).encode())
        start = hashlib.sha256()
        for parameter in branch.parameters():
            start.update(parameter.detach().float().cpu().numpy().tobytes())
        self._settings = {
            "model": asdict(branch.identity),
            "branch": asdict(branch.settings),
            "training": asdict(training),
            "start": start.hexdigest(),
            "samples": digest.hexdigest(),
        }

    def step(self, samples: Sequence[Sample]) -> None:
        """Take one step."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.training.rate(len(self.losses), self.steps)
        inputs, wanted = with_answers(self.model, self.processor, samples)
        output = self.model(**inputs, use_cache=False, logits_to_keep=wanted.shape[1] + 1)
        loss = answer_loss(output.logits, wanted)
        value = loss.item()
        if not math.isfinite(value):
            raise BranchError(
                f"the loss is {value} at step {len(self.losses) + 1} of {self.steps}; train with a lower learning "
                f"rate than {self.training.learning_rate:g}"
            )
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.branch.parameters(), self.training.clip)
        self._optimizer.step()
        self.losses.append(value)

    def save(self, file: Path) -> None:
        """Write what a later run goes on from."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64).view(torch.float32)}
        for name, parameter in self.branch.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach().float().cpu().contiguous()
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self._optimizer.state[parameter][moment]
                tensors[f"{moment}.{name}"] = value.detach().float().cpu().contiguous()
        write_atomic(file, pack(tensors, {"run": self._settings}, _STATE))

    def resume(self, file: Path) -> None:
        """Go on from a state.

        Raises:
            ConfigError: it is that of another run; says in what.
        """
        tensors, content = unpack(file, _STATE)
        found = content.get("run")
        found = found if isinstance(found, dict) else {}
        differ = [name for name, value in self._settings.items() if found.get(name) != value]
        if differ:
            raise ConfigError(
                f"{file.parent} holds a training with another {' and another '.join(differ)}; give the options "
                "that it was begun with, or another folder"
            )
        self.losses = tensors["losses"].view(torch.float64).tolist()
        with torch.no_grad():
            for name, parameter in self.branch.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(len(self.losses))),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(parameter),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter),
                }


def answer_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens.

    Args:
        logits: of the column before the first answer's token and of all behind it, shape (batch, longest + 1,
            vocabulary).
        wanted: shape (batch, longest); `IGNORED` where an answer is over.
    """
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
