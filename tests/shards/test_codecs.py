"""What is encoded comes back, in the colours, the mode and the quality that were asked for."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan.errors import UserError
from ecgan.shards import codecs

FORMATS = ["jpg", "png", "webp"]
SIZES = [(1, 1), (1, 9), (7, 1), (13, 21), (16, 24)]  # height, width
CHECKPOINT = "0123456789abcdef" * 4
MARK = codecs.synthetic_mark(tool="ecgan 0.1.0", license="cc-by-4.0", checkpoint=CHECKPOINT)

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"


def smooth(height, width, seed=0):
    """A picture that lossy codecs keep well: one gradient for each channel, and some noise."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    image = np.stack([40 + 3 * x, 200 - 4 * y, 90 + x + y], axis=-1)
    image += np.random.default_rng(seed).normal(0, 2, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def decoded(data):
    return np.asarray(opened(data).convert("RGB"))


# Pictures


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_size_come_back_in_their_colours(image_format, size):
    image = smooth(*size)
    data = codecs.encode_image(image, image_format, 95)
    assert opened(data).format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format]
    result = decoded(data)
    assert result.shape == image.shape
    # WebP halves the resolution of colours.
    limit = {"png": 0, "jpg": 10, "webp": 30}[image_format]
    assert np.abs(result.astype(int) - image).max() <= limit


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
def test_red_stays_red(image_format, color):
    image = np.full((16, 16, 3), color, np.uint8)
    result = decoded(codecs.encode_image(image, image_format, 95))
    assert np.abs(result.astype(int) - image).max() <= 8


def test_jpeg_keeps_colours_at_full_resolution():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, ::2, 0] = 255  # red columns one pixel wide vanish at 4:2:0
    data = codecs.encode_image(image, "jpg", 95)
    assert np.abs(decoded(data).astype(int) - image).max() < 40
    across, down = np.array([layer[1:3] for layer in opened(data).layer]).T
    assert set(across) == set(down) == {1}  # sampling factors of Y, Cb and Cr


@pytest.mark.parametrize("quality", [1, 50, 95, 100])
def test_jpeg_has_the_tables_of_its_quality(quality):
    image = smooth(16, 24)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    ours = opened(codecs.encode_image(image, "jpg", quality))
    assert ours.quantization == opened(buffer.getvalue()).quantization


def test_webp_of_lower_quality_is_smaller():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sizes = [len(codecs.encode_image(image, "webp", quality)) for quality in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


def test_grey_levels_of_a_png_come_back_exactly():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    result = decoded(codecs.encode_image(image, "png", 1))
    np.testing.assert_array_equal(result, image)


VIEWS = {
    "upside down": lambda a: a[::-1],
    "mirrored": lambda a: a[:, ::-1],
    "every third": lambda a: a[::2, ::3],
    "cropped": lambda a: a[3:11, 2:9],
    "turned": lambda a: a.swapaxes(0, 1),
    "column by column": np.asfortranarray,
    "read only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strides_do_not_matter(view):
    image = view(smooth(16, 24))
    for image_format in FORMATS:
        data = codecs.encode_image(image, image_format, 95)
        assert data == codecs.encode_image(image.copy("C"), image_format, 95)
    values = view(np.random.default_rng(0).integers(0, 65536, (16, 24), dtype=np.uint16))
    np.testing.assert_array_equal(np.asarray(opened(codecs.encode_map(values))), values)


def test_channels_first_tensors_are_encoded_as_they_lie():
    """The generator's images are (3, H, W) in memory."""
    image = smooth(16, 24)
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    data = codecs.encode_image(planes.permute(1, 2, 0).numpy(), "png", 95)
    np.testing.assert_array_equal(decoded(data), image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_same_picture_has_the_same_bytes_on_every_thread(image_format):
    images = [smooth(48, 64, seed) for seed in range(4)]

    def encode(index):
        image = images[index % len(images)]
        return codecs.encode_image(image, image_format, 95, MARK), codecs.encode_map(image[..., 0])

    expected = [encode(index) for index in range(len(images))]
    assert len(set(expected)) == len(images)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(encode, range(40)))
    assert results == expected * 10


def test_what_is_no_picture_is_refused():
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))):
        with pytest.raises(AssertionError):
            codecs.encode_image(wrong, "jpg", 95)


# Maps


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "mode"), [(np.uint8, "L"), (np.uint16, "I;16")])
def test_maps_come_back_exactly_in_grey(size, dtype, mode):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, size, dtype)
    data = codecs.encode_map(values)
    image = opened(data)
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), values)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), values
    )


@pytest.mark.parametrize("value", [300, 65535])
def test_ids_above_255_come_back(value):
    values = np.full((8, 16), value, np.uint16)
    image = opened(codecs.encode_map(values))
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(image), values)


def test_a_map_of_two_values_is_still_grey_and_has_no_metadata():
    values = np.zeros((8, 16), np.uint8)
    values[3] = 255
    data = codecs.encode_map(values)
    assert opened(data).mode == "L"
    names, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        names.append(data[place + 4 : place + 8])
        place += 12 + length
    assert names[0] == b"IHDR"
    assert set(names) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_label_map_is_small():
    values = np.repeat(np.arange(8, dtype=np.uint8), 32)[:, None].repeat(256, axis=1)
    assert len(codecs.encode_map(values)) < values.size / 50


