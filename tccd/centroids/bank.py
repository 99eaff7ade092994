"""A bank of centroids: what was fitted, for which model, on what; one safetensors file, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tccd.atomic import write_atomic
from tccd.centroids.bankfile import pack, unpack
from tccd.decoder import ModelIdentity, identify
from tccd.errors import BankError, BankMismatchError
from tccd.modality import MODALITIES, Modality

#: Name of a bank's file in a folder or a hub repository.
BANK_FILE = "bank.safetensors"

Key = tuple[Modality, int]


@dataclass(frozen=True)
class Entry:
    """How one set of centroids came about; None where it is not known (centroids made elsewhere).

    Attributes:
        k: number of centroids.
        rows: rows that were fitted.
        seed: of k-means.
        iterations: of k-means, at most.
        inertia: sum of squared distances of the fitted rows to their centroids.
        backend: "faiss-gpu", "faiss-cpu" or "sklearn".
        backend_version: its version.
        empty_clusters: centroids that no row was nearest to.
        dropped_rows: rows left out because they held a value that is not finite.
        sampled_out_rows: finite rows left out to bound memory.
    """

    k: int
    rows: int | None = None
    seed: int | None = None
    iterations: int | None = None
    inertia: float | None = None
    backend: str | None = None
    backend_version: str | None = None
    empty_clusters: int | None = None
    dropped_rows: int | None = None
    sampled_out_rows: int | None = None


@dataclass(frozen=True, repr=False, eq=False)
class CentroidBank:
    """Centroids of any number of (modality, layer) pairs of one model.

    Made by `tccd.fit_bank`, `CentroidBank.from_arrays` or `CentroidBank.from_npz`; kept in one safetensors
    file whose metadata says what it is for, and whose checksum covers tensors and metadata.

    Attributes:
        model: the model that the centroids belong to.
        tensors: by (modality, layer), each of shape (K, hidden), fp32, on the CPU.
        entries: by (modality, layer), how each came about.
        provenance: JSON values on the data: `data` (source), `prompt`, `images` (number), `created`, others.
        tccd_version: version of tccd that made it.

    Raises:
        BankError: an entry is empty, not fp32, not finite, not of the model's width, or above its last layer.

    Example:
        >>> from tccd.decoder import ModelIdentity
        >>> model = ModelIdentity("demo", None, "llava", hidden_size=4, num_layers=6, fingerprint=None)
        >>> bank = CentroidBank.from_arrays(model, {("text", 2): torch.eye(4)}, data="made by hand")
        >>> bank
        CentroidBank(demo: text.2 k=4; width 4, data 'made by hand')
        >>> bank.centroids("text", 2).shape
        torch.Size([4, 4])
        >>> bank.check(model)
    """

    model: ModelIdentity
    tensors: Mapping[Key, Tensor]
    entries: Mapping[Key, Entry]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tccd_version: str = ""

    def __post_init__(self) -> None:
        if not self.tensors:
            raise BankError("a bank needs at least one (modality, layer) entry; this one has none")
        if set(self.tensors) != set(self.entries):
            raise BankError(
                f"tensors are there for {_names(self.tensors)}, but entries for {_names(self.entries)}"
            )
        for key, tensor in self.tensors.items():
            self._check_entry(key, tensor)
        object.__setattr__(self, "tensors", dict(sorted(self.tensors.items())))
        object.__setattr__(self, "entries", dict(sorted(self.entries.items())))
        object.__setattr__(self, "provenance", dict(self.provenance))
        object.__setattr__(self, "tccd_version", self.tccd_version or _tccd_version())

    def _check_entry(self, key: Key, tensor: Tensor) -> None:
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] in MODALITIES and type(key[1]) is int):
            raise BankError(f"entry {key!r} is no (modality, layer) pair such as ('text', 12)")
        name = _name(key)
        if tensor.dtype != torch.float32:
            raise BankError(f"{name} is {tensor.dtype}; expected torch.float32")
        if tensor.ndim != 2 or not tensor.shape[0] or tensor.shape[0] != self.entries[key].k:
            raise BankError(
                f"{name} has shape {tuple(tensor.shape)}; expected ({self.entries[key].k}, "
                f"{self.model.hidden_size}) with at least one centroid"
            )
        if tensor.shape[1] != self.model.hidden_size:
            raise BankMismatchError(
                f"{name} has width {tensor.shape[1]}, but {self.model.model_id} has hidden size "
                f"{self.model.hidden_size}; these centroids belong to another model"
            )
        if not 0 <= key[1] < self.model.num_layers:
            raise BankMismatchError(
                f"{name}: layer {key[1]} is out of range; {self.model.model_id} has decoder layers 0 to "
                f"{self.model.num_layers - 1}"
            )
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor).all(-1)).sum())
            raise BankError(f"{name}: {bad} of {len(tensor)} centroids are not finite; refit the bank")

    # What it holds

    def centroids(self, modality: Modality, layer: int) -> Tensor:
        """The centroids of one modality at one layer, shape (K, hidden), fp32.

        Raises:
            BankMismatchError: the bank has no such entry; lists what it holds.
        """
        if (modality, layer) not in self.tensors:
            raise BankMismatchError(
                f"the bank has no {modality} centroids at layer {layer}; it holds {_names(self.tensors)}. "
                "Ask for one of these, or fit a bank with that layer"
            )
        return self.tensors[modality, layer]

    def layers(self, modality: Modality) -> tuple[int, ...]:
        """The layers that one modality has centroids at, ascending."""
        return tuple(layer for m, layer in self.tensors if m == modality)

    def check(self, model: Any) -> None:
        """Make sure that the bank belongs to a model.

        Width and number of layers have to match. Then, where both sides know their hub revision, model id and
        revision decide; else the fingerprint of the weights, where both have one; else that of the embeddings;
        else the model id.

        Args:
            model: a transformers model, or its `ModelIdentity`.

        Raises:
            BankMismatchError: says what does not match and what to do.
        """
        mine, other = self.model, _identity(model)
        differ = []
        if mine.hidden_size != other.hidden_size:
            differ.append(f"width: bank {mine.hidden_size}, model {other.hidden_size}")
        if mine.num_layers != other.num_layers:
            differ.append(f"number of layers: bank {mine.num_layers}, model {other.num_layers}")
        if mine.revision and other.revision:
            if mine.model_id != other.model_id:
                differ.append(f"model id: bank {mine.model_id!r}, model {other.model_id!r}")
            if mine.revision != other.revision:
                differ.append(f"revision: bank {mine.revision}, model {other.revision}")
        elif mine.fingerprint and other.fingerprint:
            if mine.fingerprint != other.fingerprint:
                differ.append(
                    f"weights: bank {mine.model_id!r} with fingerprint {mine.fingerprint[:12]}, model "
                    f"{other.model_id!r} with {other.fingerprint[:12]}"
                )
        elif mine.embedding and other.embedding:
            if mine.embedding != other.embedding:
                differ.append(
                    f"embeddings: bank {mine.model_id!r} with fingerprint {mine.embedding[:12]}, model "
                    f"{other.model_id!r} with {other.embedding[:12]}"
                )
        elif mine.model_id != other.model_id:
            differ.append(f"model id: bank {mine.model_id!r}, model {other.model_id!r}")
        if differ:
            raise BankMismatchError(
                f"the bank was fitted for another model ({'; '.join(differ)}). Load the model it was fitted "
                "for, with that revision, or fit a bank for this one (tccd fit)"
            )

    def __repr__(self) -> str:
        held = ", ".join(f"{_name(key)} k={len(t)}" for key, t in self.tensors.items())
        known = "".join(
            f", {name} {self.provenance[name]!r}" for name in ("data", "images") if name in self.provenance
        )
        return f"CentroidBank({self.model.model_id}: {held}; width {self.model.hidden_size}{known})"

    # Made elsewhere

    @classmethod
    def from_arrays(cls, model: Any, arrays: Mapping[Key, np.ndarray | Tensor], **provenance: Any) -> CentroidBank:
        """A bank of centroids that were made elsewhere.

        Args:
            model: the transformers model that they belong to, or its `ModelIdentity`.
            arrays: by (modality, layer), each of shape (K, hidden) and floating point.
            provenance: what is known of them (`data`, `prompt`, `images`, ...), as JSON values.

        Raises:
            BankError: an array is not a finite floating-point matrix, or provenance is not JSON.
            BankMismatchError: an array's width or layer is not the model's.
        """
        tensors = {}
        for key, array in arrays.items():
            tensor = array if isinstance(array, Tensor) else _tensor(array, key)
            if not tensor.is_floating_point() or tensor.ndim != 2:
                raise BankError(
                    f"{key!r} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected a floating-point "
                    "(K, hidden) matrix"
                )
            tensors[key] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        entries = {key: Entry(k=len(tensor)) for key, tensor in tensors.items()}
        try:
            provenance = json.loads(json.dumps(provenance, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BankError(f"provenance can't be written as JSON: {error}") from error
        return cls(model=_identity(model), tensors=tensors, entries=entries, provenance=provenance)

    @classmethod
    def from_npz(cls, path: str | Path, model: Any, text_layer: int = 12, vision_layer: int = 16) -> CentroidBank:
        """A bank from the reference release's `.npz` with `text_centroids`, `vis_centroids`, or one of them.

        Its optional scalar `metadata_json` is kept as provenance; the layers it names as `text_layer` and
        `vision_layer` (or `vis_layer`) win over the arguments.

        Args:
            path: the file; nothing pickled in it is ever loaded.
            model: the transformers model that the centroids belong to, or its `ModelIdentity`.
            text_layer: layer of the text centroids.
            vision_layer: layer of the vision centroids.

        Raises:
            BankError: no such file, not such an archive, or its metadata is not JSON.
            BankMismatchError: the arrays' width or layer is not the model's.
        """
        path = Path(path)
        _file(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {
                    name: archive[name]
                    for name in ("text_centroids", "vis_centroids", "metadata_json")
                    if name in archive.files
                }
                found = list(archive.files)
        except Exception as error:  # a damaged archive fails in many ways: zip, zlib, struct, numpy
            raise BankError(f"{path} can't be read as .npz without pickle: {error}") from error
        note: Any = {}
        if "metadata_json" in arrays:
            try:
                note = json.loads(str(arrays.pop("metadata_json")))
            except ValueError as error:
                raise BankError(f"{path}: metadata_json is not JSON: {error}") from error
        if not arrays:
            raise BankError(
                f"{path} holds {', '.join(found) or 'nothing'}; expected text_centroids or vis_centroids"
            )
        known = note if isinstance(note, dict) else {}
        layers = {
            "text_centroids": ("text", known.get("text_layer", text_layer)),
            "vis_centroids": ("vision", known.get("vision_layer", known.get("vis_layer", vision_layer))),
        }
        bank: dict[Any, Any] = {layers[name]: array for name, array in arrays.items()}
        return cls.from_arrays(model, bank, data=path.name, metadata=note)

    # Files

    def save(self, path: str | Path) -> None:
        """Write the bank to one safetensors file; a crash leaves the old file or the new one, never a half.

        Raises:
            BankError: the folder does not exist, or the path is a folder.
        """
        path = Path(path)
        if path.is_dir():
            raise BankError(f"{path} is a folder; give a file name, such as {path / BANK_FILE}")
        if not path.parent.is_dir():
            raise BankError(f"{path.parent} is no folder; make it first")
        write_atomic(path, self._bytes())

    def _bytes(self) -> bytes:
        metadata = {
            "tccd_version": self.tccd_version,
            "model": asdict(self.model),
            "entries": {_name(key): asdict(entry) for key, entry in self.entries.items()},
            "provenance": dict(self.provenance),
        }
        return pack({_name(key): tensor for key, tensor in self.tensors.items()}, metadata)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> CentroidBank:
        """Read a bank, verify its checksum, and check it against a model where one is given.

        Args:
            path: the file, or a folder with a `bank.safetensors`.
            model: as for `check`; None to check later.

        Raises:
            BankError: missing, truncated, tampered with, not finite, or no bank at all; says which.
            BankMismatchError: it belongs to another model.
        """
        path = Path(path)
        if path.is_dir() and (path / BANK_FILE).is_file():
            path = path / BANK_FILE
        _file(path)
        tensors, metadata = unpack(path)
        try:
            bank = cls(
                model=ModelIdentity(**metadata["model"]),
                tensors={_key(name): tensor for name, tensor in tensors.items()},
                entries={_key(name): Entry(**entry) for name, entry in metadata["entries"].items()},
                provenance=metadata["provenance"],
                tccd_version=metadata["tccd_version"],
            )
        except BankError as error:
            raise type(error)(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BankError(f"{path}: its metadata does not describe a bank ({error!r}); refit it") from error
        if model is not None:
            bank.check(model)
        return bank

    @classmethod
    def from_pretrained(cls, repo_id: str | Path, revision: str | None = None, model: Any = None) -> CentroidBank:
        """Read a bank from a local file or folder, or from the Hugging Face hub.

        Args:
            repo_id: a path, or a hub id whose repository holds `bank.safetensors`.
            revision: branch, tag or commit; for the hub only.
            model: as for `check`; None to check later.

        Raises:
            BankError: as for `load`; or the hub has no such repository, revision or file.
        """
        if Path(repo_id).exists():
            if revision is not None:
                raise BankError(f"{repo_id} is a local path, which has no revision {revision!r}; leave it out")
            return cls.load(repo_id, model)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(str(repo_id), BANK_FILE, revision=revision)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise BankError(
                f"{repo_id} is no local path, and {BANK_FILE} can't be had from such a hub repository"
                f"{f' at revision {revision}' if revision else ''}: {error}"
            ) from error
        return cls.load(path, model)

    def push_to_hub(
        self,
        repo_id: str,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload centroid bank",
    ) -> str:
        """Upload the bank to a hub repository as `bank.safetensors`, making the repository where needed.

        Returns:
            The address of the commit.

        Raises:
            huggingface_hub.errors.HfHubHTTPError: the hub refuses, as it says.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(
            api.upload_file(
                path_or_fileobj=self._bytes(),
                path_in_repo=BANK_FILE,
                repo_id=repo_id,
                revision=revision,
                commit_message=commit_message,
            )
        )

    def with_provenance(self, **provenance: Any) -> CentroidBank:
        """The same bank with more known of where it comes from."""
        return replace(self, provenance={**self.provenance, **provenance})


def _identity(model: Any) -> ModelIdentity:
    return model if isinstance(model, ModelIdentity) else identify(model)


def _file(path: Path) -> None:
    if path.is_dir():
        raise BankError(f"{path} is a folder; expected a file, or a folder with {BANK_FILE}")
    if not path.is_file():
        raise BankError(f"{path} does not exist; fit a bank first (tccd fit), or check the path")


def _tensor(array: Any, key: Any) -> Tensor:
    array = np.asarray(array)
    if array.dtype.kind != "f":
        raise BankError(f"{key!r} is an array of {array.dtype}; expected floating point")
    return torch.from_numpy(array.astype(np.float32))


def _name(key: Any) -> str:
    return f"{key[0]}.{key[1]}"


def _names(keys: Any) -> str:
    return ", ".join(_name(key) for key in sorted(keys)) or "nothing"


def _key(name: str) -> Key:
    modality, _, layer = name.partition(".")
    if modality not in MODALITIES or not layer.isdecimal():
        raise BankError(f"tensor {name!r} is no centroid entry; expected names such as 'text.12'")
    return modality, int(layer)


def _tccd_version() -> str:
    try:
        return version("tccd")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
