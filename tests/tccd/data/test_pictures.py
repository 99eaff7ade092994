"""Pictures show in RGB what their files show, and those that can't are refused by the name of their sample."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tccd.data import Sample, load_samples
from tccd.data.benchmarks.reader import side_by_side
from tccd.data.hub import encoded_image
from tccd.data.pictures import MAX_PIXELS, MAX_RATIO, open_image, picture_digest, to_rgb
from tccd.errors import DataError

WHITE, GREY, RED = (255, 255, 255), (128, 128, 128), (255, 0, 0)
RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def stored(image, kind, **options):
    """The image, as it is after a file of that kind."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    file.seek(0)
    return file


def grey_of(image):
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


# --- range ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_looks_as_its_8_bit_twin(kind):
    sixteen = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert grey_of(open_image(stored(sixteen, kind))).tolist() == RAMP.tolist()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_every_mode_of_16_bits(mode):
    values = RAMP.astype(np.uint16) * 257
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        image = Image.frombytes(mode, (8, 8), values.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    assert image.mode == mode
    assert grey_of(to_rgb(image)).tolist() == RAMP.tolist()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 65535), min_size=2, max_size=16, unique=True))
def test_darker_stays_darker(values):
    shown = grey_of(to_rgb(Image.fromarray(np.array([sorted(values)], dtype=np.uint16))))[0].astype(int)
    assert (np.diff(shown) >= 0).all()
    assert np.abs(shown - np.array(sorted(values)) / 257).max() <= 0.5


def test_floats_from_0_to_1(tmp_path):
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "a.tif")
    assert grey_of(load_samples(str(tmp_path))[0].image).tolist() == RAMP.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0, 255]]), "holds floats from 0 to 255; expected numbers from 0, black, to 1, white"),
        (np.float32([[-0.5, 1]]), r"holds floats from -0\.5 to 1;"),
        (np.float32([[0.5, np.nan]]), "holds floats from nan to nan;"),
        (np.float32([[0.5, np.inf]]), r"holds floats from 0\.5 to inf;"),
        (np.int32([[-1, 300]]), "holds 32-bit integers from -1 to 300; expected 16-bit values"),
        (np.int32([[0, 65536]]), "holds 32-bit integers from 0 to 65536;"),
        (np.int32([[0, 255]]), "holds 32-bit integers from 0 to 255; .* some of them above 255"),
    ],
)
def test_a_range_that_nothing_tells_is_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "bad.tif")
    [sample] = load_samples(str(tmp_path))
    with pytest.raises(DataError, match=rf"^sample bad\.tif: image .*bad\.tif {message}"):
        _ = sample.image


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_may_say_that_zero_is_white(dtype, orientation):
    values = {np.uint8: RAMP, np.uint16: RAMP.astype(np.uint16) * 257, np.float32: RAMP.astype(np.float32) / 255}[
        dtype
    ]
    tags = {262: 0, 0x0112: orientation}
    shown = grey_of(open_image(stored(Image.fromarray(values), "TIFF", tiffinfo=tags)))
    # Pillow turns 8 bits around when it writes them
    expected = RAMP if dtype is np.uint8 else 255 - RAMP
    assert shown.tolist() == (expected if orientation == 1 else expected[::-1, ::-1]).tolist()


