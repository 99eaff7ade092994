"""One sample: when its image is read, and what it refuses."""

import doctest
import importlib

import pytest
from PIL import Image

from tccd.data import Sample, Samples
from tccd.errors import DataError


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
