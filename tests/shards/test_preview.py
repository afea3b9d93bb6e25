"""Preview of a data set."""

import numpy as np

from ecgan.shards.finalize import preview
from ecgan.shards.records import ShardSample


def test_each_image_is_beside_its_own_label():
    """A varied layout has a row for each of its forms."""
    palette = np.array([[0, 0, 255], [255, 0, 0], [0, 255, 0]], np.uint8)

    def sample(source, style, number, image):
        return ShardSample(
            f"{source}-{style}",
            source,
            style,
            np.full((20, 40, 3), image, np.uint8),
            np.full((20, 40), number, np.uint8),
            np.full((20, 40), 77, np.uint8),
        )

    samples = [
        sample("a", 0, 0, 50), sample("a", 1, 0, 100), sample("a", 2, 1, 150),
        sample("a", 3, 1, 200), sample("b", 0, 2, 250),
    ]  # fmt: skip
    sheet = np.asarray(preview(samples, ["sky", "car", "road"], palette, (20, 40)))
    column = sheet[:, sheet.shape[1] // 8]  # of the label maps
    order = [tuple(c) for c in palette.tolist()]
    seen = [tuple(pixel) for pixel in column.tolist() if tuple(pixel) in order]
    assert [*dict.fromkeys(seen)] == order
    for number, images in ((0, (50, 100)), (1, (150, 200)), (2, (250,))):
        rows = (column == palette[number]).all(-1)
        there = {
            value for value in (50, 100, 150, 200, 250) if (sheet[rows] == value).all(-1).any()
        }
        assert there == {*images}
