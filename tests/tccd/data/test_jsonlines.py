"""JSON lines of a manifest: what no one would write is refused by its line, before it costs memory."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tccd.data import load_samples
from tccd.data.hub import encoded_image
from tccd.data.jsonlines import MAX_DEPTH, MAX_LINE, bounded_lines, read_rows
from tccd.errors import DataError

GOOD = b'{"image": "a.png", "prompt": "?"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": ' + b"[" * 100_000, "more than 100 lists and objects inside one another"),
        (b'{"image": ' + b'{"a":' * 500 + b"1" + b"}" * 501, "more than 100 lists and objects inside one another"),
        (b'{"id": ' + b"1" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"answer": NaN}', "not JSON: NaN is no number"),
        (b'{"answer": Infinity}', "not JSON: Infinity is no number"),
        (b'{"answer": -1e400}', "not JSON: -1e400 is out of range"),
        (b'{"image": "' + b"a" * 5000 + b'.png", "prompt": "?"}', "no image "),
        (b'{"image": "a\\u0000.png", "prompt": "?"}', "no image "),
        (b'{"image": "\\ud800", "prompt": "?"}', r"image is str '\\ud800'"),
        (
            b'{"image": "a.png", "prompt": "?", "answer": "x", "choices": ["' + b"y" * 90_000 + b'"]}',
            "the answer 'x'",
        ),
        (b'{"' + b"k" * 90_000 + b'": 1}', "no image; looked for"),
    ],
    ids=range(11),
)
def test_a_line_is_refused_briefly_by_its_number(tmp_path, line, message):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"q\.jsonl:2: {message}") as raised:
        load_samples(str(tmp_path / "q.jsonl"))
    assert len(str(raised.value)) < 700


def test_a_line_that_is_too_long_is_not_read_whole(tmp_path):
    class Endless(io.RawIOBase):
        """A file of one line that never ends."""

        read_so_far = 0

        def readline(self, size=-1):
            assert size == MAX_LINE + 1
            self.read_so_far += size
            return b" " * size

    file = Endless()
    with pytest.raises(DataError, match=r"line 1 is longer than 10,000,000 bytes; expected an object"):
        list(read_rows(bounded_lines(file), "line ", "an object"))
    assert file.read_so_far == MAX_LINE + 1


@given(st.integers(1, 2 * MAX_DEPTH), st.sampled_from("[{"))
def test_depth_is_counted_exactly(depth, kind):
    opened, closed = ("[", "]") if kind == "[" else ('{"a":', "}")
    line = b'{"a":' + (opened * (depth - 1) + "1" + closed * (depth - 1)).encode() + b"}"
    try:
        [found] = read_rows([line], "line ", "an object")
        said = json.dumps(found[2], separators=(",", ":")).encode()
    except DataError as error:
        said = str(error).encode()
    assert said == line if depth <= MAX_DEPTH else said.startswith(b"line 1: more than 100 lists")


def test_a_key_that_stands_twice_is_read_as_json_readers_do(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_bytes(b'{"image": "b.png", "prompt": "?", "image": "a.png"}')
    assert load_samples(str(tmp_path / "q.jsonl"))[0].image_id == "a.png"


@pytest.mark.parametrize("path", ["nowhere://x", "/no/such/file.png", "http://[bad"])
def test_a_cell_that_names_no_file(path):
    with pytest.raises(DataError, match="row 3: can't read image"):
        encoded_image({"bytes": None, "path": path}, "row 3")
