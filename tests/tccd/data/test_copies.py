"""Copies of a picture under other names are counted by what they show."""

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tccd.data import Sample, load_samples
from tccd.data.copies import copies


def sample(number, name, shade, reads):
    def load():
        reads.append(name)
        return Image.new("L", (2, 2), shade)

    return Sample(str(number), name, "?", None, None, None, load)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 5), max_size=12), st.integers(1, 3))
def test_copies_are_names_less_pictures(shades, questions):
    reads = []
    asked = [(name, shade) for name, shade in shades.items() for _ in range(questions)]
    samples = [sample(n, name, shade, reads) for n, (name, shade) in enumerate(asked)]
    assert copies(samples) == len(shades) - len(set(shades.values()))
    assert sorted(reads) == sorted(shades)  # each image is read once
    assert copies(samples) == len(shades) - len(set(shades.values()))
    assert len(reads) == len(shades)  # and remembered


def test_copies_in_a_folder(tmp_path):
    noise = Image.effect_noise((8, 8), 80)
    for name in ("a.png", "b.bmp", "sub-c.tif"):
        noise.save(tmp_path / name)
    noise.rotate(90).save(tmp_path / "d.png")
    assert copies(load_samples(str(tmp_path))) == 2
    assert copies(load_samples("easy-vqa", limit=5)) == 0
