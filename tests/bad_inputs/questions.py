"""Manifests, prompts on stdin and data sets that can't be read as questions about pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.banks import DEEP
from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "questions"
PICTURE = "shown/1.png"


def _line(**fields: Any) -> str:
    return json.dumps({"image": PICTURE, "prompt": "is there a circle?", "answer": "yes"} | fields)


def _without(field: str) -> str:
    return json.dumps({k: v for k, v in json.loads(_line()).items() if k != field})


#: The second line of a manifest whose first is sound.
LINES: dict[str, bytes | str] = {
    "no JSON": "{",
    "half of it": _line()[:40],
    "two on a line": _line() + _line(),
    "a list": "[]",
    "a text": '"is there a circle?"',
    "a number": "5",
    "null": "null",
    "a huge integer": "1" * 5000,
    "a deep list": DEEP,
    "a deep prompt": '{"image": "shown/1.png", "prompt": ' + DEEP + "}",
    "not UTF-8": b'{"image": "shown/1.png", "prompt": "\xff\xfe"}',
    "UTF-16": _line().encode("utf-16"),
    "zeros": bytes(20),
    "no prompt": _without("prompt"),
    "no image": _without("image"),
    "a prompt that is empty": _line(prompt=""),
    "a prompt of spaces": _line(prompt=" \n"),
    "a prompt that is a number": _line(prompt=5),
    "a prompt that is a list": _line(prompt=["is there a circle?"]),
    "a prompt that is null": _line(prompt=None),
    "half a surrogate pair": '{"image": "shown/1.png", "prompt": "\\ud800", "answer": "yes"}',
    "the image token": _line(prompt="is <image> a circle?"),
    "a prompt beyond the context": _line(prompt="circle " * 1000),
    "an image that is not there": _line(image="shown/nope.png"),
    "an image that is empty": _line(image=""),
    "an image that is a folder": _line(image="shown"),
    "an image that is a number": _line(image=5),
    "an image with a zero byte": _line(image="shown/1\0.png"),
    "an image with half a surrogate pair": '{"image": "\\ud800", "prompt": "is it?", "answer": "yes"}',
    "an image with a long name": _line(image="x" * 5000),
    "a list of images": _line(image=[PICTURE, PICTURE]),
    "an answer that is a list": _line(answer=["yes"]),
    "an answer that is a number": _line(answer=1.5),
    "an answer that is true": _line(answer=True),
    "an answer with half a surrogate pair": '{"image": "shown/1.png", "prompt": "is it?", "answer": "\\udfff"}',
    "an answer that is no choice": _line(choices=["no", "maybe"]),
    "an answer beyond the choices": _line(answer=2, choices=["yes", "no"]),
    "an answer before the choices": _line(answer=-1, choices=["yes", "no"]),
    "no choices": _line(choices=[]),
    "choices that repeat": _line(choices=["yes", "yes"]),
    "choices that are a text": _line(choices="yes, no"),
    "choices that are numbers": _line(choices=[1, 2], answer=1),
    "choices that are an object": _line(choices={"a": "yes"}),
    "a task that is a list": _line(task=["shape"]),
    "a task that is a fraction": _line(task=1.5),
    "an id that is there already": _line(id="0-circle"),
    "an id that is a list": _line(id=[1]),
    "an id with half a surrogate pair": _line()[:-1] + ', "id": "\\ud800"}',
    "an infinite answer": '{"image": "shown/1.png", "prompt": "is it?", "answer": Infinity}',
}
#: The same for prompts on stdin, whose answers nobody reads.
STDIN = tuple(
    name for name in LINES if not any(w in name for w in ("answer", "choice", "task", "an id", "a list of"))
)


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    for name, line in LINES.items():
        yield Case(GROUP, f"probe: {name}", world.probe(data=world.questions(line), limit=None))
    for name in ("a deep list", "not UTF-8", "the image token", "half a surrogate pair", "a huge integer"):
        yield Case(GROUP, f"fit: {name}", world.fit(data=world.questions(LINES[name]), prompt="from-data"))
    sound = json.dumps({"prompt": "is there a circle?", "image": str(world.picture)}).encode() + b"\n"
    ask = world.generate(prompt="-", image=None)
    for name in STDIN:
        line = LINES[name]
        line = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
        line = line.replace(b"shown/1.png", bytes(world.picture))
        yield Case(GROUP, f"generate: {name}", ask, stdin=sound + line + b"\n")
    yield Case(GROUP, "generate: nothing on stdin", ask, "stdin")
    yield Case(GROUP, "generate: empty lines on stdin", ask, "stdin", stdin=b"\n\n")
    yield Case(GROUP, "generate: sound lines on stdin", ask, stdin=sound, good=True)
    yield from _manifests(world)
    yield from _data_sets(world)


def _manifests(world: World) -> Iterator[Case]:
    for name, content in (("empty", b""), ("empty lines", b"\n\n"), ("a picture", world.picture.read_bytes())):
        yield Case(GROUP, f"probe: a manifest that is {name}", world.probe(data=world.file(content, "q.jsonl")))
    suffix = world.file(_line(), "questions.csv")
    yield Case(GROUP, "probe: a manifest of unknown kind", world.probe(data=suffix), "unknown kind")
    folder = world.fresh() / "questions.jsonl"
    folder.mkdir()
    yield Case(GROUP, "probe: a folder called as a manifest", world.probe(data=folder))
    yield Case(GROUP, "probe: no question has an answer", world.probe(data=world.questions(), column="answer="))
    yield Case(GROUP, "fit: a folder without pictures", world.fit(data=world.fresh()), "no images")
    yield Case(GROUP, "fit: a model's folder", world.fit(data=world.model), "no images")


def _data_sets(world: World) -> Iterator[Case]:
    import datasets
    from PIL import Image

    datasets.disable_progress_bars()
    rows = {
        "image": [Image.open(world.picture)] * 3,
        "prompt": ["is there a circle?"] * 3,
        "answer": ["yes", "no", "yes"],
    }
    made = datasets.Dataset.from_dict(rows)
    whole = world.fresh() / "saved"
    made.save_to_disk(whole)
    yield Case(GROUP, "probe: a saved data set", world.probe(data=whole), good=True)
    for name, pattern, content in (
        ("half its rows", "*.arrow", None),
        ("no rows", "*.arrow", b""),
        ("state that is no JSON", "state.json", b"{"),
        ("deep information", "dataset_info.json", DEEP.encode()),
    ):
        folder = world.fresh() / "saved"
        made.save_to_disk(folder)
        file = next(folder.glob(pattern))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
        yield Case(GROUP, f"probe: a saved data set with {name}", world.probe(data=folder))
    for name, columns in (
        ("no image", {"prompt": ["a"]}),
        ("numbers for images", {"image": [5], "prompt": ["a"]}),
    ):
        folder = world.fresh() / "table"
        folder.mkdir()
        datasets.Dataset.from_dict(columns | {"answer": ["yes"]}).to_parquet(folder / "test.parquet")
        yield Case(GROUP, f"probe: a table with {name}", world.probe(data=folder))
    for name, content in (("text", b"no table"), ("nothing", b""), ("half a table", _half_table(world, made))):
        yield Case(
            GROUP, f"probe: a table of {name}", world.probe(data=world.file(content, "test.parquet").parent)
        )
    metadata = world.file("file_name,prompt,answer\nnope.png,is it?,yes\n", "metadata.csv").parent
    yield Case(GROUP, "probe: a metadata file that names no picture", world.probe(data=metadata))
    table = world.fresh() / "table"
    table.mkdir()
    made.to_parquet(table / "train.parquet")
    yield Case(GROUP, "probe: a split that is not there", world.probe(data=table, split="validation"), "split")
    yield Case(GROUP, "probe: a column that is not there", world.probe(data=table, column="prompt=x"), "prompt")


def _half_table(world: World, made: Any) -> bytes:
    file = world.fresh() / "whole.parquet"
    made.to_parquet(file)
    return file.read_bytes()[: file.stat().st_size // 2]
