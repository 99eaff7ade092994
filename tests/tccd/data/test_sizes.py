"""A picture's size is that of its upright pixels, and is read from its file's header."""

import io

import pytest
from PIL import Image

from tccd.data import Sample, load_samples
from tccd.data.pictures import image_size, open_image
from tccd.errors import DataError

datasets = pytest.importorskip("datasets")

KINDS = ("JPEG", "PNG", "TIFF", "WEBP")


def stored(kind, orientation=1, size=(60, 40)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.effect_noise(size, 80).save(file, kind, exif=exif)
    return file


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_that_of_the_upright_picture(kind, orientation):
    file = stored(kind, orientation)
    assert image_size(file) == open_image(file).size == ((40, 60) if orientation >= 5 else (60, 40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_header_is_enough(kind, tmp_path):
    whole = stored(kind, 6).getvalue()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    [sample] = load_samples(str(tmp_path))
    assert sample.size == (40, 60)
    with pytest.raises(DataError, match="can't read image"):
        _ = sample.image


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", stored("PNG", size=(402, 2)).getvalue()])
def test_a_size_that_there_is_not_names_its_sample(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    [sample] = load_samples(str(tmp_path))
    with pytest.raises(DataError, match=r"^sample a\.png: (can't read )?image .*a\.png.*; expected"):
        _ = sample.size


def test_every_source_tells_the_size_of_its_pictures(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(stored("JPEG", 6).getvalue())
    (tmp_path / "list.jsonl").write_text('{"image": "folder/a.jpg", "prompt": "?"}')
    rows = {"image": [{"bytes": stored("JPEG", 6).getvalue(), "path": None}], "question": ["?"]}
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    for source in ("folder", "list.jsonl", "saved"):
        [sample] = load_samples(str(tmp_path / source))
        assert sample.size == sample.image.size == (40, 60)
    for source in ("easy-vqa", "digits"):
        [sample] = load_samples(source, limit=1)
        assert sample.size == sample.image.size


def test_a_picture_without_a_file_is_read_once():
    reads = []
    sample = Sample("1", "1", "?", None, None, None, lambda: reads.append(1) or Image.new("L", (3, 2)))
    assert (sample.size, sample.size, len(reads)) == ((3, 2), (3, 2), 1)
