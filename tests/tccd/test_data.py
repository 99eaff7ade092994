import doctest
import importlib
import json
import random
import struct
import zlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.datasets.easy_vqa import balanced, majority_answers, minority
from tccd.data import Sample, Samples, load_samples
from tccd.data.records import COLUMN_NAMES
from tccd.errors import DataError
from tccd.inputs import PAPER_PROMPT

RED = (255, 0, 0)


def picture(path, color=RED, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), color).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "a2.jpg", ".hidden.png", ".cache/x.png"):
        picture(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def manifest(tmp_path):
    picture(tmp_path / "images" / "a.png")

    def write(*rows, raw=None):
        lines = raw if raw is not None else [json.dumps(row) for row in rows]
        file = tmp_path / "questions.jsonl"
        file.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
        return file

    return write


ROW = {"image": "images/a.png", "prompt": "What color?", "answer": "red", "choices": ["red", "blue"]}


# --- samples ---------------------------------------------------------------------------------------------


def test_image_is_read_when_asked_for_and_is_rgb():
    reads = []

    def load():
        reads.append(1)
        return Image.new("LA", (2, 2))

    sample = Sample("0", "0", "?", None, None, None, load)
    assert not reads
    assert sample.image.mode == "RGB"
    assert len(reads) == 1


def test_a_sample_refuses_an_answer_outside_its_choices():
    with pytest.raises(DataError, match=r"sample 7: the answer 'c' is not among the choices \['a', 'b'\]"):
        Sample("7", "0", "?", "c", ("a", "b"), None, lambda: Image.new("RGB", (1, 1)))


def test_samples_are_equal_by_content():
    one, two = (Sample("0", "0", "?", "a", None, None, lambda: Image.new("RGB", (1, 1))) for _ in range(2))
    assert one == two
    assert Samples((one,), "x") == Samples((two,), "x")


@pytest.mark.parametrize("module", ["tccd.data.sample", "tccd.data.load"])
def test_docstring_examples_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted
    assert not results.failed


# --- easy-VQA --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def test_split():
    return load_samples("easy-vqa")


@pytest.fixture(scope="module")
def train_split():
    return load_samples("easy-vqa", split="train")


@pytest.mark.parametrize(("split", "n", "images"), [("test", 9_673, 1_000), ("train", 38_575, 4_000)])
def test_easy_vqa_is_whole_and_ordered_by_image(request, split, n, images):
    samples = request.getfixturevalue(f"{split}_split")
    assert (len(samples), samples.split, samples.revision) == (n, split, None)
    numbers = [int(s.image_id.split("-")[1]) for s in samples]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == images
    assert len({s.id for s in samples}) == n
    assert len({s.prompt for s in samples}) == 107
    assert len({s.answer for s in samples}) == 13


def test_easy_vqa_images_and_splits_differ(test_split, train_split):
    assert test_split[0].image.size == (64, 64)
    assert test_split[0].image.mode == "RGB"
    assert not {s.image_id for s in test_split[:100]} & {s.image_id for s in train_split[:1000]}


def test_easy_vqa_tasks(test_split):
    tasks = {s.prompt: s.task for s in test_split}
    assert tasks["what is the red shape?"] == "shape"
    assert tasks["what shape does the image contain?"] == "shape"
    assert tasks["what color is the circle?"] == "color"
    assert tasks["what is the color of the shape?"] == "color"
    assert tasks["is a circle present?"] == "shape-present"
    assert tasks["is there a red shape in the image?"] == "color-present"
    assert tasks["is no triangle present?"] == "shape-absent"
    assert tasks["does the image not contain a teal shape?"] == "color-absent"
    answers = {task: {s.answer for s in test_split if s.task == task} for task in set(tasks.values())}
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert len(answers["color"]) == 8
    assert all(answers[t] == {"yes", "no"} for t in answers if "-" in t)
    assert len(answers) == 6


def test_balanced_subset(test_split):
    subset = balanced(test_split)
    assert len(subset) == 2_492
    assert subset == balanced(test_split)
    per_question = {p: Counter(s.answer for s in subset if s.prompt == p) for p in {s.prompt for s in subset}}
    assert all(c["yes"] == c["no"] for c in per_question.values())
    order = {s.id: i for i, s in enumerate(test_split)}
    assert [order[s.id] for s in subset] == sorted(order[s.id] for s in subset)
    # From all over the split, so that a half of it by image is about balanced too.
    half = [s for s in subset if order[s.id] < len(test_split) // 2]
    assert 0.45 < len(half) / len(subset) < 0.55
    assert 0.45 < sum(s.answer == "yes" for s in half) / len(half) < 0.55


def test_minority_subset_is_what_the_train_prior_gets_wrong(test_split, train_split):
    majority = majority_answers(train_split)
    assert len(majority) == 107
    subset = minority(test_split, majority)
    right = sum(majority[s.prompt] == s.answer for s in test_split)
    assert len(subset) == len(test_split) - right
    assert right / len(test_split) == pytest.approx(0.670, abs=0.001)
    assert minority(test_split, {}) == []


def test_easy_vqa_refuses_what_it_would_ignore():
    with pytest.raises(DataError, match="easy-vqa has no split 'val'; expected one of train, test"):
        load_samples("easy-vqa", split="val")
    with pytest.raises(DataError, match="revision is 'main', but easy-vqa has no revision"):
        load_samples("easy-vqa", revision="main")


# --- which samples are taken -----------------------------------------------------------------------------


def test_limit_and_images_take_the_first(test_split):
    assert load_samples("easy-vqa", limit=7).items == test_split[:7]
    ten = load_samples("easy-vqa", images=10)
    assert {s.image_id for s in ten} == {f"test-{i}" for i in range(10)}
    assert ten.items == test_split[: len(ten)]
    assert len(load_samples("easy-vqa", images=10, limit=3)) == 3


def test_seeded_draws_repeat_and_keep_the_order(test_split):
    order = {s.id: i for i, s in enumerate(test_split)}
    one, again, other = (load_samples("easy-vqa", limit=50, seed=s) for s in (3, 3, 4))
    assert one == again
    assert one != other
    assert one.items != test_split[:50]
    places = [order[s.id] for s in one]
    assert places == sorted(places)
    assert len(set(places)) == 50


def test_seeded_images_come_with_all_their_samples(test_split):
    drawn = load_samples("easy-vqa", images=20, seed=1)
    kept = {s.image_id for s in drawn}
    assert len(kept) == 20
    assert [s for s in test_split if s.image_id in kept] == list(drawn)


def test_a_few_samples_of_each_image(test_split):
    first = load_samples("easy-vqa", images=5, per_image=2)
    assert [s.image_id for s in first] == [f"test-{i}" for i in range(5) for _ in range(2)]
    assert first[:2] == test_split[:2]
    drawn = load_samples("easy-vqa", images=50, per_image=1, seed=2)
    assert len({s.image_id for s in drawn}) == len(drawn) == 50
    assert len({s.prompt for s in drawn}) > 10  # not each image's first question
    assert drawn == load_samples("easy-vqa", images=50, per_image=1, seed=2)


def test_a_source_is_named_without_the_folders_of_this_machine(folder, manifest):
    assert load_samples(str(folder)).source == "images"
    assert load_samples(str(manifest(ROW))).source == "questions.jsonl"
    assert load_samples("easy-vqa", limit=1).source == "easy-vqa"


def test_more_than_there_is_takes_all(folder):
    assert (
        len(load_samples(str(folder), limit=99, seed=0)) == len(load_samples(str(folder), images=99, seed=0)) == 4
    )


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": -3}, {"images": 0}, {"per_image": 0}])
def test_counts_below_one(bad):
    [(name, value)] = bad.items()
    with pytest.raises(DataError, match=f"{name} is {value}; expected at least 1"):
        load_samples("easy-vqa", **bad)


def test_images_of_a_manifest_need_not_stand_together(tmp_path, manifest):
    picture(tmp_path / "images" / "b.png")
    rows = [{"image": f"images/{name}.png", "prompt": "?"} for name in "abab"]
    assert [s.id for s in load_samples(str(manifest(*rows)), images=1)] == ["1", "3"]


# --- folders ---------------------------------------------------------------------------------------------


def test_folder_is_sorted_recursive_and_asks_the_papers_prompt(folder):
    samples = load_samples(str(folder))
    assert [s.id for s in samples] == ["a.jpg", "a2.jpg", "b.PNG", "sub/c.webp"]
    assert {s.prompt for s in samples} == {PAPER_PROMPT}
    assert {(s.answer, s.choices, s.task) for s in samples} == {(None, None, None)}
    assert samples[3].image.size == (6, 4)
    assert {s.prompt for s in load_samples(str(folder), prompt="What?")} == {"What?"}


def test_folder_without_images(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"no images in folder .*; looked for \.apng, .*\.webp in it and below"):
        load_samples(str(tmp_path))


@pytest.mark.parametrize("unused", [{"split": "test"}, {"revision": "main"}, {"columns": {"image": "x"}}])
def test_folder_refuses_what_it_would_ignore(folder, unused):
    [name] = unused
    with pytest.raises(DataError, match=f"but a folder of images has no {name}; leave it out"):
        load_samples(str(folder), **unused)


def test_images_of_every_mode_become_rgb(tmp_path):
    for mode, color in (("L", 9), ("LA", (9, 9)), ("RGBA", (9, 9, 9, 9)), ("P", 1), ("1", 1), ("I;16", 300)):
        picture(tmp_path / f"{mode.replace(';', '')}.png", color, mode)
    picture(tmp_path / "CMYK.jpg", (1, 2, 3, 4), "CMYK")
    assert {s.image.mode for s in load_samples(str(tmp_path))} == {"RGB"}


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert load_samples(str(tmp_path))[0].image.size == (4, 6)


def broken_images():
    random_bytes = random.Random(0).randbytes(500)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return {
        "empty": b"",
        "random": random_bytes,
        "html": b"<html>404</html>",
        "bomb": header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""),
        "header": header[:20],
    }


@pytest.mark.parametrize("kind", [*broken_images(), "truncated"])
def test_a_broken_image_is_named_when_it_is_read(tmp_path, kind):
    path = picture(tmp_path / "ok.png").with_name("bad.png")
    if kind == "truncated":
        noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
        noise.save(path)
        path.write_bytes(path.read_bytes()[:4000])
    else:
        path.write_bytes(broken_images()[kind])
    bad, good = load_samples(str(tmp_path))
    assert good.image.size == (6, 4)
    with pytest.raises(DataError, match=r"^sample bad\.png: .*image .*bad\.png.+; expected") as raised:
        _ = bad.image
    assert ("more than 178,956,970 pixels" if kind == "bomb" else "can't read image") in str(raised.value)


def test_an_image_that_vanished(folder):
    sample = load_samples(str(folder))[0]
    (folder / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"can't read image .*a\.jpg: .*No such file"):
        _ = sample.image


# --- manifests -------------------------------------------------------------------------------------------


def test_manifest(manifest):
    rows = [ROW, {**ROW, "id": "q7", "task": "color", "answer": 1}, {"image": "images/a.png", "prompt": "?"}]
    one, two, three = load_samples(str(manifest(*rows)))
    assert one == Sample("1", "images/a.png", "What color?", "red", ("red", "blue"), None, one.load)
    assert (two.id, two.answer, two.task) == ("q7", "blue", "color")
    assert (three.answer, three.choices) == (None, None)
    assert one.image.getpixel((0, 0)) == RED


def test_manifest_skips_empty_lines_and_a_byte_order_mark(manifest):
    file = manifest(raw=[b"\xef\xbb\xbf" + json.dumps(ROW).encode(), b"", b"  ", json.dumps(ROW)])
    assert [s.id for s in load_samples(str(file))] == ["1", "4"]


def test_manifest_with_other_keys_and_one_prompt(manifest):
    file = manifest({"img": "images/a.png", "frage": "Farbe?", "answer": "rot"})
    sample = load_samples(str(file), columns={"prompt": "frage", "answer": None})[0]
    assert (sample.prompt, sample.answer) == ("Farbe?", None)
    assert load_samples(str(file), prompt="What?")[0].prompt == "What?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"questions\.jsonl:2: not JSON: .*; expected an object with image and prompt"),
        (b"\xff\xfe", r"questions\.jsonl:2: not JSON: .*utf-8"),
        ("[1]", r"questions\.jsonl:2: found list; expected an object"),
        ('{"prompt": "?"}', r"questions\.jsonl:2: no image; looked for image, img, picture; found prompt"),
        ("{}", r"questions\.jsonl:2: no image; .*; found nothing"),
        ('{"image": "images/a.png"}', r"questions\.jsonl:2: no prompt; .* or give one prompt for all images"),
        ({**ROW, "image": 3}, r"questions\.jsonl:2: image is int 3; expected the path of a file"),
        (
            {**ROW, "image": "images/none.png"},
            r"questions\.jsonl:2: no image .*none\.png; paths are relative",
        ),
        ({**ROW, "prompt": ["?"]}, r"questions\.jsonl:2: prompt is list \['\?'\]; expected a text"),
        ({**ROW, "prompt": " "}, r"questions\.jsonl:2: prompt is str ' '; expected a text that is not empty"),
        (
            r'{"image": "images/a.png", "prompt": "\ud800"}',
            r"questions\.jsonl:2: prompt is str .*; expected a text",
        ),
        ({**ROW, "prompt": None}, r"questions\.jsonl:2: prompt is missing; expected a text"),
        ({**ROW, "choices": "red"}, r"questions\.jsonl:2: choices is str 'red'; expected a list of texts"),
        (
            {**ROW, "choices": [1, 2]},
            r"questions\.jsonl:2: choices is list \[1, 2\]; expected a list of texts",
        ),
        ({**ROW, "choices": ["red", "red"]}, r"questions\.jsonl:2: choices repeats a choice"),
        ({**ROW, "answer": "green"}, r"questions\.jsonl:2: the answer 'green' is not among the choices"),
        ({**ROW, "answer": 2}, r"questions\.jsonl:2: answer is choice number 2; expected 0 to 1"),
        ({**ROW, "answer": True}, r"questions\.jsonl:2: answer is bool True; expected a text, or the number"),
        ({**ROW, "answer": ["red"]}, r"questions\.jsonl:2: answer is list \['red'\]; expected a text"),
        ({**ROW, "task": ["x"]}, r"questions\.jsonl:2: task is list \['x'\]; expected a text or an integer"),
        ({**ROW, "id": 1.5}, r"questions\.jsonl:2: id is float 1\.5; expected a text or an integer"),
    ],
)
def test_a_bad_line_is_named(manifest, line, message):
    line = json.dumps(line) if isinstance(line, dict) else line
    file = manifest(raw=[json.dumps(ROW), line])
    with pytest.raises(DataError, match=message):
        load_samples(str(file))
    assert len(load_samples(str(file), limit=1)) == 1  # what isn't asked for isn't read


