"""Where a command writes, and what an earlier run left there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tccd.locking import locked
from tests.bad_inputs.banks import DEEP
from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World, draw_picture

GROUP = "places"


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    yield from _outputs(world)
    yield from _journals(world)
    yield from _harvests(world)
    if os.geteuid() == 0:
        yield from _disks(world)


def _outputs(world: World) -> Iterator[Case]:
    below, long = world.picture / "below", world.fresh() / ("x" * 300)
    for name, place in (
        ("below a file", below),
        ("below nothing that can be made", Path("/proc/nope/out")),
        ("where nothing can be made", Path("/sys/kernel")),
        ("with a name too long", long),
    ):
        yield Case(GROUP, f"fit: out {name}", world.fit(out=place / "bank.safetensors"))
        yield Case(GROUP, f"probe: out {name}", world.probe(out=place))
        yield Case(GROUP, f"import: out {name}", world.import_npz(out=place / "bank.safetensors"))
        yield Case(GROUP, f"fit: work {name}", world.fit(work_dir=place))
        compare = ["probe", "compare", world.report, world.other_report, "--out", place]
        yield Case(GROUP, f"compare: out {name}", compare)
    yield Case(GROUP, "fit: out is a folder", world.fit(out=world.photos), "folder")
    yield Case(GROUP, "fit: out is empty", world.fit(out=""))
    yield Case(GROUP, "import: out is a folder", world.import_npz(out=world.photos), "folder")
    yield Case(GROUP, "fit: work is a file", world.fit(work_dir=world.picture))
    yield Case(GROUP, "probe: out is a file", world.probe(out=world.picture), "file")
    yield Case(GROUP, "compare: out is a file", ["probe", "compare", world.report, world.other_report, "--out",
                                                 world.picture], "file")  # fmt: skip
    held = world.fresh()
    yield Case(GROUP, "probe: another run holds the folder", world.probe(out=held), "in use", around=_held(held))
    work = world.fresh()
    yield Case(
        GROUP, "fit: another run holds the work folder", world.fit(work_dir=work), "in use", around=_held(work)
    )


def _held(folder: Path) -> Any:
    """The folder that a run locks: a probe its own or its journal's."""

    @contextmanager
    def hold() -> Iterator[None]:
        with locked(folder, "another run"), locked(folder / "unfinished", "another run"):
            yield

    return hold


def _journals(world: World) -> Iterator[Case]:
    def resume(out: Path, **options: Any) -> list[str]:
        return world.probe(**({"out": out, "limit": None, "batch_size": 1, "resume": True} | options))

    def again() -> Path:
        out = world.fresh() / "report"
        shutil.copytree(world.unfinished, out)
        return out

    yield Case(GROUP, "resume: as it was", resume(again()), good=True)
    yield Case(GROUP, "probe: an unfinished run is there", resume(again(), resume=None), "resume")
    for name, other in (
        ("another seed", {"seed": 7}),
        ("another dose", {"alphas": "0.5"}),
        ("other layers", {"layers": "text=1"}),
        ("other questions", {"limit": 5}),
        ("another prompt", {"prompt": "what shape is it?"}),
        ("another model", {"model": world.other, "bank": world.other_bank}),
    ):
        yield Case(GROUP, f"resume: {name}", resume(again(), **other))
    for name, content in (
        ("an empty chunk", ""),
        ("a chunk that is no JSON", "{"),
        ("a chunk that is a list", "[]"),
        ("a deep chunk", DEEP),
        ("a chunk that is no text", b"\xff\xfe\x00"),
        ("a chunk of an empty object", "{}"),
    ):
        out = again()
        chunk = sorted((out / "unfinished").glob("chunk-*.json"))[1]
        chunk.write_bytes(content.encode() if isinstance(content, str) else content)
        yield Case(GROUP, f"resume: {name}", resume(out), chunk.name)
    out = again()
    first, second = sorted((out / "unfinished").glob("chunk-*.json"))[:2]
    shutil.copy(first, second)
    yield Case(GROUP, "resume: a chunk under another's name", resume(out), second.name)
    out = again()
    chunk = sorted((out / "unfinished").glob("chunk-*.json"))[0]
    text = chunk.read_text()
    said = '"yes"' if '"yes"' in text else '"no"'
    chunk.write_text(text.replace(said, '"no"' if said == '"yes"' else '"yes"', 1))
    yield Case(GROUP, "resume: an answer edited by hand", resume(out), chunk.name)
    for name, content in (
        ("no settings", None),
        ("empty settings", ""),
        ("deep settings", DEEP),
        ("a list", "[]"),
    ):
        out = again()
        settings = out / "unfinished" / "settings.json"
        settings.unlink() if content is None else settings.write_text(content)
        yield Case(GROUP, f"resume: {name}", resume(out), "settings.json")
    yield Case(
        GROUP, "resume: other pictures of the same names", resume(again(), data=_repainted(world)), "picture"
    )