def test_12_bits_are_scaled_by_12_bits():
    entries = [
        (256, 3, 2),
        (257, 3, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (279, 4, 3),
    ]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    file = (
        b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x08\0" + struct.pack("<H", len(entries)) + table + bytes(4)
    )
    assert grey_of(open_image(io.BytesIO(file))).tolist() == [[255, 128]]  # of 4095 and 2056


def test_a_black_picture_of_any_type_is_black():
    for mode in ("I;16", "I", "F", "L", "1"):
        assert grey_of(to_rgb(Image.new(mode, (3, 2)))).tolist() == [[0] * 3] * 2


# --- transparency --------------------------------------------------------------------------------------------


def clear(mode):
    """A black picture whose right half is transparent."""
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))
    if mode == "PA":
        made = Image.new("PA", (4, 2))
        made.putalpha(image.getchannel("A"))
        return made
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_shows_white(mode):
    shown = to_rgb(clear("LA").convert("La") if mode == "La" else clear(mode))
    assert [shown.getpixel((x, 0)) for x in range(4)] == [(0, 0, 0)] * 2 + [WHITE] * 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_transparency_from_files(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = open_image(stored(clear("RGBA"), kind, **options))
    assert [shown.getpixel((x, 1)) for x in range(4)] == [(0, 0, 0)] * 2 + [WHITE] * 2
    assert not to_rgb(shown).has_transparency_data


@pytest.mark.parametrize(
    ("mode", "color", "transparency"),
    [("RGB", (9, 8, 7), (9, 8, 7)), ("L", 9, 9), ("P", 0, 0), ("P", 0, bytes([0, 255])), ("1", 0, 0)],
)
def test_one_color_that_means_transparent(mode, color, transparency):
    image = Image.new(mode, (2, 2), color)
    shown = open_image(stored(image, "PNG", transparency=transparency))
    assert shown.getcolors() == [(4, WHITE)]


def test_one_shade_of_16_bits_that_means_transparent():
    image = Image.fromarray(np.uint16([[0, 7, 65535, 32896]]))
    image.info["transparency"] = 7
    assert grey_of(to_rgb(image)).tolist() == [[0, 255, 255, 128]]


def test_half_transparent_is_half_white():
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 127))).getpixel((0, 0)) == GREY


