"""`tccd bank`: look into banks, check them, bring centroids from elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tccd.cli.console import AsJson, output, print_json
from tccd.cli.options import (
    Device,
    DType,
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
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Precision = DType.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check that a bank is sound and was fitted for a model: exit code 0, or 1 and the reason.

    \b
    Examples:
      tccd bank verify bank.safetensors --model ./model
      tccd bank verify bank.safetensors --model owner/name --revision v1 --json
    """
    from tccd.centroids.bank import CentroidBank
    from tccd.cli.model import load_model

    loaded_bank = CentroidBank.load(file)  # first: cheap beside loading the model
    loaded_bank.check(load_model(model, revision, device, dtype.value, trust_remote_code).model)
    if as_json:
        print_json({"file": str(file), "model": model, "ok": True})
    else:
        output().print(f"{file} is sound and fits {model}", markup=False, soft_wrap=True)


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
    from tccd.cli.model import load_model

    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    made = CentroidBank.from_npz(file, loaded.model, **{f"{m}_layer": layer for m, layer in chosen.items()})
    for modality, layer in made.tensors:
        if modality not in chosen:
            raise ConfigError(
                f"{file} holds {modality} centroids too; expected --layers to say {modality}={layer}"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save(out)
    show_bank(made, {"file": str(out)}, as_json)


def describe(bank: CentroidBank) -> dict[str, Any]:
    """What `--json` prints of a bank."""
    return {
        "model": asdict(bank.model),
        "entries": [{"modality": m, "layer": layer, **asdict(e)} for (m, layer), e in bank.entries.items()],
        "provenance": dict(bank.provenance),
        "tccd_version": bank.tccd_version,
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
    for name, value in {**more, "model": model.pop("model_id"), **model, **described["provenance"]}.items():
        if value not in (None, "", [], {}):
            facts.add_row(Text(name), Text(str(value), overflow="fold"))
    names = ("modality", "layer", "k", "rows", "inertia", "backend", "empty_clusters", "dropped_rows")
    entries = Table()
    for name in names:
        entries.add_column(name.replace("_", " "), overflow="fold")
    for entry in described["entries"]:
        entries.add_row(*(_cell(entry[name]) for name in names))
    output().print(facts, entries)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
