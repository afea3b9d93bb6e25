"""Arrays -> bytes of image files, and the mark in them that says that a network made the picture.

The same array gives the same bytes, whatever its strides, on any thread, as long as the libraries
of :func:`versions` are the same. OpenCV writes JPEG and PNG: it is the fastest that keeps colours
at full resolution, and releases the GIL (``tests/benchmarks/bench_encoders.py``). Pillow writes
WebP, into whose container it also puts the mark; the other two take it as one more segment.

Shape legend:
    H, W  height and width
"""

import io
import re
import struct
import zlib
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from ecgan.errors import UserError
from ecgan.labels import Labels
from ecgan.shards.files.names import ImageFormat

Pixels = npt.NDArray[np.uint8]

# IPTC's word for pictures that come out of a trained network; readers expect the whole address.
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DIGITAL_SOURCE = "trainedAlgorithmicMedia"  # IPTC's word for what a network made
COMPOSITE_SOURCE = "compositeWithTrainedAlgorithmicMedia"  # and for photos with such parts

_MAX_LICENSE = 100  # characters: a name, not a text

# Runs of equal bytes only, each byte predicted from its neighbours (Paeth): three to nine times the
# speed of zlib's search for earlier strings; labels get smaller, smooth edges larger by an eighth.
# The order matters: OpenCV's level resets the strategy. Before 4.12 there is no choice of filter,
# and all are tried on every row.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH]


def encode_image(image: Pixels, image_format: ImageFormat, quality: int, xmp: bytes = b"") -> bytes:
    """Encode an RGB image, (H, W, 3). JPEG keeps its colours at full resolution (4:4:4).

    Args:
        image: any strides.
        image_format: PNG is lossless, WebP is not.
        quality: 1 to 100, of JPEG and WebP.
        xmp: packet to embed, of :func:`synthetic_mark`; none where empty. The pixels of the file
            do not depend on it.
    """
    assert image.dtype == np.uint8, image.dtype
    assert image.ndim == 3, image.shape
    assert image.shape[2] == 3, image.shape
    match image_format:
        case "jpg":
            data = _encode(".jpg", _bgr(image), _jpeg_options(quality))
            return _mark_jpeg(data, xmp) if xmp else data
        case "png":
            data = _encode(".png", _bgr(image), _PNG)
            return _mark_png(data, xmp) if xmp else data
        case "webp":
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "WEBP", quality=quality, xmp=xmp)
            return buffer.getvalue()


def encode_map(values: Labels) -> bytes:
    """Encode a label or edge map, (H, W), as PNG: mode L, or 16 bits (I;16) for uint16.

    Never a palette: webdataset and OpenCV would decode its colours. No metadata.
    """
    # OpenCV would write other integers as 8 bits, with no more than a line on stderr.
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    assert values.ndim == 2, values.shape
    return _encode(".png", values, _PNG)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the bytes, by name.

    Those of libjpeg, libpng and zlib are what OpenCV was built with; "unknown" in a build that does
    not say.
    """
    build = cv2.getBuildInformation()

    def inside(name: str) -> str:
        found = re.search(rf"^\s*{name}:.*\(ver ([^)]+)\)", build, re.MULTILINE)
        return found[1] if found else "unknown"

    return {
        "opencv": cv2.__version__,
        "libjpeg": inside("JPEG"),
        "libpng": inside("PNG"),
        "zlib": inside("ZLib"),
        "pillow": PIL.__version__,
        "libwebp": features.version("webp") or "unknown",
    }


def _bgr(image: Pixels) -> Pixels:
    """The image in OpenCV's order."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)


def _jpeg_options(quality: int) -> list[int]:
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling]


def _encode(suffix: str, pixels: Labels, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    assert done, (suffix, pixels.shape)
    return data.tobytes()


# The mark


def synthetic_mark(
    *,
    tool: str,
    license: str,  # noqa: A002
    checkpoint: str,
    source: str = DIGITAL_SOURCE,
) -> bytes:
    """An XMP packet that says that a network made the picture, which, and what one may do with it.

    It holds IPTC's DigitalSourceType, CreatorTool, rights (none for "other" or an empty licence)
    and, in a namespace of ours, the checkpoint: its sha256, which ``manifest.json`` has too. No
    time and no identifier of the picture, so that the same picture has the same bytes.

    Args:
        tool: name and version of the program.
        license: short name; the recipe's ``sampling.license``.
        checkpoint: sha256, hexadecimal.
        source: IPTC's word for where the picture is from.

    Raises:
        UserError: the licence is not a short name.
    """
    if len(license) > _MAX_LICENSE or not license.isprintable():
        raise UserError(
            f"sampling.license: {license[:_MAX_LICENSE]!r} is no short name of a licence; use at "
            f"most {_MAX_LICENSE} printable characters, such as cc-by-4.0"
        )
    assert tool.isprintable(), tool
    assert re.fullmatch(r"[0-9a-f]{64}", checkpoint), checkpoint
    rights = ""
    if license not in ("", "other"):
        text = f'<rdf:li xml:lang="x-default">{escape(license)}</rdf:li>'
        rights = f"<dc:rights><rdf:Alt>{text}</rdf:Alt></dc:rights>"
    packet = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:ecgan="urn:ecgan:xmp:1.0/"
 Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPES}{source}"
 xmp:CreatorTool={quoteattr(tool)}
 ecgan:checkpoint="{checkpoint}">{rights}</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
    return packet.encode()


def _mark_jpeg(data: bytes, xmp: bytes) -> bytes:
    """An APP1 segment after SOI and JFIF's APP0, which has to be the first (XMP, part 3)."""
    assert data[2:4] == b"\xff\xe0", data[:4]
    end = 4 + int.from_bytes(data[4:6], "big")
    payload = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    return data[:end] + b"\xff\xe1" + struct.pack(">H", 2 + len(payload)) + payload + data[end:]


def _mark_png(data: bytes, xmp: bytes) -> bytes:
    """An iTXt chunk after IHDR, not compressed, of no language (XMP, part 3)."""
    end = 8 + 12 + 13  # signature, and IHDR with its length, name and checksum
    keyword, not_compressed, language, translated = b"XML:com.adobe.xmp\0", b"\0\0", b"\0", b"\0"
    body = b"iTXt" + keyword + not_compressed + language + translated + xmp
    length, checksum = struct.pack(">I", len(body) - 4), struct.pack(">I", zlib.crc32(body))
    return data[:end] + length + body + checksum + data[end:]
