"""A repository of each benchmark's layout and schema, made here."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tccd.data.benchmarks.questions import BLINK_TASKS

datasets = pytest.importorskip("datasets")

TEXT, NUMBER, TEXTS = datasets.Value("string"), datasets.Value("int64"), datasets.List(datasets.Value("string"))


def picture(color="red", size=(6, 4)):
    return Image.new("RGB", size, color)


def png(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


class Repository:
    """A folder as the benchmark's repository lies on the hub."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def table(self, rows, features, split, configuration=None, file=None):
        """Write a parquet file and tell of it in the card."""
        file = file or f"{configuration or 'data'}/{split}-00000-of-00001.parquet"
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        columns = {name: [row.get(name) for row in rows] for name in features}
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(self.folder / file)
        cards = json.loads(self.cards.read_text()) if self.cards.exists() else {}
        cards.setdefault(configuration or "default", {}).setdefault(split, []).append(file)
        self.cards.write_text(json.dumps(cards))
        configs = [
            {"config_name": name, "data_files": [{"split": s, "path": files} for s, files in splits.items()]}
            for name, splits in cards.items()
        ]
        (self.folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")

    @property
    def cards(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.json"


BLINK = {
    "idx": TEXT,
    "question": TEXT,
    "sub_task": TEXT,
    **{f"image_{i}": datasets.Image() for i in range(1, 5)},
    "choices": TEXTS,
    "answer": TEXT,
    "prompt": TEXT,
    "explanation": TEXT,
}
CV_BENCH = {
    "idx": NUMBER,
    "type": TEXT,
    "task": TEXT,
    "image": datasets.Image(),
    "question": TEXT,
    "choices": TEXTS,
    "answer": TEXT,
    "prompt": TEXT,
    "filename": TEXT,
    "source": TEXT,
}
POPE = {
    "id": TEXT,
    "question_id": TEXT,
    "question": TEXT,
    "answer": TEXT,
    "image_source": TEXT,
    "image": datasets.Image(),
    "category": TEXT,
}
SCIENCEQA = {
    "image": datasets.Image(),
    "question": TEXT,
    "choices": TEXTS,
    "answer": datasets.Value("int8"),
    "hint": TEXT,
    "task": TEXT,
    "grade": TEXT,
    "subject": TEXT,
    "topic": TEXT,
    "category": TEXT,
    "skill": TEXT,
    "lecture": TEXT,
    "solution": TEXT,
}
MEDBLINK = {"question_id": NUMBER, "task": TEXT, "image": datasets.Image(), "question": TEXT, "answer": TEXT}


def blink_row(**changes):
    row = {"idx": "val_Counting_1", "question": "How many?", "image_1": png(picture()), "choices": ["1", "2"]}
    row |= {"prompt": "How many?\nSelect from the following choices.\n(A) 1\n(B) 2", "answer": "(B)"}
    return row | changes


def blink(at, rows=None, split="val"):
    for task in BLINK_TASKS:
        given = rows if rows is not None and task == "Counting" else [blink_row()]
        Repository(at).table(given, BLINK, split, task)


def mmvp_row(index, **changes):
    return {"Index": index, "Question": "Open or closed?", "Options": "(a) Open (b) Closed (half)"} | (
        {"Correct Answer": "(b)" if index % 2 else "(a)"} | changes
    )


def mmvp(at, rows=None, images=range(1, 12)):
    rows = [mmvp_row(index) for index in range(1, 12)] if rows is None else rows
    (at / "MMVP Images").mkdir(parents=True)
    for index in images:
        picture((index, 0, 0)).save(at / "MMVP Images" / f"{index}.jpg", quality=95)
    datasets.Dataset.from_list(rows).to_csv(at / "Questions.csv")


def cv_bench_row(**changes):
    row = {
        "idx": 0,
        "type": "2D",
        "task": "Count",
        "image": png(picture()),
        "question": "How many?",
        "answer": "(C)",
    }
    return row | {"choices": ["0", "1", "2"], "prompt": "unused"} | changes


def cv_bench(at, rows=None):
    depth = cv_bench_row(type="3D", task="Depth", choices=["lamp", "table"], answer="(A)")
    Repository(at).table([cv_bench_row()] if rows is None else rows, CV_BENCH, "test", file="test_2d.parquet")
    Repository(at).table([depth], CV_BENCH, "test", file="test_3d.parquet")


def pope_row(**changes):
    return {"id": "0", "question_id": "1", "question": "Is there a dog in the image?", "answer": "no"} | (
        {"image": png(picture()), "category": "adversarial"} | changes
    )


def pope(at, rows=None):
    rows = [pope_row(), pope_row(answer="yes"), pope_row(image=png(picture("blue")))] if rows is None else rows
    Repository(at).table(rows, POPE, "test")


def scienceqa_row(**changes):
    row = {"image": png(picture()), "question": "Which is it?", "choices": ["a", "b", "c", "d", "e"], "answer": 4}
    return row | {"hint": "Look.", "subject": "natural science"} | changes


def scienceqa(at, rows=None):
    rows = [scienceqa_row(), scienceqa_row(hint="", choices=["x", "y"], answer=0)] if rows is None else rows
    Repository(at).table(rows, SCIENCEQA, "test")


def medblink_row(**changes):
    return {
        "question_id": 1,
        "task": "enhanced",
        "image": png(picture()),
        "question": "Is it?",
        "answer": " YES ",
    } | (changes)


def medblink(at, rows=None):
    layers = [medblink_row(task="layers", question="Which?", answer=a) for a in ("Retina", "choroid", "retina")]
    rows = [medblink_row(), medblink_row(answer="no"), *layers] if rows is None else rows
    Repository(at).table(rows, MEDBLINK, "val")


LAYOUTS = {
    "blink": blink,
    "mmvp": mmvp,
    "cv-bench": cv_bench,
    "pope": pope,
    "scienceqa-img": scienceqa,
    "medblink": medblink,
}
