"""Banks that are damaged, forged, or something else; and arrays to import."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from tccd.centroids.bankfile import pack, unpack
from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "banks"
DEEP = "[" * 200_000 + "]" * 200_000


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    whole = world.bank.read_bytes()
    files = dict(_broken(world, whole)) | dict(_forged(world))
    for name, content in files.items():
        file = world.file(content, "bank.safetensors")
        yield Case(GROUP, f"show: {name}", ["bank", "show", file], "bank.safetensors|bank|centroid|entr")
    for name in ("empty", "cut at 400", "centroids that are not finite", "one layer too many", "deep metadata"):
        file = world.file(files[name], "bank.safetensors")
        yield Case(GROUP, f"generate: {name}", world.generate(bank=file))
        yield Case(GROUP, f"probe: {name}", world.probe(bank=file))
        yield Case(GROUP, f"verify: {name}", ["bank", "verify", file, "--model", world.model, "--json"])
    for name, path in (("a folder", world.photos), ("nothing", world.folder / "nope"), ("a device", "/dev/null")):
        yield Case(GROUP, f"show: {name}", ["bank", "show", path])
        yield Case(GROUP, f"generate: {name}", world.generate(bank=path))
    for name, content in _arrays(world):
        yield Case(GROUP, f"import: {name}", world.import_npz(world.file(content, "centroids.npz")))
    yield Case(GROUP, "import: a folder", world.import_npz(world.photos))
    yield Case(GROUP, "import: nothing", world.import_npz(world.folder / "nope.npz"))


def _broken(world: World, whole: bytes) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(0)
    header = int.from_bytes(whole[:8], "little")
    for at in (0, 1, 7, 8, 9, 400, 8 + header, 9 + header, len(whole) // 2, len(whole) - 1):
        yield ("empty" if at == 0 else f"cut at {at}"), whole[:at]
    for at in sorted(
        {draw.randrange(len(whole)) for _ in range(14)} | {draw.randrange(8 + header) for _ in range(14)}
    ):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << draw.randrange(8)
        yield f"one bit at {at}", bytes(flipped)
    for length in (0, 1, header - 1, header + 1, len(whole), 2**31, 2**63, 2**64 - 1):
        yield f"a header of {length} bytes", length.to_bytes(8, "little") + whole[8:]
    yield "more at its end", whole + b"\0"
    yield "twice", whole + whole
    yield "a text", b"not a bank at all\n"
    yield "zeros", bytes(4096)
    yield "a picture", world.picture.read_bytes()
    yield "weights", (world.model / "model.safetensors").read_bytes()
    yield "another safetensors file", save_safetensors({"text.1": torch.zeros(4, 128)}, {"tccd_bank": "5"})
    yield "deep metadata", save_safetensors({"text.1": torch.zeros(4, 128)}, {"tccd_bank": DEEP})
    yield "metadata that is no JSON", save_safetensors({"text.1": torch.zeros(4, 128)}, {"tccd_bank": "{"})
    yield "a deep header", len(DEEP).to_bytes(8, "little") + DEEP.encode()
    yield "a header of garbage whose length begins as a pickle does", (400_000).to_bytes(8, "little") + whole * 50
    yield "a header that is a list", (2).to_bytes(8, "little") + b"[]"
    yield "a pickle", pickle.dumps({"text.1": np.zeros((4, 128))})
    kept = io.BytesIO()
    torch.save({"text.1": torch.zeros(4, 128)}, kept)
    yield "a torch file", kept.getvalue()
    yield "arrays", world.arrays.read_bytes()
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w") as archive:
        archive.writestr("bank.safetensors", whole)
    yield "a zip archive", kept.getvalue()


def _forged(world: World) -> Iterator[tuple[str, bytes]]:
    """Banks with a right checksum over content that can't be."""
    tensors, content = unpack(world.bank)
    name = min(tensors)
    first = tensors[name]

    def with_tensor(tensor: torch.Tensor, called: str = name) -> Any:
        return lambda t, c: t.update({called: tensor})

    def with_content(*path: str, to: Any) -> Any:
        def change(_: Any, content: dict[str, Any]) -> None:
            at = content
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = to

        return change

    bad = first.clone()
    bad[0, 0] = float("nan")
    changes: dict[str, Callable[[dict, dict], Any]] = {
        "centroids that are not finite": with_tensor(bad),
        "infinite centroids": with_tensor(bad.nan_to_num(nan=float("inf"))),
        "centroids in half precision": with_tensor(first.half()),
        "one centroid too few": with_tensor(first[1:].contiguous()),
        "no centroid": with_tensor(first[:0]),
        "narrow centroids": with_tensor(first[:, :5].contiguous()),
        "centroids of three dimensions": with_tensor(first[None]),
        "a tensor without an entry": with_tensor(first.clone(), "text.3"),
        "a modality of its own": with_tensor(first.clone(), "audio.1"),
        "a name of its own": with_tensor(first.clone(), "centroids"),
        "one layer too many": lambda t, c: _rename(t, c, name, "text.99"),
        "a negative layer": lambda t, c: _rename(t, c, name, "text.-1"),
        "an entry without a tensor": lambda t, c: t.pop(name),
        "nothing in it": lambda t, c: (t.clear(), c["entries"].clear()),
        "another format": with_content("format", to=999),
        "a format that is a text": with_content("format", to="1"),
    }
    for key in content:
        if key not in ("format", "tccd_version"):  # the version is a label that nothing reads
            for kind, other in (("a number", 5), ("null", None), ("a list", [[]]), ("a text", "x" * 5000)):
                changes[f"{key} is {kind}"] = with_content(key, to=other)
            changes[f"no {key}"] = lambda t, c, key=key: c.pop(key)
    for key in content["model"]:
        if key not in ("revision", "fingerprint", "embedding"):
            changes[f"model.{key} is null"] = with_content("model", key, to=None)
        changes[f"model.{key} is a list"] = with_content("model", key, to=[1])
    for kind, other in _spoilt(tensors["vision_mean"]):
        changes[f"a vision mean {kind}"] = with_tensor(other, "vision_mean")
    changes["an entry of the vision mean"] = with_content("entries", "vision_mean", to={"k": 6})
    changes["a width of 0"] = with_content("model", "hidden_size", to=0)
    changes["no layers"] = with_content("model", "num_layers", to=0)
    changes["more of a model"] = with_content("model", "colour", to="red")
    for change, forge in changes.items():
        forged, told = dict(tensors), deepcopy(content)
        forge(forged, told)
        yield change, pack(forged, told)


