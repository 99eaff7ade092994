"""`tccd probe coverage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.console import AsJson, output, print_json, progress
from tccd.cli.options import (
    BatchSize,
    Columns,
    DataRevisions,
    Device,
    DType,
    FittedOn,
    Model,
    Precision,
    Revision,
    Sources,
    Splits,
    TrustRemoteCode,
    each,
    parse_columns,
    parse_layers,
    single_layers,
)
from tccd.cli.sets import load_sets
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from probes.coverage.probe import Measured, Source


class Text(StrEnum):
    """What of a sample counts as its text."""

    prompt = "prompt"
    answer = "answer"
    both = "both"


class Way(StrEnum):
    """How a subset is chosen."""

    greedy = "greedy"
    coincide = "coincide"


_MEASURE = "Measure"


def coverage(
    model: Model,
    data: Sources,
    bank: Annotated[
        Path,
        typer.Option("--bank", metavar="FILE", help="Bank with text and vision centroids, fitted on all --data."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page, its JSON and CSV.")],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="One of the bank's layers for each modality, as in text=12,vision=16; where it has several.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    least: Annotated[
        int,
        typer.Option(min=1, help="Distinct pictures that make a code covered.", rich_help_panel=_MEASURE),
    ] = 1,
    text: Annotated[
        Text, typer.Option(help="What of a sample counts as its text.", rich_help_panel=_MEASURE)
    ] = Text.both,
    draws: Annotated[
        int,
        typer.Option(min=0, help="Draws of pictures for intervals; 0 for none.", rich_help_panel=_MEASURE),
    ] = 200,
    subset: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Write subset.jsonl: the N samples of the first --data that cover most.",
            rich_help_panel=_MEASURE,
        ),
    ] = None,
    subset_by: Annotated[
        Way, typer.Option("--subset-by", help="How they are chosen.", rich_help_panel=_MEASURE)
    ] = Way.greedy,
    vendi: Annotated[
        bool,
        typer.Option("--vendi", help="Cross-check by the library vendi-score.", rich_help_panel=_MEASURE),
    ] = False,
    page: Annotated[bool, typer.Option(help="Draw the page.")] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut short, with the same settings.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images of each --data, at most, with all their samples.")
    ] = None,
    per_image: Annotated[
        int | None, typer.Option("--per-image", min=1, help="Samples of each image, at most.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 42,
    split: Splits = None,
    data_revision: DataRevisions = None,
    column: Columns = None,
    fitted_on: FittedOn = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 16,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure what data sets cover of what a model can represent, and how dense their samples are.

    \b
    The codebooks are a bank's centroids, of the model that is to be
    trained. Fit it on all sets together (tccd fit --data A --data B): one
    that was fitted on A alone would favour A, and is refused. Of data with
    a train split that split is taken. No answers are needed.

    \b
    Writes coverage.json, coverage.csv and a self-contained coverage.html.
    What is done is kept in DIR/unfinished until then, for --resume.

    \b
    What is printed of each set and codebook:
      Hit              codes that at least --least pictures hit
      Covered          share of the codes that as many pictures cover on
                       average as the smallest set has (rarefaction)
      95 % interval    over draws of whole pictures
      Effective        so many codes, hit equally often, would be as diverse
      Unseen           of the codes of one more picture, the share that none
                       has hit so far (Good-Turing)
      Redundancy       of the codes of a picture, the share that others hit
      Novelty          of the codes that a set hits, the share that as many
                       pictures of another do not

    \b
    Examples:
      tccd fit --model ./model --data a.jsonl --data b.jsonl \\
        --prompt from-data --layers text=12,vision=16 --out union.safetensors
      tccd probe coverage --model ./model --bank union.safetensors \\
        --data a.jsonl --data b.jsonl --out covered
      tccd probe coverage --model ./model --bank union.safetensors \\
        --data a.jsonl --subset 5000 --out covered
    """
    chosen, columns = single_layers(parse_layers(layers)) if layers is not None else {}, parse_columns(column)
    parts, commits = each(split, data, "--split"), each(data_revision, data, "--data-revision")
    if subset is None and subset_by is not Way.greedy:
        raise ConfigError("--subset-by says how a subset is chosen, which needs --subset N")
    if 0 < draws < 20:
        raise ConfigError(f"--draws {draws}; expected at least 20, or 0 for no intervals")
    _check_out(out, vendi)

    from probes.asking.journal import FOLDER, discard
    from probes.coverage import Source, report
    from probes.coverage import coverage as measure
    from tccd.centroids.bank import CentroidBank
    from tccd.loading import check_source, load_model
    from tccd.locking import locked

    codebooks = CentroidBank.load(bank)
    check_source(model, revision)
    with locked(out, "tccd probe coverage"), progress() as tell:
        sets = load_sets(data, parts, commits, images=images, per_image=per_image, seed=seed, columns=columns)
        sources = [Source(name, one) for name, one in zip(_names(sets), sets, strict=True)]
        if subset is not None and subset > len(sets[0]):
            raise ConfigError(f"--subset {subset}; {sources[0].name} has {len(sets[0])} samples")
        loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
        found = measure(
            loaded.model,
            loaded.processor,
            sources,
            codebooks,
            layers=chosen,
            least=least,
            text=text.value,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            fitted_on=fitted_on,
            journal=out / FOLDER,
            resume=resume,
            progress=tell,
        )
        found.result["config"] |= {"data": list(data), "images": images, "per_image": per_image, "bank": str(bank)}
        files = _more(found, sources, out, subset, subset_by.value, vendi, seed)
        files = [*report.write(found.result, out, page), *files]
        discard(out / FOLDER)
    _tell(found.result, files, as_json)


