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

VARIABLE = "TCCD_BANK"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Banks:
    """Centroid banks by name.

    Args:
        banks: name -> bank with text centroids at one layer or more.

    Attributes:
        default: the first name, which a request that names no bank gets.

    Raises:
        BankError: no bank, or one without text centroids.
    """

    def __init__(self, banks: Mapping[str, CentroidBank]) -> None:
        if not banks:
            raise BankError(f"no bank: set {VARIABLE} to a file, or to name=file,name=file")
        for name, bank in banks.items():
            if not bank.layers("text"):
                raise BankError(f"bank {name!r} has no text centroids, which TCCD decodes against; fit text=LAYER")
        self._banks = dict(banks)
        self.default = next(iter(banks))

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the operator's order."""
        return tuple(self._banks)

    def __getitem__(self, name: str) -> CentroidBank:
        return self._banks[name]

    def layers(self, name: str | None = None) -> tuple[int, ...]:
        """Layers with text centroids, ascending: of one bank, or of all."""
        names = self.names if name is None else (name,)
        return tuple(sorted({layer for n in names for layer in self._banks[n].layers("text")}))

    @property
    def digests(self) -> dict[str, str]:
        """By name, a hash of the bank's text centroids at all their layers."""
        return {name: self._whole(name) for name in self.names}

    @lru_cache(maxsize=64)  # noqa: B019 - one object a process
    def _whole(self, name: str) -> str:
        parts = [f"{layer}:{self.digest(name, layer)}" for layer in self.layers(name)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def describe(self) -> str:
        """One line: names, layers and digests."""
        return "; ".join(
            f"bank {name!r} of {self[name].model.model_id} with text centroids at layers "
            f"{', '.join(map(str, self.layers(name)))} (digest {digest[:12]})"
            for name, digest in self.digests.items()
        )

    @lru_cache(maxsize=64)  # noqa: B019 - one object a process
    def digest(self, name: str, layer: int) -> str:
        """Hash of the text centroids of one bank at one layer: what a cached state depends on."""
        vectors = self._banks[name].centroids("text", layer).vectors
        return hashlib.sha256(vectors.contiguous().numpy().tobytes()).hexdigest()[:32]


def parse(value: str) -> dict[str, str]:
    """`TCCD_BANK` -> file by name; a single file without a name is called "default".

    Raises:
        ConfigError: an empty or malformed value, or a name that comes twice.
    """
    files: dict[str, str] = {}
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
    """Whether the operator named a bank."""
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
