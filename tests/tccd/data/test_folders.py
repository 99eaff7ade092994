"""Nothing in a folder of pictures is passed over in silence."""

import os

import pytest
from PIL import Image

from tccd.data import load_samples
from tccd.data.local import IMAGE_SUFFIXES
from tccd.errors import DataError


def picture(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)


def ids(folder):
    return [sample.id for sample in load_samples(str(folder))]


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
