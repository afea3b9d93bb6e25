"""One reading for all label maps of a data set: ids, colours or greys; decided before any is used.

Where two readings are possible and differ, none is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ecgan.data.decode import (
    BY_COLOR,
    Encoding,
    accepted_ids,
    class_colors,
    color_text,
    meaning_of_number,
    unknown_fault,
)
from ecgan.data.files.images import Readable
from ecgan.data.files.label_maps import ZERO_IS_WHITE, Form, Histogram
from ecgan.data.files.pairing import count
from ecgan.labels import LabelSpace

MANY = 20  # unknown colours are told one by one up to here
FILTERED = 0.15  # of border pixels; street scenes as drawn have 0.02 to 0.05
_WAY = "data.label_encoding"


class Value(NamedTuple):
    """A value in label files, with the colour that goes with it."""

    form: Form
    number: int  # of a colour with r = g = b that grey; -1 for the others
    color: int  # 0xRRGGBB; of a number without palette the grey; -1 without one

    def __str__(self) -> str:
        return color_text(self.color) if self.form == Form.COLORS else str(self.number)


@dataclass
class Tally:
    """Where a value occurs."""

    pixels: int = 0
    files: int = 0
    first: Readable = field(default_factory=Path)


class LabelDecision(NamedTuple):
    """The reading of all label maps of a data set."""

    encoding: Encoding
    faults: list[str]
    notes: list[str]


@dataclass
class Values:
    """Values of all label maps of a data set.

    Attributes:
        space: class list; None where there is none.
        dataset: directory structure.
    """

    space: LabelSpace | None
    dataset: str
    tallies: dict[Value, Tally] = field(default_factory=dict[Value, Tally])
    forms: dict[Form, list[Readable]] = field(default_factory=dict[Form, list[Readable]])
    inverted: list[Readable] = field(default_factory=list[Readable])
    transparent: int = 0
    borders: int = 0
    between: int = 0

    def add(self, file: Readable, found: Histogram) -> None:
        """Count the values of a file."""
        self.forms.setdefault(found.form, []).append(file)
        self.inverted += [file] if found.mode == ZERO_IS_WHITE else []
        self.transparent += found.transparent
        self.borders += found.borders
        self.between += found.between
        for value, pixels in zip(values_of(found), found.pixels, strict=True):
            tally = self.tallies.setdefault(value, Tally(first=file))
            tally.pixels += pixels
            tally.files += 1

    @property
    def total(self) -> int:
        """Pixels of all files."""
        return self.transparent + sum(tally.pixels for tally in self.tallies.values())

    def meaning(self, value: Value, encoding: Encoding) -> int | None:
        """Input id of a value; None where the reading gives it no meaning."""
        assert self.space is not None
        if encoding in BY_COLOR:
            return class_colors(self.space).get(value.color)
        if value.form == Form.COLORS and encoding == Encoding.INDEX:
            return None
        return meaning_of_number(value.number, self.space, self.dataset)

    def unknown(self, encoding: Encoding) -> list[Value]:
        """Values without a meaning, those of the most pixels first."""
        if encoding == Encoding.NEAREST and class_colors(self._space):
            return []
        found = [value for value in self.tallies if self.meaning(value, encoding) is None]
        return sorted(found, key=lambda value: -self.tallies[value].pixels)

    @property
    def _space(self) -> LabelSpace:
        assert self.space is not None
        return self.space

    # The decision

    def decide(self, asked: Encoding | None, *, is_whole: bool = True) -> LabelDecision:
        """Reading of the whole set, with the faults that forbid its use, and notes.

        Args:
            asked: the user's own choice.
            is_whole: all files were added; a single one may well hold two values only.
        """
        if asked is not None:
            notes = self._nearest_notes() if asked == Encoding.NEAREST else []
            return LabelDecision(asked, self._unknown_faults(asked), notes + self._notes(asked))
        possible = [way for way in self._candidates() if not self.unknown(way)]
        if not possible:
            encoding = self._likeliest()
            return LabelDecision(encoding, self._unknown_faults(encoding), [])
        encoding, *others = possible
        faults = [fault for way in others if (fault := self._difference(encoding, way))]
        faults = faults or self._palette_faults(encoding)
        if is_whole:
            faults = faults or self._two_values_fault(encoding)
        return LabelDecision(encoding, faults, self._notes(encoding))

    def _candidates(self) -> list[Encoding]:
        if self.dataset != "folder":  # the paper's data sets are ids
            return [Encoding.INDEX]
        found = [Encoding.INDEX]
        if Form.COLORS in self.forms:
            # Black alone is no sign of ids in greys
            found = [Encoding.GRAY] if any(value.number > 0 for value in self.tallies) else []
        colors = class_colors(self._space)
        own = {code for code, label in colors.items() if label != self._space.ignore_index}
        # A grey number alone is no sign of colours: the list must give a colour that occurs
        if any(value.color in own for value in self.tallies):
            found.append(Encoding.COLOR)
        return found

    def _likeliest(self) -> Encoding:
        """Reading to word the faults in, where none is possible."""
        grays = [v.number >= 0 for v in self.tallies if v.form == Form.COLORS]
        files = {form: len(found) for form, found in self.forms.items()}
        if 2 * files.get(Form.COLORS, 0) < sum(files.values()) and grays:
            return Encoding.INDEX
        if grays and not all(grays):
            return Encoding.COLOR
        by_number = Encoding.GRAY if grays else Encoding.INDEX
        if grays and not any(value.number > 0 for value in self.tallies):
            return Encoding.COLOR
        if not class_colors(self._space):
            return by_number
        # Of RGB files, colours are the more likely; of numbers only if they fit better
        wrong = self._share(Encoding.COLOR), self._share(by_number)
        is_color = wrong[0] <= wrong[1] if grays else wrong[0] < wrong[1]
        return Encoding.COLOR if is_color else by_number

    def _share(self, encoding: Encoding) -> float:
        """Share of pixels without a meaning."""
        pixels = sum(self.tallies[value].pixels for value in self.unknown(encoding))
        return pixels / max(1, self.total)

    # Faults

    def _difference(self, one: Encoding, other: Encoding) -> str | None:
        """Both readings side by side, where they differ."""
        differing = [
            value
            for value in self.tallies
            if self.meaning(value, one) != self.meaning(value, other)
        ]
        if not differing:
            return None
        shown = [
            f"{self._seen(value)} is {self._name(value, one)} by {_BY[one]}, "
            f"{self._name(value, other)} by {_BY[other]}"
            for value in differing[:8]
        ]
        more = f"; and {len(differing) - 8} more values" if len(differing) > 8 else ""
        return (
            f"the label maps can be read in two ways: {'; '.join(shown)}{more}; say which is right "
            f"with {_WAY}: {one.value} or {other.value}"
        )

    def _palette_faults(self, encoding: Encoding) -> list[str]:
        """Palettes that say that numbers are no ids."""
        if encoding != Encoding.INDEX or self.dataset != "folder":
            return []
        colors: dict[int, dict[int, Value]] = {}
        for value in self.tallies:
            if value.form == Form.PALETTE:
                colors.setdefault(value.number, {}).setdefault(value.color, value)
        for number, found in sorted(colors.items()):
            if len(found) > 1:
                first, second = list(found.values())[:2]
                return [
                    f"the palettes differ: number {number} is {color_text(first.color)} in "
                    f"{self.tallies[first].first} and {color_text(second.color)} in "
                    f"{self.tallies[second].first}, so one number may be two classes; set "
                    f"{_WAY} to index if numbers are ids, or to color, with the colours in the "
                    "class list"
                ]
        known = class_colors(self._space)
        for value in self.tallies:
            label = known.get(value.color, self._space.ignore_index)
            meant = self.meaning(value, encoding)
            if value.form == Form.PALETTE and label not in {self._space.ignore_index, meant}:
                return [
                    f"palette and class list disagree: {self._seen(value)} is "
                    f"{self._name(value, encoding)} by its number, but the colour is that of "
                    f"{self._space.names[label]} (first: {self.tallies[value].first}); set {_WAY} "
                    "to index if numbers are ids, or to color if colours are right"
                ]
        return []

    def _two_values_fault(self, encoding: Encoding) -> list[str]:
        """A foreground that would be unlabelled, as in masks of 0 and 255."""
        space = self._space
        if self.dataset != "folder" or space.file_ids is not None or encoding == Encoding.COLOR:
            return []
        numbers = {value.number for value in self.tallies}
        labels = {self.meaning(value, encoding) for value in self.tallies}
        if len(numbers) != 2 or space.ignore_index not in labels or self.transparent:
            return []
        low, high = sorted(numbers)
        names = space.names if space.num_classes == 2 else ("background", "foreground")
        unlabelled = next(
            v.number for v in self.tallies if self.meaning(v, encoding) == space.ignore_index
        )
        return [
            f"the label maps hold {low} and {high} only, and {unlabelled} is the value of "
            f"unlabelled pixels, so that one class is left; if {high} is a class, give the ids in "
            f'the class list: {{"classes": [{{"id": {low}, "name": "{names[0]}"}}, {{"id": {high}, '
            f'"name": "{names[1]}"}}], "ignore": null}}; if not, set {_WAY}: {encoding.value}'
        ]

    def _unknown_faults(self, encoding: Encoding) -> list[str]:
        space, unknown = self._space, self.unknown(encoding)
        if not unknown:
            return []
        rgb = self.forms.get(Form.COLORS, [])
        numbers = [
            file for form, files in self.forms.items() if form != Form.COLORS for file in files
        ]
        found = f"{count(len(rgb), 'label map')} of RGB colours (first: {rgb[0]})" if rgb else ""
        is_color = encoding in BY_COLOR
        if is_color and not class_colors(space):
            return [
                f"{found or count(len(numbers), 'label map')}, but the class list gives no "
                f'colour; add "color" to each class; the colours found are {self._listed(unknown)}'
            ]
        if rgb and not is_color and any(value.number < 0 for value in unknown):
            return [f"{found}, but {_WAY} is gray: r, g and b differ; set it to color"]
        if is_color and len(unknown) > MANY:
            share = 100 * self._share(Encoding.COLOR)
            files = count(max(self.tallies[value].files for value in unknown), "file")
            first = self.tallies[unknown[0]].first
            return [
                f"{len(unknown)} colours that the class list lacks, {share:.1f} % of all pixels, "
                f"in {files} and more (first: {first}): the label maps were scaled with a filter, "
                f"anti-aliased or saved with loss; export them without, or set {_WAY}: nearest to "
                f"read each as the nearest class's; the most frequent: {self._listed(unknown)}"
            ]
        own = [v for v in unknown if is_color or v.form != Form.COLORS or encoding == Encoding.GRAY]
        renumbering = self._renumbering(encoding) if self.dataset == "folder" else ""
        is_only = len(own) == 1 and not renumbering
        lines = [self._unknown_line(value, encoding, is_only) for value in sorted(own)]
        lines += [renumbering] if renumbering else []
        if is_color and all(_exchanged(v.color) in class_colors(space) for v in unknown):
            lines.append(
                "with red and blue exchanged they are colours of the class list: label maps that "
                "OpenCV wrote from RGB look so; exchange the channels of all of them"
            )
        if rgb and numbers and encoding != Encoding.GRAY:
            lines.append(
                f"{found} beside {count(len(numbers), 'label map')} of numbers (first: "
                f"{numbers[0]}); save all in one form"
            )
        elif rgb and encoding == Encoding.INDEX:
            lines.append(f"{found}, but {_WAY} is index; set it to color or gray, or save ids")
        return lines

    def _unknown_line(self, value: Value, encoding: Encoding, is_only: bool) -> str:
        tally = self.tallies[value]
        found = f"found in {count(tally.files, 'file')} (first: {tally.first})"
        if encoding in BY_COLOR:
            text = unknown_fault(value.color, self._space, self.dataset, colors=True)
            return f"{text}; {found}"
        line = f"label {value.number} {found}, the class list has "
        line += accepted_ids(self._space, self.dataset)
        hint = "; if it marks unlabelled pixels, set it as ignore of the class list"
        if value.number < 0:
            hint = "; if it marks unlabelled pixels, save them as 255"
        return line + hint if self.dataset == "folder" and is_only else line

    def _renumbering(self, encoding: Encoding) -> str:
        """Class list with the numbers of the files, where there are as many as classes."""
        space = self._space
        numbers = sorted({v.number for v in self.tallies} - {*space.ignored})
        if len(numbers) != space.num_classes:  # 255 may be a class after all
            numbers = sorted({v.number for v in self.tallies})
        if encoding in BY_COLOR or len(numbers) != space.num_classes or numbers[0] < 0:
            return ""
        pairs = zip(numbers, space.names, strict=True)
        entries = ", ".join(f'{{"id": {n}, "name": "{name}"}}' for n, name in [*pairs][:4])
        more = ", ..." if len(numbers) > 4 else ""
        return (
            "there are as many numbers as classes; if they stand for them in this order, give them "
            f'as ids in the class list: {{"classes": [{entries}{more}]}}'
        )

    # Notes

    def _notes(self, encoding: Encoding) -> list[str]:
        notes: list[str] = []
        if self.inverted:
            notes.append(
                f"{count(len(self.inverted), 'label map')} of 1 bit (first: {self.inverted[0]}) "
                "stored with 0 for white (TIFF's PhotometricInterpretation 0): read as shown, so "
                "that white is 1; save as PNG what is meant otherwise."
            )
        if encoding == Encoding.GRAY:
            notes.append("Label maps are RGB files with r = g = b: read as ids.")
        elif encoding == Encoding.COLOR and Form.PALETTE in self.forms:
            notes.append("Palette label maps are read by their colours: those of the class list.")
        if encoding in {Encoding.INDEX, Encoding.GRAY} and self.between > FILTERED * self.borders:
            share = 100 * self.between / self.borders
            notes.append(
                f"{share:.0f} % of the pixels along borders have an id between those beside them, "
                "in thin bands: label maps that were scaled with a filter look so; scale them with "
                "nearest neighbour."
            )
        if self.transparent:
            share = 100 * self.transparent / max(1, self.total)
            notes.append(f"Transparent pixels of label maps ({share:.1f} %) are unlabelled.")
        return notes

    def _nearest_notes(self) -> list[str]:
        colors = class_colors(self._space)
        changed = sum(t.pixels for value, t in self.tallies.items() if value.color not in colors)
        return [
            f"{100 * changed / max(1, self.total):.2f} % of all label pixels have another colour "
            "than those of the class list, and are read as the nearest."
        ]

    # Words

    def _seen(self, value: Value) -> str:
        if value.form == Form.PALETTE:
            return f"number {value.number}, palette colour {color_text(value.color)},"
        return f"colour {value}" if value.form == Form.COLORS else f"number {value}"

    def _name(self, value: Value, encoding: Encoding) -> str:
        label = self.meaning(value, encoding)
        if label is None:
            return "nothing"
        space = self._space
        return "unlabelled" if label == space.ignore_index else space.names[label]

    def _listed(self, values: Sequence[Value]) -> str:
        part = 100 / max(1, self.total)
        shown = [
            f"{color_text(value.color)} {part * self.tallies[value].pixels:.1f} %"
            for value in values[:10]
        ]
        return ", ".join(shown) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


_BY: Mapping[Encoding, str] = {
    Encoding.INDEX: "number",
    Encoding.GRAY: "grey value",
    Encoding.COLOR: "colour",
}


def _exchanged(color: int) -> int:
    """A colour with red and blue exchanged."""
    return (color & 255) << 16 | color & 0xFF00 | color >> 16


def _gray_number(color: int) -> int:
    return color & 255 if color == (color & 255) * 0x10101 else -1


def values_of(found: Histogram) -> Iterator[Value]:
    """Values of a file with their colours."""
    for value, color in zip(found.values, found.colors, strict=True):
        if found.form == Form.COLORS:
            yield Value(found.form, _gray_number(value), value)
        elif found.form == Form.PALETTE:
            yield Value(found.form, value, color)
        else:
            yield Value(found.form, value, value * 0x10101 if 0 <= value < 256 else -1)
