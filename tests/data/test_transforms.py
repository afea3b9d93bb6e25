"""The whole sample is resized, cut and mirrored together."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan.data import transforms
from ecgan.data.transforms import Sample, canny_edges
from ecgan.demo.toy import draw_scene
from ecgan.errors import UserError
from tests.helpers.errors import message
from tests.helpers.trees import photo, stripes

sides = st.integers(1, 17)


def _sample(size=(40, 72), *, edge=False):
    """A sample whose arrays say where each pixel comes from: the label is the image's red."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 200, size, np.uint8)
    image = np.stack([label, rng.integers(0, 200, size, np.uint8), label // 2], axis=-1)
    return Sample("a", label, image, edge=label.copy() if edge else None)


def prepare(sample, instances=None, *, resize_to, crop_to=None, **options):
    """Both steps of training: resize, then cut."""
    resized = transforms.resize(sample, resize_to, instances)
    return transforms.cut(resized, crop_to or resize_to, **options)


def _assert_equal(a, b):
    for field in fields(Sample):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@given(sides, sides, sides, sides)
def test_nearest_takes_the_pixel_that_holds_the_centre(height, width, new_height, new_width):
    ids = np.arange(height * width, dtype=np.int32).reshape(height, width) + 40_000
    resized = transforms.resize_nearest(ids, (new_height, new_width))
    assert resized.dtype == ids.dtype
    for y in range(new_height):
        for x in range(new_width):
            row = int((y + 0.5) * height / new_height + 1e-9)
            column = int((x + 0.5) * width / new_width + 1e-9)
            assert resized[y, x] == ids[row, column]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_halving_a_label_keeps_its_type_and_never_mixes_ids(dtype):
    label = np.array([[0, 0, 255, 255], [0, 0, 255, 255]], dtype)
    resized = transforms.resize_nearest(label, (1, 2))
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, [[0, 255]])


SQUARE = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4), 4, 0), 4, 1)


@pytest.mark.parametrize(
    ("size", "inside"),
    [
        ((8, 16), (slice(0, 8), slice(4, 12))),  # borders left and right
        ((16, 8), (slice(4, 12), slice(0, 8))),  # above and below
        ((8, 8), (slice(0, 8), slice(0, 8))),
    ],
)
def test_a_letterbox_holds_all_of_a_map_in_its_ratio(size, inside):
    boxed = transforms.fit_nearest(SQUARE, size, "letterbox", 255)
    assert boxed.shape == size
    assert boxed.dtype == SQUARE.dtype
    np.testing.assert_array_equal(boxed[inside], SQUARE[1::2, 1::2])
    assert (boxed == 255).sum() == boxed.size - 64


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((4, 8), slice(4, 12), slice(None)), ((8, 4), slice(None), slice(4, 12))],
)
def test_a_crop_is_the_middle_of_a_map_in_the_new_ratio(size, rows, columns):
    cropped = transforms.fit_nearest(SQUARE, size, "crop", 255)
    np.testing.assert_array_equal(cropped, transforms.resize_nearest(SQUARE[rows, columns], size))


@given(sides, sides, sides, sides, st.sampled_from(["stretch", "crop", "letterbox"]))
def test_a_map_of_any_size_fits(height, width, new_height, new_width, fit):
    ids = np.zeros((height, width), np.int32)
    fitted = transforms.fit_nearest(ids, (new_height, new_width), fit, -1)
    assert fitted.shape == (new_height, new_width)
    assert (fitted == 0).any()
    assert fit == "letterbox" or (fitted == 0).all()


def test_images_are_antialiased():
    """Lines of one pixel become grey when the image shrinks to a quarter."""
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::2] = 255
    small = transforms.resize_image(lines, (16, 16))
    assert np.abs(small[2:-2, 2:-2].astype(int) - 128).max() <= 3
    expected = Image.fromarray(lines).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small, np.asarray(expected))


@given(sides, sides, st.integers(0, 2**32))
def test_boundary_marks_both_sides_of_four_neighbours(height, width, seed):
    ids = np.random.default_rng(seed).choice([7, 32_768, 65_535], (height, width)).astype(np.int32)
    boundary = transforms.instance_boundary(ids)
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [p for p in around if 0 <= p[0] < height and 0 <= p[1] < width]
            assert boundary[y, x] == any(ids[p] != ids[y, x] for p in inside)


