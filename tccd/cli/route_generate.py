"""`tccd route generate`: the same prompts answered by the plain model and by the routed one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.answering import decode, encoded, side_by_side, tell
from tccd.cli.console import AsJson, output
from tccd.cli.options import BatchSize, Device, DType, Model, Precision, Revision, TrustRemoteCode
from tccd.cli.questions import Question, check_questions, read_questions
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.loading import Loaded
    from tccd.routing import Memory, Routed

#: Branches that are no file.
NAMES = ("identity", "none")


@dataclass(frozen=True)
class Answer:
    """The answers to one question, and what the keys and values of its batch took."""

    question: Question
    plain: str
    routed: str
    memory: Memory

    @property
    def row(self) -> dict[str, Any]:
        """What `--json` prints."""
        cache = {"cache_bytes": self.memory.routed, "plain_cache_bytes": self.memory.plain}
        return {**self.question.row, "plain": self.plain, "routed": self.routed, **cache}


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
    branch: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="What the image's rows run meanwhile: a file that tccd route train wrote; identity, they wait; "
            "none, they never come back.",
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
    split_layer: Annotated[
        int | None,
        typer.Option(
            "--split-layer",
            min=0,
            help="First layer that the image's rows do not run, from 0; a branch's file has its own.",
        ),
    ] = None,
    fuse: Annotated[
        int | None,
        typer.Option(
            min=1, help="Last layers that run all rows again: 1 for identity; a branch's file has its own."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Answer prompts plainly and routed, side by side, and say what the cache saves.

    \b
    Decoding is greedy. With --json, one object a line: prompt, image, plain,
    routed, cache_bytes and plain_cache_bytes (keys and values of the batch,
    after its last token), and whatever else the prompt's own JSON line held.

    \b
    Examples:
      tccd route generate --model llava-hf/llava-1.5-7b-hf --branch none \\
        --split-layer 18 --image cat.jpg --prompt "What color is the cat?"
      tccd route generate --model ./model --branch branch.safetensors \\
        --prompt - --json < questions.jsonl > answers.jsonl
    """
    if branch not in NAMES and not Path(branch).is_file():
        raise ConfigError(f"--branch {branch[:200]!r}: no such file; expected one, or {' or '.join(NAMES)}")
    if branch in NAMES and split_layer is None:
        raise ConfigError(f"--branch {branch} says no layer to leave at; give --split-layer")
    if branch == "none" and fuse is not None:
        raise ConfigError("--branch none withdraws the image for good, so --fuse would do nothing; leave it out")
    questions = read_questions(prompt, image or [])

    from tccd.loading import load_model
    from tccd.routing import Routed, load_branch
    from tccd.routing.branchfile import read_branch

    if branch not in NAMES:
        read_branch(branch)  # before the model, which takes longer
    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    made: Any = branch if branch in NAMES else load_branch(branch, loaded.model)
    routed = Routed(loaded.model, split_layer, fuse, made)
    check_questions(loaded, questions, max_new_tokens)
    answers = answer_all(loaded, routed, questions, batch_size, max_new_tokens)
    tell(answers, len(questions), as_json, show)


def answer_all(
    loaded: Loaded, routed: Routed, questions: Sequence[Question], batch_size: int, max_new_tokens: int
) -> Iterator[Answer]:
    """Answer every question twice, plainly and routed, in batches.

    Args:
        loaded: model and processor.
        routed: of this model.
        questions: what is asked.
        batch_size: questions a forward.
        max_new_tokens: of each answer.

    Raises:
        DataError: an image can't be read, or a prompt with its images is longer than the model's context; names
            the prompt.
        ConfigError: it leaves too little room for its answer.
    """
    for batch, _, _, inputs in encoded(loaded, questions, batch_size, max_new_tokens):
        plain = decode(loaded, inputs, max_new_tokens)
        answers = decode(loaded, inputs, max_new_tokens, custom_generate=routed, use_cache=True)
        memory = routed.memory
        assert memory is not None  # of the cache that was asked for
        for question, one, other in zip(batch, plain, answers, strict=True):
            yield Answer(question, one, other, memory)


def show(answers: Sequence[Answer]) -> None:
    """Print the answers side by side; those that differ stand out."""
    console = output()
    console.print(side_by_side("Routed", [(one.question, one.plain, one.routed) for one in answers]))
    last = answers[-1].memory
    console.print(
        f"Keys and values of the last batch: {last.routed:,} bytes, {last.saved:.0%} less than the plain model's "
        f"{last.plain:,}."
    )
