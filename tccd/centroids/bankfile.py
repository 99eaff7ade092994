"""The file format of a bank: safetensors, with one JSON string of metadata and a checksum over everything.

What else belongs to a model (a side branch of `tccd.routing`) is a file of the same format and another `Kind`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tccd.errors import BankError, TCCDError

_T = TypeVar("_T")

FORMAT = 1


@dataclass(frozen=True)
class Kind:
    """What a file holds, and how errors speak of it.

    Attributes:
        key: of its metadata in the safetensors header. One key, because safetensors orders several as it likes,
            and equal content is to be an equal file.
        noun: as in "the bank".
        full: as in "expected a centroid bank".
        redo: what makes another one, as in "or refit it".
        hint: what to do with a pickle or an archive in its place.
        error: raised for a file that is none.
    """

    key: str
    noun: str
    full: str
    redo: str
    hint: str
    error: type[TCCDError]


BANK = Kind(
    "tccd_bank",
    "bank",
    "centroid bank",
    "refit it",
    "import an .npz with CentroidBank.from_npz (tccd bank import-npz)",
    BankError,
)

# A bank's header takes a few kB, and 22 bytes a picture. Reading one as JSON takes some 30 times its size.
_MAX_HEADER = 2**25

# A zip archive, and pickles of the protocols that begin with a sign of their own.
_NEVER_LOADED = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def pack(tensors: dict[str, Tensor], metadata: dict[str, Any], kind: Kind = BANK) -> bytes:
    """Tensors and JSON metadata -> the bytes of a file; the same bytes for the same content.

    Raises:
        BankError: or what its kind raises: the metadata is not JSON (a value of another type, a number that is
            not finite).
    """
    content = {"format": FORMAT, **metadata}
    try:
        content["checksum"] = _checksum(tensors, content)
    except (TypeError, ValueError, RecursionError) as error:
        raise kind.error(f"what the {kind.noun} knows of itself can't be written as JSON: {error}") from error
    return save_safetensors(tensors, {kind.key: json.dumps(content, sort_keys=True)})


def unpack(path: Path, kind: Kind = BANK) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file -> tensors and metadata, verified.

    Raises:
        BankError: or what its kind raises: says what is wrong with the file.
    """
    header = _header(path, kind)
    content = _content(path, header, kind)
    try:
        tensors = load_safetensors(path.read_bytes())
    except SafetensorError as error:
        raise kind.error(
            f"{path} is truncated or damaged: {error}. Copy or download it again, or {kind.redo}"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise kind.error(f"{path}: {name} is {tensor.dtype}; expected torch.float32")
    stated = content.pop("checksum", None)
    try:
        found = _checksum(tensors, content)
    except (ValueError, RecursionError) as error:
        raise kind.error(
            f"{path}: its {kind.key!r} metadata is no plain JSON ({error}); the file was changed"
        ) from error
    if stated != found:
        raise kind.error(
            f"{path}: its checksum is {str(stated)[:12]}, but its content has {found[:12]}; the file was "
            f"changed after it was saved. Copy or download it again, or {kind.redo}"
        )
    return tensors, content


def tccd_version() -> str:
    """The version that writes a file."""
    try:
        return version("tccd")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def typed(kind: type[_T], values: dict[str, Any]) -> _T:
    """A dataclass of plain values read from JSON.

    Raises:
        TypeError: a field is unknown, lacks, or is of another type.
    """
    for name, hint in get_type_hints(kind).items():
        expected = get_origin(hint) if get_origin(hint) in (dict, list) else hint
        value = values.get(name)
        number = isinstance(value, int) and not isinstance(value, bool)
        wrong = not isinstance(value, expected) or isinstance(value, bool)
        if name in values and wrong and not (number and isinstance(0.0, expected)):
            raise TypeError(f"{name} is {str(value)[:200]!r}")
    return kind(**values)


def _header(path: Path, kind: Kind) -> dict[str, Any]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if not head:
            raise kind.error(f"{path} is empty (0 bytes); expected a {kind.full}")
        length = int.from_bytes(head, "little")
        likely = 0 < length <= _MAX_HEADER
        # A length may begin with a pickle's first bytes, but read from a whole one it would be far longer.
        if not likely and head.startswith(_NEVER_LOADED):
            raise kind.error(
                f"{path} is a pickle or zip archive (a torch.save or .npz file), which is never loaded as a "
                f"{kind.noun}; {kind.hint}"
            )
        if not likely or len(head) < 8 or length > size - 8:
            raise kind.error(
                f"{path} is truncated or no safetensors file: its header claims {length} bytes, the file has "
                f"{size}, and a header has at most {_MAX_HEADER}"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise kind.error(f"{path} is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise kind.error(f"{path} is no safetensors file: its header is no JSON object")
    return header


def _content(path: Path, header: dict[str, Any], kind: Kind) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    text = metadata.get(kind.key) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        names = ", ".join(sorted(header)[:3])
        raise kind.error(
            f"{path} is a safetensors file of something else (it has no {kind.key!r} metadata, but {names}); "
            f"expected a {kind.full}"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind.error(f"{path}: its {kind.key!r} metadata is not JSON; the file was changed") from error
    if not isinstance(content, dict):
        raise kind.error(f"{path}: its {kind.key!r} metadata is no JSON object; the file was changed")
    if content.get("format") != FORMAT:
        raise kind.error(
            f"{path} has {kind.noun} format {content.get('format')!r}; this version of tccd reads format "
            f"{FORMAT}. Install the version that wrote it, or {kind.redo}"
        )
    return content


def _checksum(tensors: dict[str, Tensor], content: dict[str, Any]) -> str:
    told = json.dumps(content, sort_keys=True, allow_nan=False)
    # A lone surrogate is JSON, but no text that could be shown.
    json.dumps(content, ensure_ascii=False).encode()
    digest = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
