"""Manifests of JSON lines."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tccd.data import Sample, load_samples
from tccd.data.records import COLUMN_NAMES
from tccd.errors import DataError
from tests.tccd.data.made import RED, ROW


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