def _check_out(out: Path, vendi: bool) -> None:
    """Refuse, before any work, a place or an installation in which no report can be written."""
    from probes.coverage.report import JSON
    from probes.report.files import check_tools
    from tccd.atomic import check_writable
    from tccd.errors import require

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder for coverage.json and coverage.html")
    check_tools()
    if vendi:
        require("vendi_score.vendi", "vendi")
    check_writable(out / JSON)


def _names(data: Sequence[Any]) -> list[str]:
    """What the report calls each set: its source's name, with its split or a number where that is not enough."""
    names = [one.source for one in data]
    if len(set(names)) < len(names):
        names = [f"{one.source} {one.split}" if one.split else one.source for one in data]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _more(
    found: Measured, sources: Sequence[Source], out: Path, subset: int | None, way: str, vendi: bool, seed: int
) -> list[Path]:
    """What was asked for beside the measures: a subset, and the Vendi score."""
    from probes.coverage import subset as subsets
    from probes.coverage.vendi import vendi as score

    files = []
    if vendi:
        rows = [score(name, store, found.codebooks.k, seed) for name, store in found.stores.items()]
        found.result["vendi"] = [row for one in rows for row in one]
    if subset is not None:
        first = sources[0]
        store = found.stores[first.name]
        found.result["subset"] = subsets.compare(first.name, store, found.codebooks, subset, seed)
        chosen = subsets.choose(way, store, found.codebooks, subset, seed)
        files.append(subsets.write(first.samples, chosen, out))
    return files


def _tell(result: Mapping[str, Any], files: Sequence[Path], as_json: bool) -> None:
    from probes.coverage.words import answer

    if as_json:
        parts = ("codebooks", "equal_n", "sets", "coverage", "density", "between", "subset", "vendi", "warnings")
        shown = {part: result[part] for part in parts if part in result}
        print_json(shown | {"files": [str(file) for file in files]})
        return
    from rich.table import Table

    console = output()
    head = (
        "Set",
        "Codes",
        "Hit",
        f"Covered at {result['equal_n']}",
        "95 % interval",
        "Effective",
        "Unseen",
        "Redundancy",
    )
    table = Table(*head, title="Coverage")
    for row in result["coverage"]:
        scale, form = (100, "{:.1f} %") if row["k"] else (1, "{:.1f}")
        bounds = row["rarefied"]["ci95"]
        table.add_row(
            row["set"],
            row["codebook"],
            f"{row['hit']}" + (f" of {row['k']}" if row["k"] else ""),
            form.format(scale * row["rarefied"]["value"]),
            "" if bounds is None else " to ".join(f"{scale * bound:.1f}" for bound in bounds),
            f"{row['effective']['value']:.1f}",
            f"{100 * row['unseen']['value']:.1f} %",
            f"{100 * row['redundancy']['value']:.1f} %",
        )
    console.print(table)
    for sentence in answer(result):
        console.print(sentence, markup=False, soft_wrap=True)
    for row in result.get("subset", ()):
        shares = ", ".join(f"{100 * row[key]:.1f} % of {what}" for key, what in
                           (("vision", "vision codes"), ("text", "text codes"), ("pairs", "pairs")))  # fmt: skip
        console.print(f"{row['samples']} samples, {row['how']}: {shares}", markup=False, soft_wrap=True)
    for warning in result["warnings"]:
        console.print(f"Warning: {warning}", markup=False, soft_wrap=True)
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)
