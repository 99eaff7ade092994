"""A side branch as a file: safetensors, with the model it is for, what it is, and a checksum over everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tccd.atomic import write_atomic
from tccd.centroids.bankfile import Kind, pack, tccd_version, unpack
from tccd.centroids.belonging import differences
from tccd.decoder import ModelIdentity, identify
from tccd.errors import BranchError, BranchMismatchError, ConfigError
from tccd.routing.branch import Branch, BranchSettings

BRANCH = Kind(
    "tccd_branch",
    "branch",
    "side branch",
    "train it again (tccd route train)",
    "give the file that tccd route train wrote",
    BranchError,
)


def save_branch(branch: Branch, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a branch, whole or not at all; the same bytes for the same branch.

    Args:
        branch: what is written, in fp32.
        path: the file; one that is there is replaced.
        provenance: how it was trained, as JSON values.

    Raises:
        BranchError: a weight is not finite, or the provenance is no JSON.
        WriteError: the file can't be written.
    """
    tensors = {name: p.detach().float().cpu().contiguous() for name, p in branch.layer.named_parameters()}
    wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise BranchError(
            f"the branch has values that are not finite in {', '.join(wrong[:3])}, so it was not saved; train it "
            "with a lower learning rate"
        )
    metadata = {
        "tccd_version": tccd_version(),
        "model": asdict(branch.identity),
        "branch": asdict(branch.settings),
        "provenance": dict(provenance or {}),
    }
    path = Path(path)
    write_atomic(path, pack(tensors, metadata, BRANCH), lambda written: _check_same(written, tensors, path))


def _check_same(written: Path, tensors: dict[str, Tensor], path: Path) -> None:
    back, _ = unpack(written, BRANCH)
    if back.keys() != tensors.keys() or any(not torch.equal(back[name], tensors[name]) for name in back):
        raise BranchError(f"{path} was not saved: what was written reads back as another branch; check the disk")


def load_branch(path: str | Path, model: Any) -> Branch:
    """Read a branch for a model, its checksum verified.

    Args:
        path: the file.
        model: a loaded transformers model, the one that the branch was made for.

    Returns:
        In eval mode, in the model's own precision and on the device of the layer where it begins.

    Raises:
        BranchError: the file is missing, damaged, or holds something else.
        BranchMismatchError: it was made for another model.
    """
    tensors, settings, identity, _ = read_branch(path)
    _check(identity, identify(model))
    try:
        branch = Branch.new(model, **{**asdict(settings), "start": "copy"})
    except ConfigError as error:
        raise BranchError(f"{path}: {error}") from error
    branch.settings = settings
    mine = dict(branch.layer.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in mine.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != found:
        odd = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise BranchError(
            f"{path}: its weights are not those of layer {settings.split} of this model ({', '.join(odd[:3])} "
            "differ); train a branch with this version of transformers"
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(tensors[name])
    return branch.to(next(model.get_decoder().parameters()).dtype)


def read_branch(path: str | Path) -> tuple[dict[str, Tensor], BranchSettings, ModelIdentity, dict[str, Any]]:
    """What a branch's file holds: weights, settings, the model that it is for, provenance.

    Raises:
        BranchError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise BranchError(f"no branch {path}; expected the file that tccd route train wrote")
    tensors, content = unpack(path, BRANCH)
    try:
        settings = BranchSettings(**content["branch"])
        identity = _identity(content["model"])
        provenance = dict(content.get("provenance") or {})
    except (KeyError, TypeError, ValueError) as error:  # ConfigError among them
        raise BranchError(
            f"{path}: what it says of itself can't be read ({error}); the file was changed"
        ) from error
    wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise BranchError(f"{path} has values that are not finite in {', '.join(wrong[:3])}; train it again")
    return tensors, settings, identity, provenance


def _identity(values: Any) -> ModelIdentity:
    """A model's identity read from JSON.

    Raises:
        TypeError: a field is unknown, lacks, or is of another type.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"its model is {str(values)[:200]!r}")
    for name, kind in (("model_id", str), ("model_type", str), ("hidden_size", int), ("num_layers", int)):
        if not isinstance(values.get(name), kind):
            raise TypeError(f"{name} is {str(values.get(name))[:200]!r}")
    return ModelIdentity(**values)


def check_branch(branch: Branch, model: Any) -> None:
    """Make sure that a branch belongs to a model, by the rule of banks.

    Raises:
        BranchMismatchError: says what does not match and what to do.
    """
    _check(branch.identity, identify(model))


def _check(made_for: ModelIdentity, model: ModelIdentity) -> None:
    differ = differences(made_for, model, "branch")
    if differ:
        raise BranchMismatchError(
            f"the branch was made for another model ({'; '.join(differ)}). Load the model it was made for, with "
            "that revision, or train a branch for this one (tccd route train)"
        )