def test_duplicate_ids(manifest):
    file = manifest({**ROW, "id": 1}, {**ROW, "id": "1"})
    with pytest.raises(DataError, match="two samples have the id '1'; expected ids that differ, or none"):
        load_samples(str(file))


def test_empty_manifest_and_bad_arguments(manifest):
    with pytest.raises(DataError, match=r"questions\.jsonl is empty; expected JSON lines"):
        load_samples(str(manifest()))
    file = str(manifest(ROW))
    with pytest.raises(DataError, match="unknown field 'colour' in columns; expected one of image, prompt"):
        load_samples(file, columns={"colour": "x"})
    with pytest.raises(DataError, match=r":1: there is no 'x' for task; found image, prompt, answer, choices"):
        load_samples(file, columns={"task": "x"})
    with pytest.raises(DataError, match="a manifest has no split"):
        load_samples(file, split="test")
    with pytest.raises(DataError, match="prompt is str ' '; expected a question"):
        load_samples(file, prompt=" ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([n for names in COLUMN_NAMES.values() for n in names]) | st.text(max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(NAMES, JSON, max_size=6), sound=st.booleans())
def test_any_json_line_gives_a_sample_or_a_data_error(manifest, row, sound):
    file = manifest({**ROW, **row} if sound else row)
    message = ""
    try:
        [sample] = load_samples(str(file))
    except DataError as error:
        message = str(error)
    else:
        assert isinstance(sample.prompt, str)
        assert sample.choices is None or sample.answer is None or sample.answer in sample.choices
    assert not message or "questions.jsonl:1" in message


# --- what is none of these -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["easy_vqa", "./none.jsonl", "/no/such/folder", "a/b/c", "", "none/x.jsonl"])
def test_unknown_source_says_what_was_looked_for(source):
    with pytest.raises(
        DataError, match=r"expected easy-vqa, .*, a folder of images, .* a JSON lines manifest \(\*\.jsonl\)"
    ):
        load_samples(source)


def test_a_file_of_another_kind(folder):
    with pytest.raises(DataError, match=r"notes\.txt is a file of unknown kind; expected easy-vqa"):
        load_samples(str(folder / "notes.txt"))


# --- the datasets library --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder with two splits in parquet: three pictures, six questions."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("table")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.Value("int64"),
            "choices": datasets.List(datasets.Value("string")),
            "id": datasets.Value("int64"),
        }
    )
    pictures = [Image.new("RGB", (6, 4), color) for color in ("red", "green", "blue")]
    rows = {
        "image": [pictures[i // 2] for i in range(6)],
        "question": ["what?", "why?"] * 3,
        "answer": [0, 1, 1, 0, 0, 1],
        "choices": [["a", "b"]] * 6,
        "id": [5] * 6,
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    (folder / "data").mkdir()
    for split in ("train", "test"):
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_data_set_folder(table):
    samples = load_samples(str(table), split="test")
    assert (len(samples), samples.split, samples.revision) == (6, "test", None)
    assert [s.answer for s in samples] == list("abbaab")
    assert samples[0].choices == ("a", "b")
    assert [s.image.getpixel((0, 0)) for s in samples[::2]] == [RED, (0, 128, 0), (0, 0, 255)]
    assert samples[0].image_id == samples[1].image_id != samples[2].image_id


def test_data_set_draws(table):
    samples = load_samples(str(table), split="test")
    drawn, again = (load_samples(str(table), split="test", limit=4, seed=2) for _ in range(2))
    assert drawn == again
    assert len({s.id for s in drawn} & {s.id for s in samples}) == 4  # ids hold in any order
    assert len(load_samples(str(table), split="test", images=2)) == 4


def test_images_outlive_the_samples_they_came_with(table):
    sample = load_samples(str(table), split="test", limit=1)[0]
    assert sample.image.size == (6, 4)


def test_data_set_splits_and_columns(table):
    with pytest.raises(DataError, match="has the splits train, test; choose one"):
        load_samples(str(table))
    with pytest.raises(DataError, match="has no split 'val'; found train, test"):
        load_samples(str(table), split="val")
    with pytest.raises(DataError, match="a local folder has no revision"):
        load_samples(str(table), revision="main")
    with pytest.raises(DataError, match=r"there is no 'picture' for image; found image, question"):
        load_samples(str(table), split="test", columns={"image": "picture"})
    with pytest.raises(DataError, match=r"row 0: column question holds str; expected one image"):
        load_samples(str(table), split="test", columns={"image": "question"})
    with pytest.raises(DataError, match="two samples have the id '5'"):
        load_samples(str(table), split="test", columns={"id": "id"})


def test_image_folder_with_metadata(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\na.png,what color?,red\n")
    [sample] = load_samples(str(tmp_path))
    assert (sample.prompt, sample.answer, sample.image.getpixel((0, 0))) == ("what color?", "red", RED)


def test_class_labels_are_answers_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    data = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (2, 2))] * 3, "label": [1, 0, 1]}, features=features
    )
    data.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no prompt; looked for prompt, question, query, text; found image, label"):
        load_samples(str(tmp_path))
    samples = load_samples(str(tmp_path), prompt="Which animal?")
    assert [s.answer for s in samples] == ["dog", "cat", "dog"]
    assert len({s.id for s in samples}) == 3  # the same picture and prompt, thrice


