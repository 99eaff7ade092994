"""The operator's banks: `TCCD_BANK`, read once a process.

A digest of the centroids stands for them where processes compare their banks, and in the hashes of cached
blocks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from functools import lru_cache

from tccd.centroids.bank import CentroidBank
from tccd.errors import BankError, BankMismatchError, ConfigError
from tccd.modality import MODALITIES, Modality

VARIABLE = "TCCD_BANK"
#: Value of the variable that serves the references that need no bank.
NO_BANK = "none"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Banks:
    """Centroid banks by name.

    Args:
        banks: name -> bank with text or vision centroids at one layer or more; none serves the references that
            need no bank.

    Attributes:
        default: the first name, which a request that names no bank gets; empty without banks.

    Raises:
        BankError: a bank without centroids.
    """

    def __init__(self, banks: Mapping[str, CentroidBank]) -> None:
        for name, bank in banks.items():
            if not bank.layers("text") and not bank.layers("vision"):
                raise BankError(f"bank {name!r} has no text centroids, which TCCD decodes against; fit text=LAYER")
        self._banks = dict(banks)
        self.default = next(iter(banks), "")

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the operator's order."""
        return tuple(self._banks)

    def __getitem__(self, name: str) -> CentroidBank:
        return self._banks[name]

    def layers(self, name: str, modality: Modality = "text") -> tuple[int, ...]:
        """Layers where a bank has centroids of a modality, ascending."""
        return tuple(sorted(self._banks[name].layers(modality)))

    @property
    def entries(self) -> tuple[tuple[str, Modality, int], ...]:
        """Every set of centroids: bank, modality and layer, in an order that all processes share."""
        return tuple(
            (name, modality, layer)
            for name in self.names
            for modality in MODALITIES
            for layer in self.layers(name, modality)
        )

    @property
    def digests(self) -> dict[str, str]:
        """By name, a hash of all the bank's centroids."""
        return {name: self._whole(name) for name in self.names}

    @lru_cache(maxsize=64)  # noqa: B019 - one object a process
    def _whole(self, name: str) -> str:
        parts = [f"{m}:{layer}:{self.digest(n, layer, m)}" for n, m, layer in self.entries if n == name]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def describe(self) -> str:
        """One line: names, layers and digests."""
        return "; ".join(f"bank {n!r} of {self._described(n)} (digest {d[:12]})" for n, d in self.digests.items())

    def _described(self, name: str) -> str:
        kinds = " and ".join(
            f"{modality} centroids at layers {', '.join(map(str, layers))}"
            for modality in MODALITIES
            if (layers := self.layers(name, modality))
        )
        return f"{self[name].model.model_id} with {kinds}"

    @lru_cache(maxsize=64)  # noqa: B019 - one object a process
    def digest(self, name: str, layer: int, modality: Modality = "text") -> str:
        """Hash of the centroids of one bank at one layer: what a cached state depends on."""
        vectors = self._banks[name].centroids(modality, layer).vectors
        return hashlib.sha256(vectors.contiguous().numpy().tobytes()).hexdigest()[:32]


def parse(value: str) -> dict[str, str]:
    """`TCCD_BANK` -> file by name; a single file without a name is called "default", and "none" is no file.

    Raises:
        ConfigError: an empty or malformed value, or a name that comes twice.
    """
    files: dict[str, str] = {}
    if value == NO_BANK:
        return files
    parts = [part.strip() for part in value.split(",")]
    for part in parts:
        name, equals, file = part.partition("=")
        if not equals:
            name, file = "default", part
        if not equals and part and len(parts) > 1:
            raise ConfigError(
                f"{VARIABLE} is {value!r}: a comma parts one bank from the next, and {part!r} has no name. For "
                "several banks, write name=file,name=file. If the comma is part of a path, rename the file, or "
                "make a link to it"
            )
        if not file or not _NAME.fullmatch(name):
            raise ConfigError(f"{VARIABLE} is {value!r}; expected a file, or name=file,name=file")
        if name in files:
            raise ConfigError(f"{VARIABLE} is {value!r}, which names {name!r} twice")
        files[name] = file
    return files


def enabled() -> bool:
    """Whether the operator turned TCCD on: named a bank, or said that there is none."""
    return bool(os.environ.get(VARIABLE))


@lru_cache
def loaded() -> Banks:
    """The operator's banks.

    Raises:
        BankError: a file is missing or no bank; says which.
    """
    banks = {}
    for name, file in parse(os.environ[VARIABLE]).items():
        try:
            banks[name] = CentroidBank.load(file)
        except BankMismatchError:
            raise
        except BankError as error:
            raise BankError(f"{VARIABLE}, bank {name!r}: {error}") from error
    return Banks(banks)
