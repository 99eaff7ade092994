"""A sound model, bank, data and reports, which the bad inputs are made from, and the commands that use them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.bad_inputs.case import Case, Outcome, run, start

ZOO = Path(__file__).parents[2] / "eval" / "zoo"
COLOURS = ("red", "blue", "green", "yellow", "black", "brown")


class World:
    """Everything a command needs, made by the real commands in one folder.

    Args:
        folder: where.

    Attributes:
        model, other: two models of one family.
        photos: a folder of pictures to fit on.
        manifest: questions about other pictures.
        bank, other_bank: of the two models.
        branch: of the first, and `training` the folder of its state.
        mean: a bank of the model's vision mean alone.
        report, other_report: folders of two probes.
        arrays: centroids as .npz.
        work: a harvest that was kept.
        unfinished: the folder of a probe that was killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = count()
        self.controls: list[Outcome] = []
        self.model, self.other = folder / "model", folder / "other-model"
        for name, place in (("llava-grounded", self.model), ("llava-competing", self.other)):
            shutil.copytree(ZOO / name, place, ignore=shutil.ignore_patterns("*.md", "*.log", "metrics.json"))
        self.photos = folder / "photos"
        self.photos.mkdir()
        for i in range(12):
            draw_picture(i).save(self.photos / f"{i}.png")
        self.manifest = folder / "questions.jsonl"
        shown = folder / "shown"
        shown.mkdir()
        rows = []
        for i in range(12):
            draw_picture(100 + i).save(shown / f"{i}.png")
            for shape in ("circle", "rectangle"):
                row = {
                    "image": f"shown/{i}.png",
                    "prompt": f"is there a {shape}?",
                    "answer": "yes" if i % 2 else "no",
                }
                rows.append(row | {"choices": ["yes", "no"], "task": shape, "id": f"{i}-{shape}"})
        self.rows = rows
        self.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.picture = shown / "0.png"
        self.bank, self.other_bank = folder / "bank.safetensors", folder / "other.safetensors"
        self.mean = folder / "mean.safetensors"
        self.work, self.arrays = folder / "work", folder / "centroids.npz"
        np.savez(self.arrays, text_centroids=_centroids(0), vis_centroids=_centroids(1))
        self.report, self.other_report = folder / "report", folder / "other-report"
        self._control("fit", self.fit(out=self.bank, work_dir=self.work))
        self._control("fit, a vision mean alone", self.fit(out=self.mean, layers=None, k=None))
        self._control("fit, another", self.fit(model=self.other, out=self.other_bank))
        measured = {"limit": None, "alpha_cd": "0.5"}
        self._control("probe", self.probe(out=self.report, **measured))
        other = {"model": self.other, "bank": self.other_bank, "out": self.other_report}
        self._control("probe, another", self.probe(**other, **measured))
        self._control("generate", self.generate())
        self._control("advise", ["probe", "advise", self.report, "--json"])
        self._control(
            "compare", ["probe", "compare", self.report, self.other_report, "--out", folder / "compared"]
        )
        self._control("bank show", ["bank", "show", self.bank])
        self._control("bank verify", ["bank", "verify", self.bank, "--model", self.model])
        self._control("import-npz", self.import_npz())
        self.branch, self.training = folder / "branch.safetensors", folder / "training"
        self._control("route train", self.route_train(out=self.branch, work_dir=self.training))
        self._control("route generate", self.route_generate())
        self.unfinished = self._kill_a_probe(folder / "unfinished-report")

    # -- commands --------------------------------------------------------------------------------------

    def fit(self, **options: Any) -> list[str]:
        """`tccd fit`, with other options: None leaves one out, True is a flag, a list repeats it."""
        given = {"model": self.model, "data": self.photos, "layers": "text=1,vision=2", "k": 4, "images": 12}
        return _command("fit", given | {"out": self.fresh() / "bank.safetensors"} | options)

    def probe(self, **options: Any) -> list[str]:
        """`tccd probe replacement`; options as for `fit`."""
        given = {"model": self.model, "bank": self.bank, "data": self.manifest, "limit": 4, "out": self.fresh()}
        return _command("probe replacement", given | options)

    def coverage(self, **options: Any) -> list[str]:
        """`tccd probe coverage`; options as for `fit`."""
        given = {"model": self.model, "bank": self.bank, "data": self.manifest, "images": 3, "out": self.fresh()}
        return _command("probe coverage", given | {"draws": 0} | options)

    def generate(self, **options: Any) -> list[str]:
        """`tccd generate`; options as for `fit`."""
        given = {"model": self.model, "bank": self.bank, "image": self.picture, "prompt": "is there a circle?"}
        return _command("generate", given | {"max_new_tokens": 2} | options)

    def import_npz(self, file: Path | None = None, **options: Any) -> list[str]:
        """`tccd bank import-npz`; options as for `fit`."""
        given = {"model": self.model, "layers": "text=1,vision=2", "out": self.fresh() / "bank.safetensors"}
        return [*_command("bank import-npz", given | options), str(file or self.arrays)]

    def route_train(self, **options: Any) -> list[str]:
        """`tccd route train`; options as for `fit`."""
        given = {"model": self.model, "data": self.manifest, "limit": 4, "split_layer": 2}
        return _command("route train", given | {"out": self.fresh() / "branch.safetensors"} | options)

    def route_generate(self, **options: Any) -> list[str]:
        """`tccd route generate`; options as for `fit`."""
        given = {"model": self.model, "branch": self.branch, "image": self.picture, "prompt": "is there a circle?"}
        return _command("route generate", given | {"max_new_tokens": 2} | options)

    # -- material --------------------------------------------------------------------------------------

    def fresh(self) -> Path:
        """A new empty folder."""
        made = self.folder / "made" / str(next(self._count))
        made.mkdir(parents=True)
        return made

    def file(self, content: bytes | str, name: str) -> Path:
        """A new file."""
        path = self.fresh() / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def copy_model(self) -> Path:
        """A copy of the model's folder, to be changed."""
        return Path(shutil.copytree(self.model, self.fresh() / "model"))

    def questions(self, *lines: bytes | str) -> Path:
        """A manifest: a sound line, and then these."""
        first = json.dumps(self.rows[0]).encode()
        rest = [line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in lines]
        path = self.file(b"\n".join([first, *rest]) + b"\n", "questions.jsonl")
        (path.parent / "shown").symlink_to(self.folder / "shown")
        return path

    def _control(self, name: str, args: list[Any]) -> None:
        outcome = run(Case("controls", name, args, good=True))
        self.controls.append(outcome)
        if not outcome.right:
            raise AssertionError(f"the sound command {name} ended as {outcome.verdict}:\n{outcome.stderr[-2000:]}")

    def _kill_a_probe(self, out: Path) -> Path:
        args = self.probe(out=out, limit=None, batch_size=1)
        chunks = out / "unfinished"
        child = start(Case("controls", "a run that is killed", args), self.fresh())
        until = time.monotonic() + 60
        while len(list(chunks.glob("chunk-*.json"))) < 3:
            if time.monotonic() > until:
                raise AssertionError("the probe to be killed kept no chunk")
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return out


def draw_picture(seed: int) -> Image.Image:
    """A small picture that no other seed gives."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (64, 64), COLOURS[seed % len(COLOURS)])
    x, y = (int(v) for v in generator.integers(4, 30, 2))
    ImageDraw.Draw(image).ellipse((x, y, x + 25, y + 25), fill=COLOURS[(seed + 1) % len(COLOURS)])
    image.putpixel((0, 0), tuple(int(v) for v in generator.integers(0, 256, 3)))
    return image


def _centroids(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 128)).astype(np.float32)


def _command(words: str, options: dict[str, Any]) -> list[str]:
    args = words.split()
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                args.append(flag)
            elif one is not None:
                args += [flag, str(one)]
    return args
