"""A bank: centroids and the vision mean of one model, and what they were fitted on; one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tccd.atomic import write_atomic
from tccd.centroids.bankfile import pack, tccd_version, typed, unpack
from tccd.centroids.belonging import check_belongs
from tccd.centroids.entry import Entry, Key, key_name, key_names, parse_key
from tccd.centroids.hub import download, upload
from tccd.centroids.npz import read_npz
from tccd.centroids.remarks import remarks
from tccd.centroids.replacement import Centroids
from tccd.centroids.values import check_centroids, check_vision_mean, matrix
from tccd.decoder import ModelIdentity, identify
from tccd.errors import BankError, BankMismatchError
from tccd.modality import Modality

#: Name of a bank's file in a folder or a hub repository.
BANK_FILE = "bank.safetensors"

#: Name of the vision mean in a bank's file, and of what is known of it in its provenance.
VISION_MEAN = "vision_mean"


@dataclass(frozen=True, repr=False, eq=False)
class CentroidBank:
    """Centroids of any number of (modality, layer) pairs of one model, its vision mean, or both.

    Made by `tccd.fit_bank`, `CentroidBank.from_arrays` or `CentroidBank.from_npz`; kept in one safetensors
    file whose metadata says what it is for, and whose checksum covers tensors and metadata.

    Attributes:
        model: the model that the centroids belong to.
        tensors: by (modality, layer), each of shape (K, hidden), fp32, on the CPU.
        entries: by (modality, layer), how each came about.
        provenance: JSON values on the data: `data` (source), `prompt`, `images` (number), `created`, `pictures`
            (their digests, see `pictures`), `copies` (pictures that show the same as another), `vision_mean`
            (`images`, `tokens`: what it is a mean of), others.
        tccd_version: version of tccd that made it.
        vision_mean: what the reference `mean-vision` shows in an image's place: shape (num_layers, hidden), fp32,
            on the CPU. Row `L` is the mean, over all vision tokens of the fitted images, of what the attention of
            decoder layer `L` is given, behind the layer's first norm. None where it was not fitted.

    Raises:
        BankError: there is neither an entry nor a vision mean; one of them is empty, not fp32, not finite, not of
            the model's width or layers; or `provenance["pictures"]` is no list of texts.

    Example:
        >>> from tccd.decoder import ModelIdentity
        >>> model = ModelIdentity("demo", None, "llava", hidden_size=4, num_layers=6, fingerprint=None)
        >>> bank = CentroidBank.from_arrays(model, {("text", 2): torch.eye(4)}, data="made by hand")
        >>> bank
        CentroidBank(demo: text.2 k=4; width 4, data 'made by hand')
        >>> bank.centroids("text", 2).vectors.shape
        torch.Size([4, 4])
        >>> bank.check(model)
    """

    model: ModelIdentity
    tensors: Mapping[Key, Tensor]
    entries: Mapping[Key, Entry]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tccd_version: str = ""
    vision_mean: Tensor | None = None
    _centroids: dict[Key, Centroids] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not self.tensors and self.vision_mean is None:
            raise BankError("a bank needs at least one (modality, layer) entry, or a vision mean; it has none")
        if set(self.tensors) != set(self.entries):
            raise BankError(
                f"tensors are there for {key_names(self.tensors)}, but entries for {key_names(self.entries)}"
            )
        for key, tensor in self.tensors.items():
            check_centroids(self.model, key, tensor, self.entries[key].k)
        if self.vision_mean is not None:
            check_vision_mean(self.model, self.vision_mean)
        pictures = self.provenance.get("pictures", [])
        if not isinstance(pictures, list | tuple) or not all(isinstance(one, str) for one in pictures):
            raise BankError('provenance["pictures"] is no list of picture digests (texts)')
        object.__setattr__(self, "tensors", dict(sorted(self.tensors.items())))
        object.__setattr__(self, "entries", dict(sorted(self.entries.items())))
        object.__setattr__(self, "provenance", dict(self.provenance))
        object.__setattr__(self, "tccd_version", self.tccd_version or tccd_version())

    # What it holds

    def centroids(self, modality: Modality, layer: int) -> Centroids:
        """The centroids of one modality at one layer, ready for the search; the same object at every call.

        Raises:
            BankMismatchError: the bank has no such entry; lists what it holds.
        """
        if (modality, layer) not in self.tensors:
            raise BankMismatchError(
                f"the bank has no {modality} centroids at layer {layer}; it holds {self._held()}. "
                "Ask for one of these, or fit a bank with that layer"
            )
        key = modality, layer
        if key not in self._centroids:
            self._centroids[key] = Centroids(self.tensors[key])
        return self._centroids[key]

    def layers(self, modality: Modality) -> tuple[int, ...]:
        """The layers that one modality has centroids at, ascending."""
        return tuple(layer for m, layer in self.tensors if m == modality)

    @property
    def pictures(self) -> frozenset[str]:
        """Digests of the pictures it was fitted on (`tccd.data.pictures.picture_digest`); none in older banks."""
        return frozenset(self.provenance.get("pictures", ()))

    def shared_pictures(self, digests: Iterable[str]) -> int:
        """How many of these pictures the bank was fitted on; each digest counts once.

        Args:
            digests: of the pictures to be asked about. Results on pictures that the bank has seen are not held
                out.
        """
        return len(self.pictures.intersection(digests))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting it: empty clusters, few distinct rows, few images, copies."""
        return tuple(remarks(self.entries, self.provenance))

    def check(self, model: Any, fitted_on: str | None = None) -> str | None:
        """Make sure that the bank belongs to a model.

        Width and number of layers have to match. Then the fingerprints of the weights decide, where both sides
        have one: equal weights are the same model under any name and revision. Else model id and revision decide,
        where both sides know their hub revision; else the fingerprint of the embeddings; else the model id.

        Args:
            model: a transformers model, or its `ModelIdentity`.
            fitted_on: the bank's model id, to accept a model of the same type and shape but other weights as a
                quantised or otherwise rewritten copy of it. Results then rest on your word; reports say so.

        Returns:
            `fitted_on` where the model passed by it alone; None where the model is the bank's.

        Raises:
            BankMismatchError: says what does not match and what to do.
        """
        return check_belongs(self.model, _identity(model), fitted_on)

    def _held(self) -> str:
        names = [key_names(self.tensors)] if self.tensors else []
        return ", ".join([*names, *([] if self.vision_mean is None else ["a vision mean"])])

    def __repr__(self) -> str:
        parts = [f"{key_name(key)} k={len(t)}" for key, t in self.tensors.items()]
        held = ", ".join([*parts, *([] if self.vision_mean is None else [VISION_MEAN])])
        known = "".join(
            f", {name} {self.provenance[name]!r}" for name in ("data", "images") if name in self.provenance
        )
        return f"CentroidBank({self.model.model_id}: {held}; width {self.model.hidden_size}{known})"

    # Made elsewhere

    @classmethod
    def from_arrays(
        cls, model: Any, arrays: Mapping[Key, Any], vision_mean: Any = None, **provenance: Any
    ) -> CentroidBank:
        """A bank of centroids, a vision mean, or both, that were made elsewhere.

        Args:
            model: the transformers model that they belong to, or its `ModelIdentity`.
            arrays: by (modality, layer), each of shape (K, hidden) and floating point, as a numpy array or tensor.
            vision_mean: what each layer's attention is given for a mean vision token, of shape (num_layers,
                hidden).
            provenance: what is known of them (`data`, `prompt`, `images`, ...), as JSON values.

        Raises:
            BankError: an array is not a finite floating-point matrix, or provenance is not JSON.
            BankMismatchError: an array's width or layer is not the model's.
        """
        tensors = {key: matrix(array, repr(key)) for key, array in arrays.items()}
        mean = None if vision_mean is None else matrix(vision_mean, VISION_MEAN, "num_layers")
        entries = {key: Entry(k=len(tensor)) for key, tensor in tensors.items()}
        try:
            provenance = json.loads(json.dumps(provenance, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BankError(f"provenance can't be written as JSON: {error}") from error
        return cls(_identity(model), tensors, entries, provenance, vision_mean=mean)

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
        arrays, note = read_npz(path, text_layer, vision_layer)
        return cls.from_arrays(model, arrays, data=path.name, metadata=note)

    # Files

    def save(self, path: str | Path) -> None:
        """Write the bank to one safetensors file; a crash leaves the old file or the new one, never a half.

        What was written is read back before it takes the place of an older file.

        Raises:
            BankError: the folder does not exist, the path is a folder, or what was written does not come back as
                it was; the old file is still there.
            WriteError: the disk is full or the folder read-only; the old file is still there.
        """
        path = Path(path)
        if path.is_dir():
            raise BankError(f"{path} is a folder; give a file name, such as {path / BANK_FILE}")
        if not path.parent.is_dir():
            raise BankError(f"{path.parent} is no folder; make it first")

        def check(written: Path) -> None:
            try:
                same = self._equals(CentroidBank.load(written))
            except BankError as error:
                raise BankError(f"{path} was not saved: what was written can't be read back: {error}") from error
            if not same:
                raise BankError(
                    f"{path} was not saved: what was written reads back as another bank; check the disk"
                )

        write_atomic(path, self._bytes(), check)

    def _equals(self, other: CentroidBank) -> bool:
        mine, others = (
            (bank.model, bank.entries, bank.tccd_version, json.dumps(bank.provenance, sort_keys=True))
            for bank in (self, other)
        )
        held, back = self._named(), other._named()
        return mine == others and set(held) == set(back) and all(torch.equal(held[n], back[n]) for n in held)

    def _named(self) -> dict[str, Tensor]:
        named = {key_name(key): tensor for key, tensor in self.tensors.items()}
        return named if self.vision_mean is None else named | {VISION_MEAN: self.vision_mean}

    def _bytes(self) -> bytes:
        metadata = {
            "tccd_version": self.tccd_version,
            "model": asdict(self.model),
            "entries": {key_name(key): asdict(entry) for key, entry in self.entries.items()},
            "provenance": dict(self.provenance),
        }
        return pack(self._named(), metadata)

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
        mean = tensors.pop(VISION_MEAN, None)
        try:
            bank = cls(
                model=typed(ModelIdentity, metadata["model"]),
                tensors={parse_key(name): tensor for name, tensor in tensors.items()},
                entries={parse_key(name): typed(Entry, entry) for name, entry in metadata["entries"].items()},
                provenance=metadata["provenance"],
                tccd_version=metadata["tccd_version"],
                vision_mean=mean,
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
        return cls.load(download(str(repo_id), BANK_FILE, revision), model)

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
        return upload(self._bytes(), BANK_FILE, repo_id, revision, private, token, commit_message)

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
