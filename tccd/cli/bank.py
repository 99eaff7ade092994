"""`tccd bank`: look into banks, check them, bring centroids from elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.atomic import check_writable
from tccd.cli.console import AsJson, output, print_json
from tccd.cli.options import (
    Device,
    DType,
    FittedOn,
    Model,
    Precision,
    Revision,
    TrustRemoteCode,
    parse_layers,
    single_layers,
)
from tccd.errors import ConfigError

if TYPE_CHECKING:
    from tccd.centroids.bank import CentroidBank

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

File = Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="Bank (.safetensors).")]


@app.callback()
def bank() -> None:
    """Look into banks, check them, and bring centroids from elsewhere.

    \b
    Examples:
      tccd bank show bank.safetensors
      tccd bank verify bank.safetensors --model ./model
      tccd bank import-npz kmeans.npz --model ./model --out bank.safetensors
    """


@app.command()
def show(file: File, as_json: AsJson = False) -> None:
    """Show what a bank holds, and what it was fitted for and on. Its checksum is verified.

    \b
    Of each modality and layer:
      k               centroids
      rows            hidden states that they were fitted to
      distinct rows   how many of these differ; below k, centroids repeat
      inertia         sum of the squared distances of the rows to their
                      nearest centroids; lower is closer, for equal rows
      empty clusters  centroids that no row is nearest to
      dropped rows    left out, because a value was not finite
      sampled out     rows left out at random to bound memory
      seed, iterations, backend, backend version: of k-means

    \b
    vision mean: what the reference mean-vision shows in an image's place,
    with the images (that differ in what they show) and image tokens that it
    is the mean of, and the dropped states, left out because a value was not
    finite.

    \b
    Of the model: revision (commit on the hub), hidden size (width of a
    hidden state), num layers, fingerprint (hash of all weights: a bank fits
    a model with the same one), embedding (the same of the input embeddings
    and the last norm).

    \b
    Of the data: images (prompts run), pictures (how many differ in what they
    show), copies (images that show the same as another), text tokens (kept
    of each prompt), short tails (prompts with fewer of them), vision (tokens,
    or the span from first to last), max vision tokens per image, batch size,
    seed (of the draw), dtype (of the model), data, split, data revision,
    sources (the same of each, where there are several), prompt, created,
    tccd version.

    \b
    Examples:
      tccd bank show bank.safetensors
      tccd bank show bank.safetensors --json | jq .entries
    """
    from tccd.centroids.bank import CentroidBank

    show_bank(CentroidBank.load(file), {"file": str(file)}, as_json)


@app.command()
def verify(
    file: File,
    model: Model,
    fitted_on: FittedOn = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Precision = DType.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check that a bank is sound and was fitted for a model: exit code 0, or 1 and the reason.

    \b
    A bank fits a model of equal weights, whatever their names. With --json,
    fitted_on is the base by whose name alone the bank was accepted.

    \b
    Examples:
      tccd bank verify bank.safetensors --model ./model
      tccd bank verify bank.safetensors --model owner/name --revision v1 --json
    """
    from tccd.centroids.bank import CentroidBank
    from tccd.loading import load_model

    loaded_bank = CentroidBank.load(file)  # first: cheap beside loading the model
    accepted = loaded_bank.check(
        load_model(model, revision, device, dtype.value, trust_remote_code).model, fitted_on
    )
    if as_json:
        print_json({"file": str(file), "model": model, "ok": True, "fitted_on": accepted})
    else:
        by = f", taken for a copy of {accepted}" if accepted else ""
        output().print(f"{file} is sound and fits {model}{by}", markup=False, soft_wrap=True)


@app.command("import-npz")
def import_npz(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The .npz file.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Bank to write (.safetensors).")],
    layers: Annotated[
        str,
        typer.Option(metavar="SPEC", help="Layer that each array was fitted at, which the file does not say."),
    ] = "text=12,vision=16",
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Precision = DType.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Turn centroids of the reference release into a bank.

    \b
    The file holds the arrays text_centroids and vis_centroids, of shape
    (k, hidden), and optionally the scalar metadata_json.

    \b
    Examples:
      tccd bank import-npz kmeans.npz --model Qwen/Qwen2.5-VL-7B-Instruct \\
        --layers text=12,vision=16 --out bank.safetensors
    """
    chosen = single_layers(parse_layers(layers))

    from tccd.centroids.bank import CentroidBank
    from tccd.loading import load_model

    check_writable(out)

    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    made = CentroidBank.from_npz(file, loaded.model, **{f"{m}_layer": layer for m, layer in chosen.items()})
    for modality, layer in made.tensors:
        if modality not in chosen:
            raise ConfigError(
                f"{file} holds {modality} centroids too; expected --layers to say {modality}={layer}"
            )
    made.save(out)
    show_bank(made, {"file": str(out)}, as_json)


def describe(bank: CentroidBank) -> dict[str, Any]:
    """What `--json` prints of a bank."""
    provenance = dict(bank.provenance)
    known = provenance.pop("vision_mean", None)
    if bank.vision_mean is None:
        mean = None
    else:
        mean = {"layers": len(bank.vision_mean), **(known if isinstance(known, dict) else {})}
    if "pictures" in provenance:  # for programs that load the bank; here their number says as much
        provenance["pictures"] = len(bank.pictures)
    return {
        "model": asdict(bank.model),
        "entries": [{"modality": m, "layer": layer, **asdict(e)} for (m, layer), e in bank.entries.items()],
        "vision_mean": mean,
        "provenance": provenance,
        "tccd_version": bank.tccd_version,
        "warnings": list(bank.warnings),
    }


def show_bank(bank: CentroidBank, more: dict[str, Any], as_json: bool) -> None:
    """Print what a bank holds; `more` is told first."""
    described = describe(bank)
    if as_json:
        print_json({**more, **described})
        return
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid("", "", padding=(0, 2))
    model = described["model"]
    mean = described["vision_mean"] or {}
    last = {
        "vision_mean": ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in mean.items() if value),
        "tccd_version": described["tccd_version"],
    }
    shown = {**more, "model": model.pop("model_id"), **model, **described["provenance"], **last}
    for name, value in shown.items():
        if value not in (None, "", [], {}):
            facts.add_row(Text(name.replace("_", " ")), Text(str(value), overflow="fold"))
    names = ("modality", "layer", "k", "rows", "distinct_rows", "inertia", "empty_clusters", "dropped_rows")
    entries = Table()
    for name in names:
        entries.add_column(name.replace("_", " "), overflow="fold")
    for entry in described["entries"]:
        entries.add_row(*(_cell(entry[name]) for name in names))
    output().print(facts, *([entries] if described["entries"] else []))
    for warning in described["warnings"]:
        output().print(f"warning: {warning}", markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