def test_boundary_is_drawn_after_resizing():
    """A line of one pixel would be thinned out, or not, by the luck of the grid."""
    ids = np.repeat(np.arange(4, dtype=np.int32), 12)[None].repeat(32, axis=0)  # (32, 48)
    sample = Sample("a", np.zeros((32, 48), np.uint8))
    boundary = prepare(sample, ids, resize_to=(16, 24), edges="none").boundary
    assert boundary is not None
    np.testing.assert_array_equal(np.nonzero(boundary[0])[0], [5, 6, 11, 12, 17, 18])


def test_crop_takes_one_window_of_every_part():
    sample = _sample(edge=True)
    seen = set()
    for seed in range(40):
        cut = prepare(
            sample,
            sample.label.astype(np.int32),
            resize_to=(40, 72),
            crop_to=(32, 64),
            edges="folder",
            rng=np.random.default_rng(seed),
        )
        assert cut.image is not None
        assert cut.label.shape == (32, 64)
        np.testing.assert_array_equal(cut.image[..., 0], cut.label)
        np.testing.assert_array_equal(cut.edge, cut.label)
        whole = transforms.instance_boundary(sample.label)
        [(top, left)] = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if np.array_equal(sample.label[y : y + 32, x : x + 64], cut.label)
        ]
        np.testing.assert_array_equal(cut.boundary, whole[top : top + 32, left : left + 64])
        seen.add((top, left))
    assert {y for y, _ in seen} == set(range(9)) == {x for _, x in seen}


def test_mirror_turns_every_part_and_the_edges_found():
    image, label = draw_scene(2, 64, 96)
    sample = Sample("a", label, image)
    instances = label.astype(np.int32)
    plain = prepare(sample, instances, resize_to=(32, 64))
    results = [
        prepare(sample, instances, resize_to=(32, 64), flip=True, rng=np.random.default_rng(seed))
        for seed in range(12)
    ]
    assert plain.image is not None
    mirrored = [r for r in results if not np.array_equal(r.label, plain.label)]
    assert 2 <= len(mirrored) <= 10
    for result in mirrored:
        for name in ("label", "image", "edge", "boundary"):
            np.testing.assert_array_equal(getattr(result, name)[:, ::-1], getattr(plain, name))


def test_edges_come_from_the_crop():
    image, label = draw_scene(4, 64, 128)
    result = prepare(Sample("a", label, image), resize_to=(64, 128), crop_to=(32, 64))
    np.testing.assert_array_equal(result.edge, canny_edges(np.array(image[16:48, 32:96])))


def test_edges_of_a_folder_are_resized_and_none_drops_them():
    sample = _sample(edge=True)
    kept = prepare(sample, resize_to=(20, 36), edges="folder")
    assert kept.edge is not None
    np.testing.assert_array_equal(kept.edge, transforms.resize_edge(sample.label, (20, 36)))
    assert prepare(sample, resize_to=(20, 36), edges="none").edge is None


def test_without_a_draw_nothing_is_random():
    _assert_equal(
        prepare(_sample(), resize_to=(40, 72), crop_to=(32, 64), flip=True),
        prepare(_sample(), resize_to=(40, 72), crop_to=(32, 64), flip=False),
    )


def test_a_layout_needs_no_photo():
    sample = prepare(Sample("a", np.zeros((8, 8), np.uint16)), resize_to=(4, 4))
    assert sample.label.shape == (4, 4)
    assert sample.image is None
    assert sample.edge is None


def test_parts_of_different_sizes_are_refused():
    with pytest.raises(UserError, match=r"a: label \(8, 8\) and image \(8, 9\) differ in size"):
        Sample("a", np.zeros((8, 8), np.uint8), np.zeros((8, 9, 3), np.uint8))
    ids = np.zeros((8, 9), np.int32)
    with pytest.raises(UserError, match="differ in size"):
        prepare(Sample("a", np.zeros((8, 8), np.uint8)), ids, resize_to=(4, 4))


def test_a_sample_of_different_sizes_names_all_of_them():
    label = stripes([0], 256, 512)
    said = message(Sample, "layout-00017", label, photo(0, 512, 1024), label)
    assert said == (
        "layout-00017: label (256, 512), image (512, 1024) and edge (256, 512) differ in size"
    )
