"""Any picture -> RGB, so that it shows what its file shows: the one place that converts pictures.

- Greyscale of more than 8 bits is scaled by its type's range. 16 bits: 65535 is white; 12 bits: 4095. 32-bit
  integers: held to be 16-bit values, as Pillow gives them for some 16-bit files; values outside 0 to 65535 are
  refused, and so is a picture with none above 255, for they may as well be 8-bit values. Floats: 1 is white; a
  picture with other values than 0 to 1 is refused.
- What is transparent shows white.
- A picture is turned upright as its EXIF orientation says.
- An animation, or a file of several pages, is refused: nothing says which of its pictures is meant.
- So are pictures with extreme sides (`MAX_RATIO`) or more than `MAX_PIXELS` pixels.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, ImageOps

from tccd.data.records import cut
from tccd.errors import DataError

T = TypeVar("T")

#: Pixels of a picture, at most; what Pillow takes for an attack.
MAX_PIXELS = 178_956_970
#: A neutral grey.
GREY = (128, 128, 128)
#: The long side over the short one, at most: Qwen's processors read no picture beyond it.
MAX_RATIO = 200
#: File formats of several pictures, whose first is the whole and whose others are parts of it.
_FIRST_IS_WHOLE = ("MPO", "PSD")
#: Tags of EXIF and TIFF.
_ORIENTATION, _BITS, _ZERO_IS = 0x0112, 258, 262
_SIDES, _ON_ITS_SIDE = (256, 257), (5, 6, 7, 8)


def open_image(path: Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Read an image file whole, in RGB; see `to_rgb`.

    Args:
        path: the file, or its content opened.
        name: what to call it in an error; its path when None.

    Raises:
        DataError: the file is missing, truncated or no image, or `to_rgb` refuses it.
    """
    return _read(path, name, to_rgb)


def image_size(path: Path | IO[bytes], name: str | None = None) -> tuple[int, int]:
    """Width and height that `open_image` will give, from the file's header: damaged pixels go unseen.

    A PNG file that tells its orientation after its pixels, which few do, is taken as it lies.

    Args:
        path: the file, or its content opened.
        name: what to call it in an error; its path when None.

    Raises:
        DataError: the file is missing or no image, or `to_rgb` refuses it by its header.
    """
    return _read(path, name, lambda image, name: _upright_size(image, f"image {name}"))


def _upright_size(image: Image.Image, named: str) -> tuple[int, int]:
    _check_shape(image, named)
    # By its tags: some of Pillow's versions give the size of an unread TIFF upright, others as it lies.
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, side) for tag, side in zip(_SIDES, image.size, strict=True))
    # Of `Image`, for a PNG's own reads the pixels.
    turned = Image.Image.getexif(image).get(_ORIENTATION, 1) in _ON_ITS_SIDE
    return (height, width) if turned else (width, height)


def _read(path: Path | IO[bytes], name: str | None, use: Callable[[Image.Image, str], T]) -> T:
    name = name or cut(str(path))
    try:
        with warnings.catch_warnings():
            # Said by `to_rgb`, as an error and only where it is one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return use(image, name)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name} has more than {MAX_PIXELS:,} pixels; {_SMALLER}") from error
    # An open set: each of Pillow's decoders has its own errors for damaged files.
    except Exception as error:
        reason = cut(str(error)) or type(error).__name__
        raise DataError(f"can't read image {name}: {reason}; expected a file that Pillow can open") from error


_SMALLER = "expected at most so many: scale it down, as models do anyway"


def to_rgb(image: Image.Image, name: str | None = None) -> Image.Image:
    """A picture in RGB, upright, on white.

    Args:
        image: a picture in any of Pillow's modes.
        name: what to call it in an error.

    Raises:
        DataError: an animation; too many pixels, or one side too long for the other; or greyscale whose range
            can't be told. The module says which.
    """
    named = f"image {name}" if name else "the image"
    _check_shape(image, named)
    tags = getattr(image, "tag_v2", {})  # a TIFF's, which a turned picture has no more
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image, named, tags)
    if image.mode == "LAB":
        return _from_lab(image, named)
    if image.has_transparency_data:
        above = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(above)
        return white.convert("RGB")
    return image.convert("RGB")


def _check_shape(image: Image.Image, named: str) -> None:
    """From the file's header, before its pixels are read."""
    width, height = image.size
    if not width or not height:
        raise DataError(f"{named} has {width} x {height} pixels; expected at least one")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{named} has {width} x {height} = {width * height:,} pixels, more than {MAX_PIXELS:,}; {_SMALLER}"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{named} has {width} x {height} pixels; expected a long side of at most {MAX_RATIO} times the short "
            "one. Cut it into several"
        )
    if image.format not in _FIRST_IS_WHOLE and getattr(image, "is_animated", False):
        count = getattr(image, "n_frames", "several")
        raise DataError(
            f"{named} is an animation, or a file of several pages, of {count} frames; "
            "expected a still picture. Save the frame you mean as a file of its own"
        )


def _grey(image: Image.Image, named: str, tags: Mapping[int, Any]) -> Image.Image:
    """Greyscale of 12, 16 or 32 bits."""
    import numpy as np

    values = np.asarray(image)
    low, high = values.min().item(), values.max().item()
    if image.mode == "F":
        if not 0 <= low <= high <= 1:  # not a number is in no range
            raise DataError(
                f"{named} holds floats from {low:g} to {high:g}; expected numbers from 0, black, to 1, white. "
                "Scale it, or save it as 8-bit greyscale"
            )
        white = 1
    elif not image.mode.startswith("I;16") and (low < 0 or high > 65535 or 0 < high <= 255):
        raise DataError(
            f"{named} holds 32-bit integers from {low} to {high}; expected 16-bit values, up to 65535 for white "
            "and some of them above 255. Save it as 8-bit or 16-bit greyscale"
        )
    else:
        white = 4095 if tags.get(_BITS) == (12,) else 65535
    scaled = np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    if tags.get(_ZERO_IS) == 0:  # white; Pillow heeds it up to 8 bits
        scaled = 255 - scaled
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        scaled[values == clear] = 255
    return Image.fromarray(scaled).convert("RGB")


def _from_lab(image: Image.Image, named: str) -> Image.Image:
    try:
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        made: Any = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    except ImportError as error:
        raise DataError(
            f"{named} is in LAB colors, which this Pillow can't read ({error}); save it as RGB"
        ) from error
    return made


def blank(image: Image.Image, color: tuple[int, int, int] = GREY) -> Image.Image:
    """A picture of one color, of the same size: it shows nothing.

    Args:
        image: whose size it gets.
        color: red, green and blue, 0 to 255.
    """
    return Image.new("RGB", image.size, color)


def picture_digest(image: Image.Image) -> str:
    """What a picture shows, as 16 hexadecimal digits: equal for copies, whatever their files are called.

    Args:
        image: a picture in RGB; see `to_rgb`.
    """
    digest = hashlib.sha256(repr(image.size).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]
