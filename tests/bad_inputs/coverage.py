"""`tccd probe coverage` with what does not fit: options, banks, data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "coverage"

OPTIONS: dict[str, tuple[Any, ...]] = {
    "layers": ("", "all", "text=1,2", "text=99", "text=2", "audio=1", "text=x"),
    "least": (0, -1, "x"),
    "draws": (-1, 5, "x"),
    "text": ("words", ""),
    "subset": (0, -1, "x", 10**6),
    "subset_by": ("random", "x", "coincide"),
    "images": (0, "x"),
    "per_image": (0, "x"),
    "seed": (-1, "x"),
    "split": ("train", ["train", "test"]),
    "data_revision": ("main",),
    "column": ("nothing=prompt", "facts=nope", "prompt=answers"),
    "batch_size": (0,),
    "device": ("cuda:99",),
    "data": ("", "./nope", "nope.jsonl"),
    "model": ("", "./nope"),
    "bank": ("", "/proc/nope"),
}


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    yield Case(GROUP, "a set", world.coverage(), good=True)
    for option, values in OPTIONS.items():
        for value in values:
            yield Case(GROUP, f"--{option} {value!r}", world.coverage(**{option: value}))
    rows = [json.dumps(row | {"facts": facts}) for row, facts in zip(world.rows, ("x", [[]], [[1]]), strict=False)]
    for name, row in zip(("a text", "an empty fact", "a number"), rows, strict=True):
        yield Case(GROUP, f"facts that are {name}", world.coverage(data=world.questions(row)), "facts")
    taken = world.file("", "out")
    together: dict[str, tuple[list[str], str]] = {
        "no --data": (world.coverage(data=None), "--data"),
        "no --bank": (world.coverage(bank=None), "--bank"),
        "a bank of another model": (world.coverage(bank=world.other_bank), "model"),
        "a bank of a vision mean alone": (world.coverage(bank=world.mean), "centroids"),
        "a picture for a bank": (world.coverage(bank=world.picture), ""),
        "a file for a folder": (world.coverage(out=taken), "--out"),
        "a bank of one of two sets": (world.coverage(data=[world.photos, world.manifest]), "fitted on"),
        "splits for other sets": (world.coverage(data=[world.manifest], split=["a", "b"]), "--split"),
        "only answers, where there are none": (world.coverage(data=world.photos, text="answer"), "answer"),
        "fit on two sets with three splits": (
            world.fit(data=["digits", "easy-vqa"], split=["train"] * 3), "--split"
        ),
        "fit on a set that is not there beside one that is": (world.fit(data=[world.photos, "./nope"]), "nope"),
    }  # fmt: skip
    for name, (args, says) in together.items():
        yield Case(GROUP, name, args, says)
