"""What a probe's outcome depends on, in a form that two runs can be compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import transformers

import tccd
from tccd.centroids.bank import CentroidBank
from tccd.data import Sample
from tccd.decoder import identify


def fingerprint(model: Any, samples: Sequence[Sample], banks: Mapping[str, CentroidBank]) -> dict[str, Any]:
    """Model, data, banks and versions, as JSON values by name.

    Questions are hashed with their answers; of images, which are read one at a time, their ids.
    """
    asked = [(s.id, s.image_id, s.prompt, s.answer, s.choices, s.task) for s in samples]
    return {
        "model": asdict(identify(model)),
        "precision": f"{model.dtype} on {model.device.type}, {model.config._attn_implementation}",
        "data": f"{len(samples)} samples, {_digest(json.dumps(asked).encode())}",
        "banks": {name: _bank(bank) for name, bank in banks.items()},
        "versions": {package.__name__: package.__version__ for package in (tccd, torch, transformers)},
    }


def _bank(bank: CentroidBank) -> str:
    digest = hashlib.sha256()
    for (modality, layer), tensor in bank.tensors.items():
        digest.update(f"{modality}.{layer}.{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    if bank.vision_mean is not None:
        digest.update(b"vision_mean" + bank.vision_mean.numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
