"""`tccd generate`: the same prompts answered plainly and with a contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.answering import decode, encoded, side_by_side, tell
from tccd.cli.console import AsJson, output
from tccd.cli.options import BatchSize, Device, DType, FittedOn, Model, Precision, Revision, TrustRemoteCode
from tccd.cli.questions import Question, check_questions, read_questions
from tccd.cli.references import (
    NAMES,
    PLACE,
    TEXT,
    Batch,
    Wanted,
    contrast_with,
    make_sources,
    parse_layer,
    parse_references,
)
from tccd.decoding.gates import GATES
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.decoding.huggingface import Contrast
    from tccd.loading import Loaded


#: Signals that say where contrast acts; see `Rule.gate`.
Gate = StrEnum("Gate", {name: name for name in GATES})  # type: ignore[misc]


class Tokens(StrEnum):
    """Tokens that are contrasted; see `Rule.tokens`."""

    all = "all"
    first = "first"


@dataclass(frozen=True)
class Answer:
    """The answers to one question."""

    question: Question
    plain: str
    contrasted: str

    @property
    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**self.question.row, "plain": self.plain, "contrasted": self.contrasted}


_REFERENCE, _RULE = "Reference", "Rule"


def generate(
    model: Model,
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="Question about the image; repeatable. - reads JSON lines with prompt and image from stdin.",
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="Image that the prompts are about; repeat it for several in one prompt.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"What to contrast with: {', '.join(NAMES)}. Settings stand behind =: blank-image=black (or a "
            "picture's file), noised-image=500, early-exit=high (or a layer). Two at once have commas between. If "
            "not given: text-centroid with a bank, no-vision without.",
            rich_help_panel=_REFERENCE,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of references used at once, of either sign, as in 1,-0.5; 1 each if not given.",
            rich_help_panel=_REFERENCE,
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            metavar="FILE",
            help="Bank fitted for the model; text-centroid, vision-centroid and mean-vision need one.",
            rich_help_panel=_REFERENCE,
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Layer of text-centroid or vision-centroid, needed if the bank has several; for both at once as "
            "in text=12,vision=16.",
            rich_help_panel=_REFERENCE,
        ),
    ] = None,
    alpha_interp: Annotated[
        float | None,
        typer.Option(
            help="What text-centroid or vision-centroid keeps of what it erases: 0 nothing, 1 all; 0.4 of text, 0 "
            "of vision if not given.",
            rich_help_panel=_REFERENCE,
        ),
    ] = None,
    other_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help=f"The words of the reference prompt; {PLACE} stands for the question.",
            rich_help_panel=_REFERENCE,
        ),
    ] = None,
    text_only: Annotated[
        bool,
        typer.Option("--text-only", help="Ask --other-prompt without the image.", rich_help_panel=_REFERENCE),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of noised-image; 0 if not given.", rich_help_panel=_REFERENCE),
    ] = None,
    alpha_cd: Annotated[
        float,
        typer.Option(
            help="Strength of the contrast; 0 is plain decoding, a negative one adds what the reference says.",
            rich_help_panel=_RULE,
        ),
    ] = 1.0,
    beta: Annotated[
        float,
        typer.Option(
            help="Plausibility: share of the top token's probability that a token needs; 0 is off.",
            rich_help_panel=_RULE,
        ),
    ] = 0.0,
    gate: Annotated[
        Gate | None,
        typer.Option(help="Contrast only where this says that the model is unsure.", rich_help_panel=_RULE),
    ] = None,
    gate_threshold: Annotated[
        float, typer.Option(help="Where the gate is half open.", rich_help_panel=_RULE)
    ] = 0.5,
    gate_ramp: Annotated[
        float, typer.Option(help="Width of the gate's ramp; 0 is a switch.", rich_help_panel=_RULE)
    ] = 0.0,
    tokens: Annotated[
        Tokens, typer.Option(help="Contrast all tokens or the first only.", rich_help_panel=_RULE)
    ] = Tokens.all,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    fitted_on: FittedOn = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Answer prompts plainly and with a contrast, side by side.

    \b
    A reference says what the model would answer without something, and the
    contrast takes that away. Which one helps depends on the model:
    tccd probe replacement measures it.
      text-centroid    its text is moved to the nearest centroids (TCCD)
      vision-centroid  its image tokens are
      no-vision        the image is withheld; needs nothing fitted
      mean-vision      the mean of many images is in the image's place
      blank-image      a grey picture is (=black, =#7f7f7f, =FILE)
      noised-image     the image itself is, under noise (=STEP, 0 to 999)
      prompt           the question is asked in other words
      early-exit       an earlier layer answers (=low, =high, =LAYER, =4-8)

    \b
    Decoding is greedy. With --json, one object a line: prompt, image, plain,
    contrasted, and whatever else the prompt's own JSON line held. All lines
    are checked before the first is answered; answers that are there when a
    later picture turns out to be damaged are printed.

    \b
    Examples:
      tccd generate --model llava-hf/llava-1.5-7b-hf \\
        --image cat.jpg --prompt "Is there a dog?" --prompt "What color is it?"
      tccd generate --model ./model --bank bank.safetensors --gate margin \\
        --prompt - --json < questions.jsonl > answers.jsonl
      tccd generate --model ./model --bank bank.safetensors --image cat.jpg \\
        --reference no-vision,text-centroid --weights 1,-0.5 --prompt "Cat?"
      tccd generate --model ./model --reference prompt --image cat.jpg \\
        --other-prompt "You are a confused object detector. {prompt}" \\
        --prompt "Is there a dog?"
    """
    if reference is None:
        reference = "no-vision" if bank is None else TEXT
    wanted = Wanted(
        parse_references(reference, weights),
        bank=bank,
        layers=parse_layer(layer),
        alpha_interp=alpha_interp,
        other_prompt=other_prompt,
        text_only=text_only,
        seed=seed,
    )
    if fitted_on is not None and bank is None:
        raise ConfigError("--fitted-on is of a bank, and there is no --bank; leave it out")
    from tccd.decoding.config import Rule

    rule = Rule(
        alpha_cd=alpha_cd,
        beta=beta,
        gate=gate.value if gate else None,
        gate_threshold=gate_threshold,
        gate_ramp=gate_ramp,
        tokens=tokens.value,
    )
    questions = read_questions(prompt, image or [])

    from tccd.centroids.bank import CentroidBank
    from tccd.loading import load_model

    fitted = None if bank is None else CentroidBank.load(bank)
    sources = make_sources(wanted, fitted)
    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    if fitted is not None and fitted.check(loaded.model, fitted_on):
        typer.echo(f"tccd: the bank was fitted on {fitted_on}, of which {model} is taken to be a copy", err=True)
    contrast = contrast_with(loaded.model, sources, wanted.weights, rule)
    check_questions(loaded, questions, max_new_tokens)
    if other_prompt is not None:
        others = [replace(q, name=f"--other-prompt of {q.name}", prompt=wanted.other(q.prompt)) for q in questions]
        check_questions(loaded, others, max_new_tokens, text_only)
    answers = answer_all(loaded, contrast, questions, batch_size, max_new_tokens)
    tell(answers, len(questions), as_json, show)


def answer_all(
    loaded: Loaded,
    contrast: Callable[[Batch], Contrast],
    questions: Sequence[Question],
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[Answer]:
    """Answer every question twice, plainly and contrasted, in batches.

    Args:
        loaded: model and processor.
        contrast: how a batch is decoded; see `tccd.cli.references.contrast_with`.
        questions: what is asked.
        batch_size: questions a forward.
        max_new_tokens: of each answer.

    Raises:
        DataError: an image can't be read, or a prompt with its images is longer than the model's context; names
            the prompt.
        ConfigError: it leaves too little room for its answer.
    """
    for batch, images, prompts, inputs in encoded(loaded, questions, batch_size, max_new_tokens):
        plain = decode(loaded, inputs, max_new_tokens)
        door = contrast(Batch(loaded.processor, images, prompts, inputs))
        contrasted = decode(loaded, inputs, max_new_tokens, custom_generate=door)
        for question, one, other in zip(batch, plain, contrasted, strict=True):
            yield Answer(question, one, other)


def show(answers: Sequence[Answer]) -> None:
    """Print the answers side by side; those that differ stand out."""
    output().print(side_by_side("Contrasted", [(one.question, one.plain, one.contrasted) for one in answers]))
