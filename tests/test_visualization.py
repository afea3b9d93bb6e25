"""Label maps in colour, grids with titles."""

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from ecgan.demo import street, toy
from ecgan.visualization import colorize, data_url, grid, legend_of


def _plain(color, size=(32, 64)):
    return np.full((*size, 3), color, np.uint8)


def test_labels_take_the_colours_of_their_classes():
    label = np.array([[street.SKY, street.CAR], [255, street.ROAD]], np.uint8)
    colours = colorize(label, toy.SPACE.palette)
    assert colours.dtype == np.uint8
    assert colours.tolist() == [
        [[110, 170, 220], [40, 60, 190]],
        [[0, 0, 0], [128, 64, 128]],
    ]


def test_pictures_stand_in_their_cells_on_white():
    rows = [[_plain(10), _plain(60)], [_plain(110), _plain(160)]]
    sheet = np.asarray(grid(rows, ["label", "image"]))
    assert sheet.shape[1] == 3 * 4 + 2 * 64
    header = sheet.shape[0] - 2 * (32 + 4)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = header + i * 36, 4 + j * 68
            np.testing.assert_array_equal(sheet[top : top + 32, left : left + 64], picture)
    assert (sheet[:, :4] == 255).all()
    assert (sheet[header + 32 : header + 36] == 255).all()


def test_titles_are_written_above_their_column():
    plain = np.asarray(grid([[_plain(9), _plain(9)]], ["", ""]))
    titled = np.asarray(grid([[_plain(9), _plain(9)]], ["edge", ""]))
    rows, columns = np.nonzero((plain != titled).any(axis=2))
    assert len(rows) > 20
    assert rows.max() < plain.shape[0] - 36
    assert columns.min() >= 4
    assert columns.max() < 68


def test_a_long_title_does_not_run_into_the_next_column():
    plain = np.asarray(grid([[_plain(9), _plain(9)]], ["", ""]))
    titled = np.asarray(grid([[_plain(9), _plain(9)]], ["a title far too long for it", ""]))
    assert np.nonzero((plain != titled).any(axis=(0, 2)))[0].max() < 70


def test_cells_of_another_size_and_grey_pictures():
    sheet = grid([[_plain(50), np.full((8, 8), 70, np.uint8)]], ["a", "b"], cell_size=(16, 32))
    assert sheet.width == 3 * 4 + 2 * 32
    pixels = np.asarray(sheet)
    assert pixels[-10, 10].tolist() == [50, 50, 50]
    assert pixels[-10, 60].tolist() == [70, 70, 70]


def test_a_legend_names_the_classes_that_occur():
    label = np.array([[street.SKY, 255], [street.ROAD, street.ROAD]], np.uint8)
    names, palette = toy.SPACE.names, toy.SPACE.palette
    legend = legend_of([label, label], names, palette)
    assert [name for name, _ in legend] == ["sky", "road", "unlabelled"]
    plain = np.asarray(grid([[_plain(9)]], ["a"]))
    sheet = np.asarray(grid([[_plain(9)]], ["a"], legend=legend))
    np.testing.assert_array_equal(sheet[: len(plain)], plain)
    below = sheet[len(plain) :]
    for _, color in legend:  # a box of each colour
        assert (below == color).all(-1).sum() > 50
    assert below.shape[0] > 2 * 11, "names that do not fit side by side are below each other"


def test_a_row_with_a_missing_picture_is_refused():
    with pytest.raises(ValueError, match="2 pictures"):
        grid([[_plain(1)]], ["a", "b"])


def test_a_data_url_holds_the_picture_itself():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    head, _, body = data_url(image, quality=None).partition(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(b64decode(body)))) == image).all()
    assert data_url(image, quality=88).startswith("data:image/jpeg;base64,")