def test_a_broken_image_in_a_data_set_names_its_row(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}], "question": ["?"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    [sample] = load_samples(str(tmp_path))
    with pytest.raises(DataError, match=r"can't read image of .* split train, row 0: .*; expected a file"):
        _ = sample.image


def test_a_damaged_data_set_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"(can't open|reading) .*"):
        load_samples(str(tmp_path))


def test_a_data_set_that_is_not_on_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(
        DataError,
        match=r"can't open 'no/such'. As a path: .* no such file.*As a data-set id .* hub: Dataset.*doesn't",
    ):
        load_samples("no/such")


def test_hub_ids_revisions_and_configurations_are_passed_on(monkeypatch, table):
    datasets = pytest.importorskip("datasets")
    asked = []
    real = datasets.load_dataset_builder

    def record(name, configuration, revision):
        asked.append((name, configuration, revision))
        builder = real(str(table))
        builder.hash = "c0ffee"
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", record)
    samples = load_samples("owner/name:small", split="test", revision="v1", limit=1)
    assert asked == [("owner/name", "small", "v1")]
    assert (samples.source, samples.revision) == ("owner/name:small", "c0ffee")


@pytest.mark.parametrize("module", ["easy_vqa", "datasets"])
def test_missing_extra_is_named(monkeypatch, module):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    source = "easy-vqa" if module == "easy_vqa" else "owner/name"
    with pytest.raises(ImportError, match=rf"{module} is not installed; .* pip install 'tccd\[data\]'"):
        load_samples(source)