def test_what_opencv_would_cut_to_eight_bits_is_refused():
    for dtype in (np.int64, np.int32, np.int16, np.float32, bool, ">u2"):
        with pytest.raises(AssertionError):
            codecs.encode_map(np.full((8, 8), 1, dtype))
    with pytest.raises(AssertionError):
        codecs.encode_map(np.zeros((8, 8, 3), np.uint8))


# The mark


def packet(data):
    """The XMP of a file, as Pillow finds it."""
    info = opened(data).info
    found = info.get("xmp") or info.get("XML:com.adobe.xmp")
    return found.encode() if isinstance(found, str) else found


def description(xmp):
    (found,) = ElementTree.fromstring(xmp.decode()).iter(RDF + "Description")
    return found


def rights(xmp):
    return [item.text for item in description(xmp).iterfind(f"{DC}rights/{RDF}Alt/{RDF}li")]


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_mark_is_in_the_file_and_says_what_it_should(image_format):
    xmp = packet(codecs.encode_image(smooth(16, 24), image_format, 95, MARK))
    assert xmp == MARK
    assert description(xmp).attrib == {
        RDF + "about": "",
        "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        ),
        "{http://ns.adobe.com/xap/1.0/}CreatorTool": "ecgan 0.1.0",
        "{urn:ecgan:xmp:1.0/}checkpoint": CHECKPOINT,
    }
    assert rights(xmp) == ["cc-by-4.0"]


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_picture_without_a_mark_has_no_metadata(image_format):
    data = codecs.encode_image(smooth(16, 24), image_format, 95)
    assert b"xmp" not in data.lower()
    assert b"adobe" not in data.lower()


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_every_decoder_reads_a_marked_picture_and_sees_the_same_pixels(image_format, size):
    image = smooth(*size)
    plain = codecs.encode_image(image, image_format, 95)
    marked = codecs.encode_image(image, image_format, 95, MARK)
    assert len(plain) < len(marked) < len(plain) + len(MARK) + 100
    for decode in (decoded, decoded_by_opencv, decoded_by_torchvision):
        expected = decode(plain)
        assert expected.shape == image.shape
        np.testing.assert_array_equal(decode(marked), expected)


def decoded_by_opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def decoded_by_torchvision(data):
    from torchvision.io import ImageReadMode, decode_image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since 0.29
        tensor = decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
        )
    return tensor.permute(1, 2, 0).numpy()


def test_the_mark_of_a_jpeg_follows_its_jfif_header():
    data = codecs.encode_image(smooth(16, 24), "jpg", 95, MARK)
    assert data[:4] == b"\xff\xd8\xff\xe0"  # SOI, APP0
    assert data[6:11] == b"JFIF\0"
    segment = data[4 + int.from_bytes(data[4:6], "big") :]
    assert segment[:2] == b"\xff\xe1"  # APP1
    assert segment[4:].startswith(b"http://ns.adobe.com/xap/1.0/\0<?xpacket begin=")
    length = int.from_bytes(segment[2:4], "big")
    assert segment[: 2 + length].endswith(b'<?xpacket end="r"?>')


def test_the_chunk_of_a_png_has_its_checksum():
    image = opened(codecs.encode_image(smooth(16, 24), "png", 95, MARK))
    assert image.info["XML:com.adobe.xmp"] == MARK.decode()
    data = io.BytesIO(codecs.encode_image(smooth(16, 24), "png", 95, MARK))
    Image.open(data).verify()  # checks what `load` passes over


@given(
    st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=100).filter(
        str.isprintable
    ),
    st.text("ab 0.\"'<>&", max_size=20),
)
def test_any_licence_and_tool_make_valid_xml(name, tool):
    xmp = codecs.synthetic_mark(tool=tool, license=name, checkpoint=CHECKPOINT)
    assert description(xmp).attrib["{http://ns.adobe.com/xap/1.0/}CreatorTool"] == tool
    assert rights(xmp) == ([name] if name not in ("", "other") else [])


@pytest.mark.parametrize("name", ["", "other"])
def test_no_rights_are_claimed_without_a_licence(name):
    xmp = codecs.synthetic_mark(tool="ecgan", license=name, checkpoint=CHECKPOINT)
    assert b"rights" not in xmp


def test_the_mark_is_small_and_the_same_each_time():
    again = codecs.synthetic_mark(tool="ecgan 0.1.0", license="cc-by-4.0", checkpoint=CHECKPOINT)
    assert again == MARK
    assert len(MARK) < 1200


@pytest.mark.parametrize("name", ["x" * 101, "cc\x07", "line\nbreak"])
def test_a_licence_that_is_no_name_is_refused(name):
    with pytest.raises(UserError, match=r"sampling\.license: .* is no short name"):
        codecs.synthetic_mark(tool="ecgan", license=name, checkpoint=CHECKPOINT)


# Versions


def test_the_libraries_that_decide_the_bytes_have_versions():
    versions = codecs.versions()
    assert list(versions) == ["opencv", "libjpeg", "libpng", "zlib", "pillow", "libwebp"]
    assert versions["opencv"] == cv2.__version__
    assert versions["pillow"] == Image.__version__
    for name, version in versions.items():
        assert version[0].isdigit(), (name, version)
