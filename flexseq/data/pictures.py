"""One picture file as bytes of red, green and blue, whatever its numbers are and whichever way its camera was held."""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from flexseq.errors import InputError

BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
"""What Pillow raises on broken files."""
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
SUFFIXES = frozenset(
    [
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pcx",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".qoi",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)


def read_picture(path: Path, size: int) -> np.ndarray:
    """The middle square of a picture at another size: (3, size, size), bytes.

    Turned as its EXIF orientation says. 16-bit numbers are scaled from 0 .. 65,535, those in floating point from 0 .. 1, or from 0 .. 255
    where any is above 1.

    Raises:
        InputError: it cannot be read, or holds numbers of an unknown range.
    """
    from PIL import Image

    try:
        with opened(path) as picture, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            picture.draft("RGB", (2 * size, 2 * size))  # JPEGs are decoded no larger than is needed
            picture = in_colour(picture)
            edge = min(picture.size)
            left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
            middle = picture.crop((left, top, left + edge, top + edge))
            square = middle.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(square).transpose(2, 0, 1)
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


def opened(path: Path) -> Any:
    """A picture of Pillow's, of one of the formats that are data alone: PostScript's is a program."""
    from PIL import Image

    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def in_colour(picture: Any) -> Any:
    """A picture of Pillow's in RGB, upright. Its own conversion cuts 16-bit numbers off at 255, and wraps others round.

    Raises:
        ValueError: numbers of a range that is not known, or NaN.
    """
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if not picture.mode.startswith(("I", "F")):
        return picture.convert("RGB")
    values = np.asarray(picture).astype(np.float64)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        scale, limit, known = (255.0, 1, "floating point in 0 .. 1 or 0 .. 255") if high <= 1 else (1.0, 255, "floating point in 0 .. 255")
    else:
        scale, limit, known = 255 / 65535, 65535, "integers in 0 .. 65,535"
    if not (low >= 0 and high <= limit):  # NaN too
        raise ValueError(f"expected {known}, got {low:g} to {high:g}")
    return Image.fromarray((values * scale).round().astype(np.uint8)).convert("RGB")


def opens(path: Path, decode: bool) -> bool:
    """Whether a file is a picture by its head; where `decode`, whether all of it can be read, too."""
    from PIL import Image

    try:
        with opened(path) as picture:
            if decode and picture.mode.startswith(("I", "F")):
                in_colour(picture)
            elif decode:
                picture.draft("RGB", (16, 16))  # of a JPEG an eighth of the work
                picture.load()
            return min(picture.size) > 0
    except (*BROKEN, Image.DecompressionBombError):
        return False
