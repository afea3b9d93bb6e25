"""Photos of a data set together: which way up, and which values are black and white."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ecgan.data.decode import Encoding
from ecgan.data.files.images import Depth, Orientation, PhotoFile, Readable
from ecgan.data.files.pairing import count


@dataclass(frozen=True)
class Reading:
    """How the files of a data set are read.

    Attributes:
        encoding: what the values of label maps stand for; None: decided when they are checked.
        orientation: whether photos are turned as EXIF says; auto: their label maps' sizes decide.
        levels: values of black and white in photos of more than 8 bits; None: all of their range.
    """

    encoding: Encoding | None = None
    orientation: Orientation = "auto"
    levels: tuple[float, float] | None = None


@dataclass
class Photos:
    """Photos of a data set: which way up, and how deep.

    Attributes:
        asked: the user's own choice.
    """

    asked: Reading
    turned: list[tuple[Readable, int]] = field(default_factory=list[tuple[Readable, int]])
    fits_upright: list[Readable] = field(default_factory=list[Readable])
    fits_stored: list[Readable] = field(default_factory=list[Readable])
    deep: dict[Depth, list[tuple[float, float, Readable]]] = field(
        default_factory=dict[Depth, "list[tuple[float, float, Readable]]"]
    )

    def add(self, file: Readable, photo: PhotoFile, label: tuple[int, int]) -> None:
        """Count a photo beside its label map's height and width."""
        if photo.orientation != 1:
            self.turned.append((file, photo.orientation))
            if photo.upright != photo.stored:
                if label == photo.upright:
                    self.fits_upright.append(file)
                elif label == photo.stored:
                    self.fits_stored.append(file)
        if photo.depth != Depth.BYTES:
            self.deep.setdefault(photo.depth, []).append((photo.low, photo.high, file))

    def orientation(self) -> tuple[Orientation, list[str], list[str]]:
        """Whether photos are turned, with faults and notes."""
        if not self.turned:
            return self.asked.orientation, [], []
        number = f"{count(len(self.turned), 'photo')} with an EXIF orientation (first: "
        number += f"{self.turned[0][0]}, orientation {self.turned[0][1]})"
        if self.asked.orientation != "auto":
            way = "turned" if self.asked.orientation == "apply" else "taken as stored"
            return self.asked.orientation, [], [f"{number}: {way}, as data.orientation says."]
        if self.fits_upright and self.fits_stored:
            fault = (
                f"{number}: some label maps fit the upright photo (first: {self.fits_upright[0]}), "
                f"others the stored pixels (first: {self.fits_stored[0]}); set data.orientation to "
                "apply or stored, and turn the label maps that do not fit"
            )
            return "auto", [fault], []
        if self.fits_stored:
            return "stored", [], [f"{number}: label maps fit the stored pixels, so none is turned."]
        note = f"{number}: turned upright, as viewers show them"
        if not self.fits_upright:
            note += "; if labels were drawn on the stored pixels, set data.orientation: stored"
        return "apply", [], [f"{note}."]

    def levels(self) -> tuple[tuple[float, float] | None, list[str], list[str]]:
        """Values of black and white in deep photos, with faults and notes."""
        if not self.deep:
            return self.asked.levels, [], []
        ranges = [entry for found in self.deep.values() for entry in found]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        said = f"{count(len(ranges), 'photo')} of {' and '.join(self.deep)}, values {low:g} to "
        said += f"{high:g} (first: {ranges[0][2]})"
        if self.asked.levels is not None:
            levels = f"{self.asked.levels[0]:g} to {self.asked.levels[1]:g}"
            return self.asked.levels, [], [f"{said}: scaled from {levels}."]
        found = self._range(ranges)
        if isinstance(found, str):
            remedy = "set data.photo_levels to the values of black and white, such as [0, 4095]"
            return None, [f"{said}: {found}; {remedy}"], []
        return (0.0, found), [], [f"{said}: scaled from 0 to {found:g}."]

    def _range(self, ranges: Sequence[tuple[float, float, Readable]]) -> float | str:
        """The value of white, or why there is none that fits all."""
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        if len(self.deep) > 1:
            return "photos of one data set must be of one depth"
        if low < 0 or high > 65535:
            return "they fit neither 0 to 1 nor 16 bits"
        if Depth.FLOATS in self.deep:
            return 1.0 if 0 < high <= 1 else "floats above 1 have no known white"
        tops = [_top(r[1]) for r in ranges]
        low_tops = sum(top < 65535 for top in tops)
        if max(tops) == 65535 and 4 * low_tops > len(tops):
            brightest = max(ranges, key=lambda r: r[1])
            return (
                f"{low_tops} end below 8192 and would be nearly black, others do not (such as "
                f"{brightest[2]})"
            )
        return float(max(tops))


def _top(high: float) -> int:
    """Largest value of the depth that a photo's values show: of 8 to 13, or 16 bits."""
    return next((top for top in (255, 1023, 4095, 8191) if high <= top), 65535)
