"""`tccd route`: a branch trained for a model, and prompts answered with the image out of the deep layers."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.atomic import check_writable, shown
from tccd.cli.console import AsJson, output, print_json, progress
from tccd.cli.options import (
    BatchSize,
    Columns,
    Data,
    DataRevision,
    Device,
    DType,
    Model,
    Precision,
    Revision,
    Split,
    TrustRemoteCode,
    parse_columns,
)
from tccd.cli.route_generate import generate
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.routing import Branch
    from tccd.routing.training import Trained, Training

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.command()(generate)


class Start(StrEnum):
    """Weights that a branch starts with; see `BranchSettings.start`."""

    random = "random"
    copy = "copy"


class Mask(StrEnum):
    """Which image rows see which in the branch; see `BranchSettings.mask`."""

    model = "model"
    full = "full"


class Positions(StrEnum):
    """Positions of the image's rows in the branch; see `BranchSettings.positions`."""

    original = "original"
    none = "none"


@app.callback()
def route() -> None:
    """Take the image's rows out of the deep layers (DPVR, arXiv 2606.09131; VTW).

    \b
    Examples:
      tccd route generate --model ./model --branch none --split-layer 3 \\
        --image cat.jpg --prompt "What color is the cat?"
      tccd route train --model ./model --data easy-vqa --split-layer 2 \\
        --out branch.safetensors
      tccd route generate --model ./model --branch branch.safetensors \\
        --image cat.jpg --prompt "What color is the cat?"
    """


_BRANCH, _TRAINING = "Branch", "Training"


@app.command()
def train(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Branch to write (.safetensors).")],
    split_layer: Annotated[
        int,
        typer.Option(
            "--split-layer",
            min=0,
            help="First layer that the image's rows do not run, from 0; the published one is 18 of 32.",
            rich_help_panel=_BRANCH,
        ),
    ],
    fuse: Annotated[
        int,
        typer.Option(min=1, help="Last layers that run all rows again.", rich_help_panel=_BRANCH),
    ] = 1,
    start: Annotated[
        Start,
        typer.Option(
            help="Weights to start with: random, or a copy of the split layer's.", rich_help_panel=_BRANCH
        ),
    ] = Start.random,
    mask: Annotated[
        Mask,
        typer.Option(
            help="Which image rows see which in the branch: model, as in the model; full, each sees all.",
            rich_help_panel=_BRANCH,
        ),
    ] = Mask.model,
    positions: Annotated[
        Positions,
        typer.Option(
            help="Positions of the image's rows in the branch: their own, or none.", rich_help_panel=_BRANCH
        ),
    ] = Positions.original,
    epochs: Annotated[
        int, typer.Option(min=1, help="Times that each sample is seen.", rich_help_panel=_TRAINING)
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Samples, at most; all if not given.", rich_help_panel=_TRAINING),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(help="At its highest; a small model takes a higher one.", rich_help_panel=_TRAINING),
    ] = 1e-4,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=_TRAINING)] = 0.0,
    warmup: Annotated[
        float,
        typer.Option(help="Share of the steps in which the rate climbs.", rich_help_panel=_TRAINING),
    ] = 0.03,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the random start, the samples and their order.", rich_help_panel=_TRAINING),
    ] = 0,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the state; an interrupted run that is given the same one goes on.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    split: Split = None,
    data_revision: DataRevision = None,
    column: Columns = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 4,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Train a branch: one layer that the image's rows run in place of the deep ones.

    \b
    The model stays as it is. The branch alone is trained, on the tokens of
    the data's answers, by AdamW with a rate that warms up and falls by a
    cosine. Defaults are the published ones (arXiv 2606.09131); the start,
    the mask and the positions are not stated there, and the file records
    them. Of data with a train split that split is taken.

    \b
    Measure what it is worth against --branch identity and --branch none,
    which need no training: a branch may have nothing to add.

    \b
    Examples:
      tccd route train --model llava-hf/llava-1.5-7b-hf --data ./pairs.jsonl \\
        --split-layer 18 --out branch.safetensors --work-dir training
      tccd route train --model ./model --data easy-vqa --split-layer 1 \\
        --learning-rate 0.002 --limit 1000 --out branch.safetensors
    """
    columns, started = parse_columns(column), time.monotonic()
    if out.is_dir():
        raise ConfigError(f"--out {shown(out)} is a folder; expected the branch's file name")

    from tccd.data import load_samples
    from tccd.decoder import find_decoder
    from tccd.inputs import check_samples
    from tccd.loading import check_source, load_model
    from tccd.locking import locked
    from tccd.routing import Branch, save_branch
    from tccd.routing.answers import check_answers
    from tccd.routing.branch import check_range
    from tccd.routing.training import Training, train_branch

    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        seed=seed,
    )
    check_source(model, revision)
    check_writable(out)
    if work_dir is not None:
        with locked(work_dir, "tccd route train"):
            pass
    samples = load_samples(
        data, split=split, limit=limit, seed=seed, revision=data_revision, columns=columns, purpose="fit"
    )
    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    check_range(find_decoder(loaded.model), split_layer, fuse)
    longest = check_answers(loaded.processor, samples)
    check_samples(loaded.model, loaded.processor, samples, new_tokens=longest)
    branch = Branch.new(
        loaded.model,
        split_layer,
        fuse,
        start=start.value,
        mask=mask.value,
        positions=positions.value,
        seed=seed,
    )
    with progress() as report:
        trained = train_branch(
            loaded.model, loaded.processor, samples, branch, training, work_dir, progress=report
        )
    told = _told(branch, loaded.model, training, trained, {"data": data, "split": samples.split})
    told |= {"samples": len(samples)}
    save_branch(branch, out, told)
    show({"file": str(out), "seconds": round(time.monotonic() - started, 1), **told}, as_json)


def _told(
    branch: Branch, model: Any, training: Training, trained: Trained, source: dict[str, Any]
) -> dict[str, Any]:
    """What is known of a training."""
    return {
        **source,
        "steps": len(trained.losses),
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "warmup": training.warmup,
        "seed": training.seed,
        "loss_first": round(trained.mean(first=True), 6),
        "loss_last": round(trained.mean(first=False), 6),
        "parameters": branch.parameters_in_all,
        "share": round(branch.share(model), 6),
    }


def show(told: dict[str, Any], as_json: bool) -> None:
    """Print what was trained."""
    if as_json:
        print_json(told)
        return
    console = output()
    console.print(
        f"Trained {told['parameters']:,} weights, {told['share']:.1%} of all that run, for {told['steps']} steps "
        f"of {told['batch_size']} in {told['seconds']:.0f} s."
    )
    console.print(
        f"Loss of the answers' tokens: {told['loss_first']:.4f} at first, {told['loss_last']:.4f} at last "
        "(means of 20 steps)."
    )
    console.print(f"Wrote {told['file']}", markup=False)
