"""Pictures that somebody else may have written: the formats that are opened, and how they fail."""

import io
import struct

from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # of pictures, as Pillow calls them
PICTURE_ERRORS = (  # what Pillow's decoders raise for damaged files
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(TypeError, KeyError, IndexError, OverflowError, ZeroDivisionError, AttributeError),
    *(RuntimeError, MemoryError, AssertionError),
)


def open_image(content: bytes) -> Image.Image:
    """A picture of one of :data:`FORMATS`; the only place where Pillow opens any.

    Pillow goes by the content, whatever the name, and for some formats starts other programs.
    Pixels are decoded later, which may raise as well.

    Raises:
        PIL.UnidentifiedImageError: another format.
        PIL.Image.DecompressionBombError: too many pixels to be read safely.
        OSError: a damaged file, or another one of :data:`PICTURE_ERRORS`.
    """
    return Image.open(io.BytesIO(content), formats=FORMATS)  # noqa: TID251  here and nowhere else
