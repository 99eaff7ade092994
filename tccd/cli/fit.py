"""`tccd fit`: images -> a bank of centroids."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tccd.atomic import check_writable, shown
from tccd.cli.bank import show_bank
from tccd.cli.console import AsJson, progress
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
    parse_layers,
    settle_layers,
)
from tccd.errors import ConfigError

#: What `--prompt` says for the data's own prompts.
FROM_DATA = "from-data"


class Backend(StrEnum):
    """K-means implementations; see `tccd.centroids.kmeans`."""

    auto = "auto"
    faiss_gpu = "faiss-gpu"
    faiss_cpu = "faiss-cpu"
    sklearn = "sklearn"


def fit(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Bank to write (.safetensors).")],
    layers: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Layers by modality, from 0: text=12,vision=16, text=8-12,16,vision=all, or all.",
        ),
    ] = "text=12,vision=16",
    k: Annotated[int, typer.Option("--k", min=1, help="Centroids for each modality and layer.")] = 256,
    images: Annotated[int, typer.Option(min=1, help="Images to fit on, at most; each is used once.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of k-means and of the draw of images.")] = 42,
    backend: Annotated[Backend, typer.Option(help="Implementation of k-means.")] = Backend.auto,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help=f"Prompt for every image; the published fit's if not given; {FROM_DATA}: the data's own.",
        ),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for hidden states; an interrupted fit that is given the same one goes on."),
    ] = None,
    split: Split = None,
    data_revision: DataRevision = None,
    column: Columns = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 8,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Fit centroids of a model's hidden states and write them to a bank.

    \b
    The defaults are the published ones (arXiv 2604.14363): 256 centroids,
    2,000 images, one fixed prompt, text layer 12, vision layer 16. Of data
    with a train split that split is taken, for tccd probe takes the test
    split. What the numbers mean: tccd bank show --help; seconds is the wall
    time of the whole fit.

    \b
    Hidden states take (rows x width x 2 or 4) bytes of disk for each layer.
    After a failure they are kept, and the message says how to go on.

    \b
    Examples:
      tccd fit --model llava-hf/llava-1.5-7b-hf --data ./photos \\
        --layers text=12,vision=16 --out bank.safetensors
      tccd fit --model ./model --data easy-vqa --split train --prompt from-data \\
        --layers text=0-4,vision=0-4 --k 16 --out bank.safetensors --json
    """
    choice, columns = parse_layers(layers), parse_columns(column)
    if prompt is not None and not prompt.strip():
        raise ConfigError(f"--prompt is empty; expected a text, or {FROM_DATA}")
    if out.is_dir():
        raise ConfigError(f"--out {shown(out)} is a folder; expected the bank's file name")
    started = time.monotonic()

    from tccd.centroids.fit import MAX_ROWS, fit_bank, harvest_folder
    from tccd.centroids.kmeans import check_kmeans
    from tccd.centroids.reading import Reading
    from tccd.centroids.refusals import check_rows
    from tccd.data import load_samples
    from tccd.decoder import find_decoder
    from tccd.inputs import PAPER_PROMPT
    from tccd.loading import check_source, load_model
    from tccd.locking import locked

    # All that can be refused without the model is, before it is loaded.
    asked = None if prompt == FROM_DATA else (prompt or PAPER_PROMPT)
    check_kmeans(k, seed, backend=backend.value, max_rows=MAX_ROWS)
    check_source(model, revision)
    check_writable(out)
    if work_dir is not None:
        with locked(work_dir, "tccd fit"):
            pass
    samples = load_samples(
        data,
        split=split,
        images=images,
        # Every image once: its vision states are the same under every prompt, and so is all with one prompt.
        per_image=1,
        seed=seed,
        revision=data_revision,
        prompt=asked,
        columns=columns,
        purpose="fit",
    )
    check_rows(choice, Reading(prompt=asked), len(samples), k)
    loaded = load_model(model, revision, device, dtype.value, trust_remote_code)
    with harvest_folder(work_dir) as folder, progress() as report:
        bank = fit_bank(
            loaded.model,
            loaded.processor,
            samples,
            layers=settle_layers(choice, find_decoder(loaded.model).num_layers),
            k=k,
            seed=seed,
            backend=backend.value,
            images=None,
            prompt=asked,
            work_dir=folder,
            batch_size=batch_size,
            progress=report,
        )
        bank.save(out)
    show_bank(bank, {"file": str(out), "seconds": round(time.monotonic() - started, 1)}, as_json)
