"""Exceptions of tccd: one small family; every message says what was found, what was expected, what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class TCCDError(Exception):
    """Base class of every error that tccd raises on purpose."""


class ConfigError(TCCDError, ValueError):
    """A parameter is out of range, of the wrong type, or contradicts another."""


class ModalityError(TCCDError, ValueError):
    """The vision positions or the text tail of a prompt can't be told."""


class UnsupportedModelError(TCCDError, ValueError):
    """The model, or the way it is called, breaks an assumption that exact decoding needs."""


class BankError(TCCDError, ValueError):
    """A centroid bank file is malformed: truncated, tampered with, or not a bank at all."""


class BankMismatchError(BankError):
    """A sound bank is used with a model, revision, width, modality or layer it was not fitted for."""


class BranchError(TCCDError, ValueError):
    """A file of a side branch is malformed, or holds no layer of the model's shape."""


class BranchMismatchError(BranchError):
    """A sound side branch is used with a model that it was not made for."""


class FitError(TCCDError, ValueError):
    """K-means can't be fitted to these rows, or a harvest can't be resumed with these settings."""


class DataError(TCCDError, ValueError):
    """A data source can't be read as images, prompts and answers."""


class WriteError(TCCDError, OSError):
    """A file can't be written: the disk is full, or the folder is read-only."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class BusyError(TCCDError, RuntimeError):
    """Another run holds the folder."""


class MissingExtraError(TCCDError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency where it is used.

    Args:
        module: dotted name of the module to import.
        extra: the extra of tccd that installs it.

    Raises:
        MissingExtraError: the module is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed; it comes with an extra: pip install 'tccd[{extra}]'"
        ) from error
