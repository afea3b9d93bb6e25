"""Label maps in colour, grids of pictures with titles and a legend, data URLs of pictures."""

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Bytes = npt.NDArray[np.uint8]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_GUTTER = 4  # pixels


def colorize(label: npt.NDArray[np.integer], palette: Bytes) -> Bytes:
    """Label map, (H, W), in the colours of :attr:`LabelSpace.palette` -> RGB, (H, W, 3)."""
    return palette[label]


def legend_of(
    labels: Iterable[npt.NDArray[np.integer]], names: Sequence[str], palette: Bytes
) -> list[tuple[str, Bytes]]:
    """Names and colours of the classes that occur in label maps, unlabelled pixels last."""
    found = sorted({int(value) for label in labels for value in np.unique(label)})
    return [(names[i] if i < len(names) else "unlabelled", palette[i]) for i in found]


def data_url(image: Bytes, *, quality: int | None) -> str:
    """Picture as a data URL: JPEG of a quality, or PNG where it is None; no other metadata."""
    stream = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(stream, "PNG", optimize=True)
    else:
        Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}"


def grid(
    rows: Sequence[Sequence[Bytes]],
    titles: Sequence[str],
    *,
    cell_size: tuple[int, int] | None = None,
    legend: Sequence[tuple[str, Bytes]] = (),
) -> Image.Image:
    """Rows of pictures on white, with a title above every column and a legend below all.

    Args:
        rows: pictures, (H, W, 3) or (H, W), as many in a row as there are titles.
        titles: one for each column; shortened where the column is too narrow.
        cell_size: height and width of a cell; default: the first picture's. Pictures of another
            size are resized.
        legend: names with their colours.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"each row must have {len(titles)} pictures, one for each title")
    height, width = cell_size or rows[0][0].shape[:2]
    points = max(11, min(24, width // 12))
    font = ImageFont.load_default(size=points)
    header = 2 * points
    size = _GUTTER + len(titles) * (width + _GUTTER), header + len(rows) * (height + _GUTTER)
    places, legend_height = _places([name for name, _ in legend], font, size[0], points)
    sheet = Image.new("RGB", (size[0], size[1] + legend_height), "white")
    draw = ImageDraw.Draw(sheet)
    for (left, below), (name, color) in zip(places, legend, strict=True):
        top = size[1] + below
        box = left, top, left + points, top + points
        draw.rectangle(box, fill=tuple(color.tolist()), outline="black")
        text = _fitting(name, font, size[0] - left - 2 * points)
        at = left + 1.5 * points, top + points / 2
        draw.text(at, text, fill="black", font=font, anchor="lm")
    for column, title in enumerate(titles):
        left = _GUTTER + column * (width + _GUTTER)
        text = _fitting(title, font, width)
        draw.text((left + width / 2, header / 2), text, fill="black", font=font, anchor="mm")
        for index, row in enumerate(rows):
            top = header + index * (height + _GUTTER)
            sheet.paste(_cell(row[column], height, width), (left, top))
    return sheet


def _places(
    names: Sequence[str], font: Font, width: int, points: int
) -> tuple[list[tuple[int, int]], int]:
    """Left and top of each entry of a legend, in lines of a width, and the height of all."""
    places: list[tuple[int, int]] = []
    left, top = _GUTTER, points // 2
    for name in names:
        wide = min(width, int(font.getlength(name)) + 3 * points)
        if left > _GUTTER and left + wide > width:
            left, top = _GUTTER, top + 3 * points // 2
        places.append((left, top))
        left += wide
    return places, top + 3 * points // 2 if names else 0


def _cell(picture: Bytes, height: int, width: int) -> Image.Image:
    cell = Image.fromarray(picture).convert("RGB")
    return cell if cell.size == (width, height) else cell.resize((width, height))


def _fitting(title: str, font: Font, width: int) -> str:
    """The title, or as much of it as there is room for."""
    if font.getlength(title) <= width:
        return title
    while title and font.getlength(f"{title}…") > width:
        title = title[:-1]
    return f"{title}…"