def _spoilt(mean: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Vision means that can't be."""
    bad = mean.clone()
    bad[1, 0] = float("nan")
    yield "that is not finite", bad
    yield "of a layer too few", mean[1:].contiguous()
    yield "of a layer too many", torch.cat([mean, mean[:1]])
    yield "of another width", mean[:, 1:].contiguous()
    yield "in half precision", mean.half()
    yield "of one dimension", mean[0].contiguous()
    yield "of no dimension", torch.tensor(1.0)


def _rename(tensors: dict, content: dict, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)
    content["entries"] = json.loads(json.dumps(content["entries"]).replace(f'"{old}"', f'"{new}"'))


def _arrays(world: World) -> Iterator[tuple[str, bytes]]:
    sound = np.load(world.arrays)
    text, vision = sound["text_centroids"], sound["vis_centroids"]

    def npz(**arrays: Any) -> bytes:
        kept = io.BytesIO()
        np.savez(kept, **arrays)
        return kept.getvalue()

    whole = world.arrays.read_bytes()
    yield "empty", b""
    yield "half of it", whole[: len(whole) // 2]
    yield "a text", b"text_centroids\n"
    yield "a bank", world.bank.read_bytes()
    yield "a pickle", pickle.dumps({"text_centroids": text})
    yield "no array", npz()
    yield "other arrays", npz(centroids=text)
    yield "objects", npz(text_centroids=np.array([{}], dtype=object), vis_centroids=vision)
    yield "texts", npz(text_centroids=np.array([["a"] * 128]), vis_centroids=vision)
    yield "not finite", npz(text_centroids=text * np.nan, vis_centroids=vision)
    yield "narrow", npz(text_centroids=text[:, :5], vis_centroids=vision)
    yield "one dimension", npz(text_centroids=text[0], vis_centroids=vision)
    yield "no rows", npz(text_centroids=text[:0], vis_centroids=vision)
    yield "complex numbers", npz(text_centroids=text * 1j, vis_centroids=vision)
    yield "metadata that is no JSON", npz(text_centroids=text, vis_centroids=vision, metadata_json=np.array("{"))
    yield "deep metadata", npz(text_centroids=text, vis_centroids=vision, metadata_json=np.array(DEEP))
