"""Folders of pictures: what is read, and that nothing is passed over in silence."""

import os
import random
import struct
import zlib

import pytest
from PIL import Image

from tccd.data import load_samples
from tccd.data.local import IMAGE_SUFFIXES
from tccd.errors import DataError
from tccd.inputs import PAPER_PROMPT
from tests.tccd.data.made import picture


def ids(folder):
    return [sample.id for sample in load_samples(str(folder))]


# --- samples --------------------------------------------------------------------------------------------------


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


# --- folders and links ---------------------------------------------------------------------------------------


def test_links_to_folders_are_followed(tmp_path):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "elsewhere" / "deep" / "b.png")
    picture(tmp_path / "elsewhere" / ".hidden" / "c.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / ".unseen").symlink_to(tmp_path / "elsewhere")
    assert ids(tmp_path / "in") == ["a.png", "linked/deep/b.png"]
    assert load_samples(str(tmp_path / "in"))[1].image.size == (6, 4)


def test_a_folder_is_read_once_however_it_is_linked(tmp_path):
    """Round and round, and by two links; a folder's own name is kept before a link's."""
    folder = tmp_path / "in"
    picture(folder / "z" / "a.png")
    picture(tmp_path / "out" / "b.png")
    (folder / "z" / "again").symlink_to(folder)
    (folder / "a").symlink_to(folder / "z")
    (folder / "one").symlink_to(tmp_path / "out")
    (folder / "two").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(folder)
    assert ids(folder) == ["one/b.png", "z/a.png"]


def test_the_folder_itself_may_be_a_link(tmp_path):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert ids(tmp_path / "link") == ["a.png"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"loop is a link that leads nowhere; mend it, or take it out"):
        ids(tmp_path)
    (tmp_path / "loop").unlink()
    (tmp_path / "gone").symlink_to(tmp_path / "none")
    with pytest.raises(DataError, match=r"gone is a link that leads nowhere"):
        ids(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Its system says so when it is listed, at any depth; root may read everything, so it is said here."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "locked" / "b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"can't read folder .*locked: Permission denied; expected one that you"):
        ids(tmp_path)


# --- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix", ["jfif", "jpe", "avif", "AVIF", "ppm", "pgm", "tga", "jp2", "dib", "pcx", "ico", "qoi", "apng"]
)
def test_every_format_that_pillow_opens_is_read(tmp_path, suffix):
    picture(tmp_path / "a.png")
    picture(tmp_path / f"b.{suffix}")
    assert ids(tmp_path) == ["a.png", f"b.{suffix}"]
    assert all(sample.image.size == sample.size for sample in load_samples(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["heic", "HEIC", "heif", "jxl", "svg", "nef", "dng", "cr2"])
def test_a_format_that_pillow_does_not_open_is_named(tmp_path, suffix):
    """A raw photo too, of which Pillow would show the small copy inside."""
    picture(tmp_path / "a.png")
    (tmp_path / f"b.{suffix}").write_bytes((tmp_path / "a.png").read_bytes())
    message = (
        rf"can't read image .*b\.{suffix}: Pillow opens no \.{suffix.lower()} file here; expected formats such"
    )
    with pytest.raises(DataError, match=message):
        ids(tmp_path)


def test_what_is_no_picture_is_left_out(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("notes.txt", "a.png.txt", "Thumbs.db", "LICENSE", ".b.heic", "clip.mp4", "labels.csv"):
        (tmp_path / name).write_text("no image")
    assert ids(tmp_path) == ["a.png"]
    assert not [suffix for suffix in IMAGE_SUFFIXES if suffix != suffix.lower()]
