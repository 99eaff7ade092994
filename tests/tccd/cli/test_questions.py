"""The prompts of `tccd generate`: options, or lines of JSON on stdin."""

import json

import pytest
from PIL import Image

from tccd.cli.questions import read_questions
from tccd.errors import ConfigError, DataError


def test_every_prompt_is_asked_about_the_image(picture):
    one, two = read_questions(["a?", "b?"], [picture])
    assert (one.prompt, two.prompt, one.images) == ("a?", "b?", (picture,))


def test_json_lines(picture, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(other)
    rows = [
        {"prompt": "a?"},
        {"prompt": "b?", "image": str(other), "id": 7},
        {"prompt": "c?", "image": [str(other)] * 2},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [b"", b"  "]
    one, two, three = read_questions(["-"], [picture], lines)
    assert (one.images, two.images, three.images) == ((picture,), (other,), (other, other))
    assert one.row == {"prompt": "a?", "image": str(picture)}
    assert two.row["id"] == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "stdin line 2: not JSON: .*; expected an object with prompt and image"),
        ("[]", "stdin line 2: found list; expected an object"),
        ("{}", "stdin line 2: prompt is missing; expected a text"),
        ('{"prompt": ""}', "stdin line 2: prompt is str ''; expected a text"),
        (r'{"prompt": "\ud800"}', "stdin line 2: prompt is .*; expected a text"),
        ('{"prompt": 1}', "stdin line 2: prompt is int 1; expected a text"),
        ('{"prompt": "?", "image": 3}', "stdin line 2: image is int 3; expected the path"),
        ('{"prompt": "?", "image": []}', r"stdin line 2: image is list \[\]; expected the path"),
        (
            '{"prompt": "?"}',
            "stdin line 2: image is missing; expected the path of a file, or --image for all lines",
        ),
        ('{"prompt": "?", "image": "none.png"}', r"stdin line 2: no image none\.png; expected a file"),
    ],
)
def test_a_bad_prompt_line_is_named(picture, line, message):
    good = json.dumps({"prompt": "a?", "image": str(picture)})
    with pytest.raises(DataError, match=message):
        read_questions(["-"], [], [good.encode(), line.encode()])


def test_no_prompts(picture):
    with pytest.raises(DataError, match="stdin holds no prompts"):
        read_questions(["-"], [picture], [b"", b" "])
    with pytest.raises(ConfigError, match="--prompt is empty"):
        read_questions([" "], [picture])
