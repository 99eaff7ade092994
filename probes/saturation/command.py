"""`tccd probe saturation`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

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
from tccd.errors import ConfigError

#: What the command writes in its folder.
FILE = "saturation.json"


def saturation(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help=f"Folder for {FILE}.")],
    eps: Annotated[
        float, typer.Option(help="Accuracy that a split may lose: the bound on its interval's upper end.")
    ] = 0.01,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut short, with the same settings.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask, at most; drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 42,
    split: Split = None,
    data_revision: DataRevision = None,
    column: Columns = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 16,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure from which layer on answers no longer need the image.

    \b
    Split s: the text behind the image sees none of its keys from layer s on.
    Loss: accuracy lost by that, in points, with a 95 % interval as wide as
    questions that share a picture or a wording make it. Mass: attention to
    the image, mean over heads, beside the share if attention were uniform.

    \b
    Example:
      tccd probe saturation --model ./model --data easy-vqa --limit 500 \\
        --out saturated
    """
    from probes.asking.journal import FOLDER, discard
    from probes.saturation.probe import run
    from tccd.atomic import check_writable, write_atomic
    from tccd.data import load_samples
    from tccd.loading import load_model
    from tccd.locking import locked

    columns = parse_columns(column)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder for {FILE}")
    if not 0 < eps < 1:
        raise ConfigError(f"--eps is {eps:g}; expected a share of the questions between 0 and 1, such as 0.01")
    check_writable(out / FILE)
    with locked(out, "tccd probe saturation"), progress() as report:
        samples = load_samples(
            data, split=split, limit=limit, seed=seed, revision=data_revision, columns=columns, purpose="probe"
        )
        loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
        result = run(
            loaded.model,
            loaded.processor,
            samples,
            eps=eps,
            batch_size=batch_size,
            journal=out / FOLDER,
            resume=resume,
            progress=partial(report, "ask"),
        )
        result["config"] = {"data": samples.source, "split": samples.split, "limit": limit, "seed": seed}
        write_atomic(out / FILE, json.dumps(result, indent=1).encode())
        discard(out / FOLDER)
    if as_json:
        print_json(result | {"files": [str(out / FILE)]})
        return
    _show(result)
    output().print(str(out / FILE), markup=False, soft_wrap=True)


def _show(result: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table("Split", "Loss", "95 % interval", "KL", "Mass", "Uniform", "Cosine, vision", "Lens KL, vision")
    for at, layer in zip(result["curve"], result["layers"], strict=True):
        low, high = at["ci95"]
        loss = f"{100 * at['cost']:.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", f"{at['kl']:.3g}"
        shown = [f"{layer[name]:.2f}" for name in ("tail", "tail_uniform", "cosine_vision", "lens_vision")]
        table.add_row(str(at["split"]), *loss, *shown)
    advice, console = result["advice"], output()
    console.print(f"{result['model']}: accuracy {100 * result['accuracy']['accuracy']:.1f} %", markup=False)
    console.print(table)
    within = f"within {100 * advice['eps']:g} points"
    if advice["split"] is None:
        console.print(
            f"No split is {within}: the image is needed up to the last layer, or there are too few questions"
        )
    else:
        console.print(f"The image is not needed from layer {advice['split']} on, {within}")
    console.print(f"DPVR's rule (lens transition less 4): {advice['dpvr_split']}")
