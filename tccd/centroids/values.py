"""The numbers of a bank: of the right type and shape, of the model's width, and finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tccd.centroids.entry import Key, key_name
from tccd.decoder import ModelIdentity
from tccd.errors import BankError, BankMismatchError
from tccd.modality import MODALITIES


def matrix(array: Any, name: str, rows: str = "K") -> Tensor:
    """A floating-point matrix that was made elsewhere -> an fp32 tensor of its own, on the CPU.

    Args:
        array: numpy array or tensor.
        name: what it is called in an error.
        rows: what its rows are called in an error.

    Raises:
        BankError: it is no floating-point matrix.
    """
    if not isinstance(array, Tensor):
        array = np.asarray(array)
        if array.dtype.kind != "f":
            raise BankError(f"{name} is an array of {array.dtype}; expected floating point")
        array = torch.from_numpy(array.astype(np.float32))
    if not array.is_floating_point() or array.ndim != 2:
        raise BankError(
            f"{name} is {array.dtype} of shape {tuple(array.shape)}; expected a floating-point ({rows}, hidden) "
            "matrix"
        )
    return array.detach().to("cpu", torch.float32, copy=True).contiguous()


def check_centroids(model: ModelIdentity, key: Key, tensor: Tensor, k: int) -> None:
    """Make sure that a tensor holds `k` centroids of a layer of the model.

    Raises:
        BankError: it is not fp32, not `k` rows, or not finite; or the key is no (modality, layer) pair.
        BankMismatchError: the model has another width, or no such layer.
    """
    if not (isinstance(key, tuple) and len(key) == 2 and key[0] in MODALITIES and type(key[1]) is int):
        raise BankError(f"entry {key!r} is no (modality, layer) pair such as ('text', 12)")
    name = key_name(key)
    _check_fp32(name, tensor)
    if tensor.ndim != 2 or not tensor.shape[0] or tensor.shape[0] != k:
        raise BankError(
            f"{name} has shape {tuple(tensor.shape)}; expected ({k}, {model.hidden_size}) with at least one "
            "centroid"
        )
    _check_width(name, tensor, model, "these centroids belong")
    if not 0 <= key[1] < model.num_layers:
        raise BankMismatchError(
            f"{name}: layer {key[1]} is out of range; {model.model_id} has decoder layers 0 to "
            f"{model.num_layers - 1}"
        )
    bad = _not_finite(tensor)
    if bad:
        raise BankError(f"{name}: {len(bad)} of {len(tensor)} centroids are not finite; refit the bank")


def check_vision_mean(model: ModelIdentity, mean: Tensor) -> None:
    """Make sure that a tensor holds one state for the input of each decoder layer of the model.

    Raises:
        BankError: it is not fp32, no matrix, or not finite.
        BankMismatchError: the model has another width, or another number of layers.
    """
    name = "vision_mean"
    if not isinstance(mean, Tensor):
        raise BankError(f"{name} is {type(mean).__name__}; expected a tensor of torch.float32")
    _check_fp32(name, mean)
    if mean.ndim != 2:
        raise BankError(
            f"{name} has shape {tuple(mean.shape)}; expected ({model.num_layers}, {model.hidden_size}), a row for "
            "each decoder layer"
        )
    _check_width(name, mean, model, "this mean belongs")
    if len(mean) != model.num_layers:
        raise BankMismatchError(
            f"{name} has {len(mean)} rows, but {model.model_id} has {model.num_layers} decoder layers; expected a "
            "row for each"
        )
    bad = _not_finite(mean)
    if bad:
        raise BankError(f"{name}: its rows of layers {bad} are not finite; refit the bank")


def _check_fp32(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise BankError(f"{name} is {tensor.dtype}; expected torch.float32")


def _check_width(name: str, tensor: Tensor, model: ModelIdentity, belong: str) -> None:
    if tensor.shape[1] != model.hidden_size:
        raise BankMismatchError(
            f"{name} has width {tensor.shape[1]}, but {model.model_id} has hidden size {model.hidden_size}; "
            f"{belong} to another model"
        )


def _not_finite(tensor: Tensor) -> list[int]:
    return [int(row) for row in (~torch.isfinite(tensor).all(-1)).nonzero()]