def _repainted(world: World) -> Path:
    folder = world.fresh()
    shutil.copy(world.manifest, folder)
    shutil.copytree(world.folder / "shown", folder / "shown")
    draw_picture(999).save(folder / "shown" / "0.png")
    return folder / world.manifest.name


def _harvests(world: World) -> Iterator[Case]:
    def work(change: Any = None) -> Path:
        folder = world.fresh() / "work"
        shutil.copytree(world.work, folder)
        if change is not None:
            change(folder)
        return folder

    def shard(folder: Path) -> Path:
        return sorted(folder.glob("*.safetensors"))[0]

    def settings(folder: Path) -> Path:
        return sorted(folder.glob("*.json"))[0]

    def flip(folder: Path) -> None:
        content = bytearray(shard(folder).read_bytes())
        content[-5] ^= 64
        shard(folder).write_bytes(content)

    yield Case(GROUP, "fit: on a harvest as it was", world.fit(work_dir=work()), good=True)
    for name, change in (
        ("an empty shard", lambda f: shard(f).write_bytes(b"")),
        ("half a shard", lambda f: shard(f).write_bytes(shard(f).read_bytes()[:2000])),
        ("a shard with one bit changed", flip),
        ("a bank for a shard", lambda f: shutil.copy(world.bank, shard(f))),
        ("an empty manifest", lambda f: settings(f).write_text("")),
        ("a deep manifest", lambda f: settings(f).write_text(DEEP)),
        ("a manifest that is a list", lambda f: settings(f).write_text("[]")),
        ("a manifest that is an empty object", lambda f: settings(f).write_text(json.dumps({}))),
    ):
        yield Case(GROUP, f"fit: on a harvest with {name}", world.fit(work_dir=work(change)))
    repainted = world.fresh() / "photos"
    shutil.copytree(world.photos, repainted)
    draw_picture(998).save(repainted / "3.png")
    for name, other in (
        ("other pictures of the same names", {"data": repainted}),
        ("another seed", {"seed": 9}),
        ("another prompt", {"prompt": "what shape is it?"}),
        ("another model", {"model": world.other}),
        ("another layer", {"layers": "text=2,vision=2"}),
        ("fewer pictures", {"images": 5}),
    ):
        yield Case(GROUP, f"fit: on the harvest of {name}", world.fit(**({"work_dir": work()} | other)))


def _disks(world: World) -> Iterator[Case]:
    """File systems that are full or read-only; only root can mount them."""
    for name, options in (("a full disk", "size=4k"), ("a read-only disk", "size=1m,ro")):
        place = world.fresh()
        disk = _mounted(place, options)
        yield Case(GROUP, f"fit: out on {name}", world.fit(out=place / "bank.safetensors"), around=disk)
        yield Case(GROUP, f"fit: work on {name}", world.fit(work_dir=place / "work"), around=disk)
        yield Case(GROUP, f"probe: out on {name}", world.probe(out=place / "report"), around=disk)
        yield Case(GROUP, f"import: out on {name}", world.import_npz(out=place / "b.safetensors"), around=disk)
        compare = ["probe", "compare", world.report, world.other_report, "--out", place / "compared"]
        yield Case(GROUP, f"compare: out on {name}", compare, around=disk)


def _mounted(place: Path, options: str) -> Any:
    @contextmanager
    def mount() -> Iterator[None]:
        # In a mount namespace of its own nothing could be left behind, but the command is a fork of this process.
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)

    return mount
