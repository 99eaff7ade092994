"""Routes that a model has no layers for, and branches that are damaged, forged, or something else."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch

from tccd.centroids.bankfile import pack, unpack
from tccd.routing.branchfile import BRANCH
from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "routes"

TRAIN: dict[str, tuple[Any, ...]] = {
    "split_layer": (-1, 6, 99, 10**30, "x", "", 1.5, None),
    "fuse": (0, -1, 5, 99, "x"),
    "start": ("warm", ""),
    "mask": ("causal", ""),
    "positions": ("fresh",),
    "epochs": (0, -1, "x"),
    "limit": (0, "x"),
    "learning_rate": (0, -1, "nan", "inf", "x", "", 1),
    "weight_decay": (-1, "nan", 1, "x"),
    "warmup": (-1, "nan", 1, "x"),
    "seed": (-1, "x"),
    "batch_size": (0,),
    "split": ("train",),
    "column": ("answer=nothing", "answer="),
    "out": ("/proc/nope/branch", "/"),
    "work_dir": ("/proc/nope",),
}
GENERATE: dict[str, tuple[Any, ...]] = {
    "branch": ("", "nothing", "/", "/proc/nope", "IDENTITY", "\udcff", "a" * 5000, "identity", "none"),
    "split_layer": (-1, 1, 3, 99, "x"),
    "fuse": (0, 2, "x"),
    "max_new_tokens": (0, 10**6),
    "prompt": ("", "<image>"),
    "image": (None, "/proc/nope"),
    "batch_size": (0,),
}


def _forged(world: World) -> Iterator[tuple[str, bytes]]:
    tensors, content = unpack(world.branch, BRANCH)
    content.pop("checksum", None)
    name = sorted(tensors)[0]
    whole = world.branch.read_bytes()
    yield "empty", b""
    yield "half of it", whole[: len(whole) // 2]
    yield "one byte more", whole + b"\0"
    yield "a changed weight", whole[:-2] + bytes([whole[-2] ^ 64]) + whole[-1:]
    yield "a bank", world.bank.read_bytes()
    yield "a text", b"branch\n"
    yield "a pickle", b"\x80\x04" + whole
    yield "a state", (world.training / "training.safetensors").read_bytes()
    for what, tensor in (
        ("a weight of another shape", tensors[name][:-1].contiguous()),
        ("a weight in half precision", tensors[name].half()),
    ):
        yield what, pack(tensors | {name: tensor}, content, BRANCH)
    yield "a weight too few", pack({k: v for k, v in tensors.items() if k != name}, content, BRANCH)
    yield "a weight too many", pack(tensors | {"more": torch.zeros(1)}, content, BRANCH)
    yield "a weight that is not finite", pack(tensors | {name: tensors[name] * float("nan")}, content, BRANCH)
    for part, key, value in (
        ("branch", "split", 99),
        ("branch", "split", -1),
        ("branch", "split", "2"),
        ("branch", "fuse", 99),
        ("branch", "fuse", 0),
        ("branch", "mask", "causal"),
        ("branch", "start", None),
        ("branch", "more", 1),
        ("model", "hidden_size", 64),
        ("model", "num_layers", 99),
        ("model", "fingerprint", "0"),
        ("model", "model_id", 3),
        ("model", "colour", "red"),
    ):
        told = deepcopy(content)
        told[part][key] = value
        yield f"{part}.{key} is {value!r}", pack(tensors, told, BRANCH)
    for part in ("branch", "model"):
        for value in (None, [], 3, "x"):
            yield f"{part} is {value!r}", pack(tensors, content | {part: value}, BRANCH)
        yield f"no {part}", pack(tensors, {k: v for k, v in content.items() if k != part}, BRANCH)


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    for command, table in ((world.route_train, TRAIN), (world.route_generate, GENERATE)):
        for option, values in table.items():
            for value in values:
                shown = repr(value) if len(repr(value)) < 50 else repr(value)[:40] + "..."
                yield Case(GROUP, f"{command.__name__} --{option} {shown}", command(**{option: value}))
    for what, content in _forged(world):
        yield Case(GROUP, f"a branch, {what}", world.route_generate(branch=world.file(content, "branch")))
    together: dict[str, tuple[list[str], str]] = {
        "a route that leaves no layer": (world.route_train(split_layer=5, fuse=2), "split of at most 4"),
        "training on pictures without answers": (world.route_train(data=world.photos), "answer"),
        "training in another's folder": (
            world.route_train(work_dir=world.training, split_layer=3), "another branch"
        ),
        "training in a folder with another order": (
            world.route_train(work_dir=world.training, seed=3), "another"
        ),
        "identity with no split": (world.route_generate(branch="identity"), "--split-layer"),
        "none with a fusion": (world.route_generate(branch="none", split_layer=2, fuse=1), "--fuse"),
        "identity with no layer between": (
            world.route_generate(branch="identity", split_layer=5, fuse=2), "split of at most"
        ),
        "another model's branch": (world.route_generate(model=world.other), "another model"),
        "another split than the branch's": (world.route_generate(split_layer=3), "made for 2"),
        "no such command of routes": (["route", "trian"], "command"),
    }  # fmt: skip
    for name, (args, says) in together.items():
        yield Case(GROUP, name, args, says)
    yield Case(GROUP, "another model's branch, as JSON", [*world.route_generate(model=world.other), "--json"])
    for branch in ("identity", "none"):
        yield Case(GROUP, f"{branch} is sound", world.route_generate(branch=branch, split_layer=3), good=True)
    yield Case(GROUP, "training that is over goes on", world.route_train(work_dir=world.training), good=True)
