"""`tccd fit`: images -> a bank of centroids and the vision mean."""

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
    DataRevisions,
    Device,
    DType,
    LayerChoice,
    Model,
    Precision,
    Revision,
    Sources,
    Splits,
    TrustRemoteCode,
    each,
    parse_columns,
    parse_layers,
    settle_layers,
)
from tccd.cli.sets import load_sets
from tccd.errors import ConfigError

#: Centroids for each modality and layer, as published.
K = 256

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
    data: Sources,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Bank to write (.safetensors).")],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Layers to fit centroids at, by modality, from 0: text=12,vision=16 (the published ones), "
            "text=8-12,16,vision=all, or all. If not given: the vision mean alone.",
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--k", min=1, help=f"Centroids for each modality and layer; {K} if not given."),
    ] = None,
    vision_mean: Annotated[
        bool,
        typer.Option(
            help="Fit what the reference mean-vision needs, too; it takes the forwards to the model's last layer."
        ),
    ] = True,
    images: Annotated[
        int, typer.Option(min=1, help="Images to fit on, at most, of each --data; each is used once.")
    ] = 2000,
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
    split: Splits = None,
    data_revision: DataRevisions = None,
    column: Columns = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = DType.auto,
    batch_size: BatchSize = 8,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Fit centroids of a model's hidden states, and its vision mean, into a bank.

    \b
    Centroids are fitted at --layers; the references text-centroid and
    vision-centroid need them. The vision mean is what the attention of
    each layer is given for an image token, on average over all of them;
    the reference mean-vision needs it. Without --layers it is fitted alone,
    which needs no k-means. Give it 100 images or more.

    \b
    256 centroids, 2,000 images and the one prompt are the published
    defaults (arXiv 2604.14363); the published layers are
    text=12,vision=16. Of data with a train split that split is taken, for
    tccd probe takes the test split. What the numbers mean: tccd bank show
    --help; seconds is the wall time of the whole fit.

    \b
    Several --data are fitted together, up to --images of each: a bank of
    their union, as tccd probe coverage needs to compare them.

    \b
    Hidden states take (rows x width x 2 or 4) bytes of disk for each layer.
    After a failure they are kept, and the message says how to go on.

    \b
    Examples:
      tccd fit --model llava-hf/llava-1.5-7b-hf --data ./photos \\
        --layers text=12,vision=16 --out bank.safetensors
      tccd fit --model ./model --data easy-vqa --split train --prompt from-data \\
        --layers text=0-4,vision=0-4 --k 16 --out bank.safetensors --json
      tccd fit --model ./model --data ./photos --images 200 \\
        --out bank.safetensors
    """
    choice, columns = _choice(layers, k, backend, vision_mean), parse_columns(column)
    k = K if k is None else k
    if prompt is not None and not prompt.strip():
        raise ConfigError(f"--prompt is empty; expected a text, or {FROM_DATA}")
    if out.is_dir():
        raise ConfigError(f"--out {shown(out)} is a folder; expected the bank's file name")
    parts, commits = each(split, data, "--split"), each(data_revision, data, "--data-revision")
    started = time.monotonic()

    from tccd.centroids.fit import MAX_ROWS, fit_bank, harvest_folder
    from tccd.centroids.kmeans import check_kmeans
    from tccd.centroids.reading import Reading
    from tccd.centroids.refusals import check_rows
    from tccd.data import union
    from tccd.decoder import find_decoder
    from tccd.inputs import PAPER_PROMPT
    from tccd.loading import check_source, load_model
    from tccd.locking import locked

    # All that can be refused without the model is, before it is loaded.
    asked = None if prompt == FROM_DATA else (prompt or PAPER_PROMPT)
    if choice:
        check_kmeans(k, seed, backend=backend.value, max_rows=MAX_ROWS)
    check_source(model, revision)
    check_writable(out)
    if work_dir is not None:
        with locked(work_dir, "tccd fit"):
            pass
    # Every image once: its vision states are the same under every prompt, and so is all with one prompt.
    sets = load_sets(data, parts, commits, images=images, per_image=1, seed=seed, prompt=asked, columns=columns)
    samples = union(sets)
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
            vision_mean=vision_mean,
            work_dir=folder,
            batch_size=batch_size,
            progress=report,
        )
        bank.save(out)
    show_bank(bank, {"file": str(out), "seconds": round(time.monotonic() - started, 1)}, as_json)


def _choice(layers: str | None, k: int | None, backend: Backend, vision_mean: bool) -> LayerChoice:
    """Where centroids are fitted; nowhere where the vision mean is fitted alone.

    Raises:
        ConfigError: there is nothing to fit, or what belongs to centroids is given without --layers.
    """
    if layers is not None:
        return parse_layers(layers)
    for option, given in (("--k", k is not None), ("--backend", backend is not Backend.auto)):
        if given:
            raise ConfigError(f"{option} is of centroids, which need --layers, as in --layers text=12,vision=16")
    if not vision_mean:
        raise ConfigError(
            "there is nothing to fit: expected --layers, as in --layers text=12,vision=16, or no --no-vision-mean"
        )
    return {}
