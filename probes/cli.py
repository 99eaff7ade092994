"""`tccd probe`: the diagnostics on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.console import AsJson, output, print_json, progress
from tccd.cli.options import (
    BatchSize,
    Columns,
    Data,
    DataRevision,
    Device,
    DType,
    LayerChoice,
    Model,
    Precision,
    Revision,
    Split,
    TrustRemoteCode,
    parse_columns,
    parse_layers,
)
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.centroids.bank import CentroidBank

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def probe() -> None:
    """Measure what each modality is worth to a model.

    \b
    Examples:
      tccd probe replacement --model ./model --bank bank.safetensors \\
        --data easy-vqa --out report
    """


@app.command()
def replacement(
    model: Model,
    bank: Annotated[
        list[Path],
        typer.Option("--bank", metavar="FILE", help="Centroids fitted for the model; repeat it for several K."),
    ],
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for report.json and report.html.")],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Layers to erase at, as in text=12,vision=16; all layers of the bank by default.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to ask, at most; drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 42,
    alpha_interp: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="What erasure keeps: 0 nothing, 1 all.")
    ] = 0.0,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Asked about every image instead of the data's prompts."),
    ] = None,
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
    """Measure centroid cost: the accuracy lost when a modality is replaced by its centroids.

    \b
    Writes report.json and a self-contained report.html. With --json, prints
    the cells of the report.

    \b
    Examples:
      tccd probe replacement --model ./model --bank bank.safetensors \\
        --data easy-vqa --limit 2000 --out report
      tccd probe replacement --model owner/name --bank bank.safetensors \\
        --data questions.jsonl --layers text=12,vision=16 --out report --json
    """
    choice = parse_layers("all" if layers is None else layers)
    columns = parse_columns(column)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder for report.json and report.html")

    from probes.replacement import run
    from probes.report import write_report
    from tccd.centroids.bank import CentroidBank
    from tccd.cli.model import load_model
    from tccd.data import load_samples

    banks = [CentroidBank.load(file) for file in bank]
    samples = load_samples(
        data, split=split, limit=limit, seed=seed, revision=data_revision, prompt=prompt, columns=columns
    )
    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    with progress() as report:
        result = run(
            loaded.model,
            loaded.processor,
            samples,
            banks,
            layers=_layers(choice, banks),
            alpha_interp=alpha_interp,
            batch_size=batch_size,
            progress=partial(report, "ask"),
        )
    result["config"] |= {
        "model": model,
        "revision": revision,
        "bank": [str(file) for file in bank],
        "data": samples.source,
        "split": samples.split,
        "data_revision": samples.revision,
        "limit": limit,
        "seed": seed,
        "prompt": prompt,
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype),
        "batch_size": batch_size,
    }
    files = write_report(result, out)
    if as_json:
        print_json({"cells": result["cells"], "files": [str(file) for file in files]})
    else:
        _show(result["cells"], files)


def _layers(choice: LayerChoice, banks: Sequence[CentroidBank]) -> dict[str, tuple[int, ...]]:
    """The layers asked for; where all were, those that every bank holds."""
    settled: dict[str, tuple[int, ...]] = {}
    for modality, layers in choice.items():
        held = [set(bank.layers(modality)) for bank in banks]
        settled[modality] = tuple(sorted(set.intersection(*held))) if layers is None else layers
    return settled


def _show(cells: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
    from rich.table import Table

    table = Table("Modality", "Layer", "K", "n", "Baseline", "Accuracy", "Cost", "95 % interval", "p")
    for cell in cells:
        low, high = cell["ci95"]
        table.add_row(
            *(str(cell[name]) for name in ("modality", "layer", "k", "n")),
            *(f"{100 * cell[name]:.1f}" for name in ("baseline", "accuracy", "cost")),
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{cell['p_value']:.2g}",
        )
    console = output()
    console.print(table)
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)
