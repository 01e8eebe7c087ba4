"""Encoded images (JPEG, PNG, ...) to arrays of bytes, through Pillow."""

import io

import numpy as np
from PIL import Image

from robustssm.core.errors import CorruptFile

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than 8 bits a channel, which bytes cannot hold."""


def mode(data: bytes, what: str) -> str:
    """Pillow's name of an image's colours ("L" is grey, "RGB", ...), from its header alone.

    Args:
        data: The encoded image.
        what: How messages call it.

    Raises:
        CorruptFile: If it is no image, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = image.mode
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(what, error) from None
    if found in DEEP:
        raise CorruptFile(
            f"{what} must have 8 bits a channel; its mode is {found}. Convert it to 8 bits, or "
            "save the images as floats and use the data set `arrays`."
        )
    return found


def decode(data: bytes, what: str, *, grey: bool = False) -> np.ndarray:
    """Decodes one image.

    Args:
        data: The encoded image.
        what: How messages call it.
        grey: Whether to make one channel of it, or three; grey images become three equal ones.

    Returns:
        Its pixels, (channels, height, width), uint8.

    Raises:
        CorruptFile: If it is no image, or is cut off.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(what, error) from None
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _unreadable(what: str, error: Exception) -> CorruptFile:
    return CorruptFile(
        f"{what} must be a whole image that Pillow can read; {error or type(error).__name__}. "
        "Fetch or write it again."
    )