# --- colors and orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P", "LAB"])
def test_red_is_red_in_every_mode(mode):
    image = Image.new("RGB", (4, 4), RED)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    shown = to_rgb(image.convert(mode) if mode not in ("LAB", "RGB") else image).getpixel((1, 1))
    assert np.abs(np.subtract(shown, RED)).max() <= (5 if mode == "LAB" else 2)  # LAB in 8 bits is coarse


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_in_every_mode(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = Image.new("I;16", (6, 4))
    corner.putpixel((0, 0), 65535)
    seen = {
        1: (0, 0), 2: (5, 0), 3: (5, 3), 4: (0, 3), 5: (0, 0), 6: (3, 0), 7: (3, 5), 8: (0, 5),
    }[orientation]  # fmt: skip
    shown = open_image(stored(corner, "PNG", exif=exif))
    assert shown.size == ((6, 4) if orientation < 5 else (4, 6))
    assert shown.getpixel(seen) == WHITE
    assert picture_digest(to_rgb(shown)) == picture_digest(shown)  # not turned twice


# --- what is no picture --------------------------------------------------------------------------------------


def frames(count, kind):
    made = [Image.new("RGB", (4, 4), (60 * n, 0, 0)) for n in range(count)]
    return stored(made[0], kind, save_all=True, append_images=made[1:])


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_an_animation_is_refused_with_its_frames(tmp_path, kind):
    (tmp_path / f"a.{kind.lower()}").write_bytes(frames(3, kind).read())
    [sample] = load_samples(str(tmp_path))
    message = (
        r"^sample a\.\w+: image .*a\.\w+ is an animation, or a file of several pages, of 3 frames; expected a"
    )
    with pytest.raises(DataError, match=message):
        _ = sample.image
    assert open_image(frames(1, kind)).size == (4, 4)


def test_a_photo_with_its_small_copy_is_a_photo():
    assert open_image(frames(2, "MPO")).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("size", [(MAX_RATIO + 1, 1), (1, MAX_RATIO + 1), (3, 3 * MAX_RATIO + 1)])
def test_extreme_sides(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "long.png")
    with pytest.raises(
        DataError, match=rf"^sample long\.png: image .*long\.png has {size[0]} x {size[1]} pixels; exp"
    ):
        _ = load_samples(str(tmp_path))[0].image
    assert to_rgb(Image.new("L", (MAX_RATIO, 1))).size == (MAX_RATIO, 1)


def test_a_picture_of_no_pixels():
    with pytest.raises(DataError, match="the image has 0 x 3 pixels; expected at least one"):
        to_rgb(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("side", [13_378, 20_000])  # Pillow itself refuses the second
def test_too_many_pixels_are_refused_unread(tmp_path, side, recwarn):
    header = b"P5\n%d %d\n255\n" % (side, side)  # no pixel follows
    (tmp_path / "big.bmp").write_bytes(header)
    with pytest.raises(DataError, match=rf"^sample big\.bmp: image .*big\.bmp has .*more than {MAX_PIXELS:,}"):
        _ = load_samples(str(tmp_path))[0].image
    assert not recwarn


def test_between_pillows_limits_there_is_no_warning(tmp_path, recwarn):
    (tmp_path / "big.bmp").write_bytes(b"P5\n10000 10000\n255\n")
    with pytest.raises(DataError, match=r"can't read image .*big\.bmp"):  # its pixels are missing
        open_image(tmp_path / "big.bmp")
    assert not recwarn


WHOLE = {
    "PNG": stored(Image.effect_noise((24, 20), 80), "PNG").getvalue(),
    "JPEG": stored(Image.effect_noise((24, 20), 80).convert("RGB"), "JPEG").getvalue(),
    "GIF": stored(Image.effect_noise((24, 20), 80), "GIF").getvalue(),
    "TIFF": stored(clear("RGBA"), "TIFF", compression="tiff_lzw").getvalue(),
    "WEBP": stored(clear("RGBA"), "WEBP").getvalue(),
    "BMP": stored(clear("RGB"), "BMP").getvalue(),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", sorted(WHOLE))
def test_the_beginning_of_a_file_is_no_picture(kind, part):
    with pytest.raises(DataError, match="can't read image a picture: "):
        open_image(io.BytesIO(WHOLE[kind][: int(part * len(WHOLE[kind]))]), "a picture")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_a_damaged_file_is_a_picture_or_a_clear_error(kind, data):
    content = bytearray(WHOLE[kind])
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        said = f"image a picture of mode {open_image(io.BytesIO(bytes(content)), 'a picture').mode}; expected RGB"
    except DataError as error:
        said = str(error)
    assert "image a picture" in said
    assert "expected" in said


# --- one place does it, for every source ---------------------------------------------------------------------


def test_pictures_side_by_side_are_converted_each():
    shown = side_by_side([Image.fromarray(RAMP.astype(np.uint16) * 257), clear("RGBA").resize((8, 8), 0)])
    assert grey_of(shown)[:, :8].tolist() == RAMP.tolist()
    assert shown.getpixel((8 + 3 + 7, 0)) == WHITE


@pytest.mark.parametrize("mode", ["F", "CMYK", "I", "LAB"])
def test_decoded_cells_of_a_table_come_in_modes_that_png_has_not(mode):
    cell = Image.new(mode, (2, 2))
    shown = open_image(io.BytesIO(encoded_image(cell, "row 1")))
    assert shown.tobytes() == to_rgb(cell).tobytes()


def test_a_picture_made_by_a_loader_is_converted_too():
    sample = Sample("7", "p", "?", None, None, None, lambda: Image.fromarray(np.float32([[2]])))
    with pytest.raises(DataError, match="sample 7: the image holds floats from 2 to 2"):
        _ = sample.image


def test_copies_have_one_digest(tmp_path):
    image = Image.fromarray(RAMP)
    image.save(tmp_path / "a.png")
    image.convert("RGB").save(tmp_path / "b.bmp")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "c.tif")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "d.png")
    *copies, other = [sample.picture_digest for sample in load_samples(str(tmp_path))]
    assert len({*copies}) == 1
    assert other not in copies
    assert picture_digest(Image.new("RGB", (2, 8))) != picture_digest(Image.new("RGB", (8, 2)))
