"""A user study, as in the paper's Table 1: which of two images of one layout is better?

``write`` makes one page without any trace of which image is whose, and beside it a file that knows.
``read`` puts the answers of participants together with that file. Each participant's browser draws
an order of the layouts and the sides of the images for itself.

Shape legend:
    H, W  height and width
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard

import jinja2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from ecgan import labels
from ecgan.data import datasets
from ecgan.data.packed.sample_sets import SampleDataset
from ecgan.data.transforms import resize_image
from ecgan.errors import UsageError, UserError, shown
from ecgan.evaluation.report.tables import lines_of, plain
from ecgan.labels import LabelSpace
from ecgan.metrics import statistics
from ecgan.reading.documents import checked, read_json
from ecgan.runtime.files import check_out, write_whole
from ecgan.runtime.timing import counted
from ecgan.shards.manifest import read_manifest
from ecgan.shards.records import ShardSample
from ecgan.visualization import colorize, data_url

SCHEMA = 1
QUESTION = "Which image looks more like a photo of this layout?"
_QUALITY = 95
_RESAMPLES = 2000
_FEW = 10  # participants: fewer give a bootstrap little to draw from
Pixels = npt.NDArray[np.uint8]
Pairs = Mapping[str, tuple[ShardSample, ShardSample]]  # of A and B, by layout


class Palette(NamedTuple):
    """Colours by id, (ids, 3), the last one that of unlabelled pixels; and names, where known."""

    colors: Pixels
    names: tuple[str, ...] = ()


class Trial(NamedTuple):
    """A layout and its two images, in the order of the page's data."""

    id: str
    source: str
    layout: Pixels  # (H, W, 3), colours of classes
    legend: list[tuple[str, str]]  # names and colours of the classes in it
    photo: Pixels | None
    first: Pixels
    second: Pixels
    a_is_first: bool


def write(  # noqa: PLR0913  what is compared, and how it is asked
    a: Path,
    b: Path,
    out: Path,
    *,
    num: int = 50,
    seed: int = 0,
    question: str = QUESTION,
    show_reference: bool = False,
    reference: Path | None = None,
) -> int:
    """Write ``study.html`` and ``assignment.json``.

    Args:
        a: a data set of samples, of any format that :func:`sets.read` knows.
        b: another, of the same layouts.
        out: folder.
        num: most trials; of more layouts, evenly spread ones.
        seed: seed of the order in the page's data.
        question: question to the participants.
        show_reference: show the real photo of the layout, too.
        reference: the real data set; default: the one of the samples' recipe.

    Returns:
        Number of trials.

    Raises:
        UserError: the sets share no layout, differ in size or classes, layouts have no photo, or
            ``out`` holds another study or files of somebody else.
    """
    check_out(out, "a study", "study.html", "assignment.json")  # before images are read
    pairs = _pairs(a, b, num)
    photos = _photos(a, b, reference, pairs) if show_reference or reference is not None else {}
    trials = _trials(pairs, _palette(a, b, pairs), photos, seed)
    names = {"a": str(a), "b": str(b)}
    known = [
        [t.id, t.source, t.a_is_first]
        + [hashlib.sha256(image.tobytes()).hexdigest() for image in (t.first, t.second)]
        for t in trials
    ]
    asked = [names, known, question, seed, bool(photos)]
    study = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    assignment = {
        "schema": SCHEMA,
        "study": study,
        **names,
        "question": question,
        "trials": {
            t.id: {"source": t.source, "first": "a" if t.a_is_first else "b"} for t in trials
        },
    }
    _check_study(out / "assignment.json", study)
    write_whole(out / "assignment.json", (json.dumps(assignment, indent=1) + "\n").encode())
    write_whole(out / "study.html", _page(study, question, trials).encode())
    return len(trials)


def _check_study(file: Path, study: str) -> None:
    what, remedy = "an assignment", "give another --out"
    known = read_json(file, what, remedy) if file.exists() else {"study": study}
    if not isinstance(known, dict) or known.get("study") != study:
        raise UserError(
            f"{file.parent}: holds another study, whose answers cannot be counted without "
            f"{file.name}; give another --out"
        )


def _pairs(a: Path, b: Path, num: int) -> Pairs:
    """The first style of layouts that both sets have, by layout."""
    one, other = SampleDataset(a), SampleDataset(b)
    in_one, in_other = _first_styles(one), _first_styles(other)
    shared = sorted(in_one.keys() & in_other.keys())
    if not shared:
        raise UserError(f"{a} and {b} have no layout in common; make both of the same label maps")
    picked = np.linspace(0, len(shared) - 1, min(num, len(shared))).round().astype(int).tolist()
    pairs = {
        source: (one.sample(in_one[source]), other.sample(in_other[source]))
        for source in (shared[index] for index in picked)
    }
    faults = [fault for source, pair in pairs.items() for fault in _pair_faults(source, *pair)]
    if faults:
        raise UserError(f"{a} and {b} cannot be compared", faults)
    return pairs


def _first_styles(data: SampleDataset) -> dict[str, int]:
    """Number of the sample with the lowest style of each layout that was not varied."""
    first: dict[str, tuple[int, int]] = {}
    for index in range(len(data)):
        raw = data.raw(index)
        if not raw.record.get("variation"):
            own = int(raw.record.get("style", 0)), index
            source = str(raw.record.get("source", raw.key))
            first[source] = min(own, first.get(source, own))
    return {source: index for source, (_, index) in first.items()}


def _pair_faults(source: str, one: ShardSample, other: ShardSample) -> list[str]:
    if one.image.shape != other.image.shape or one.label.shape != other.label.shape:
        return [
            f"{source} is {_size(one)} in one and {_size(other)} in the other; participants would "
            "know them by their size"
        ]
    both = (one.label != _unlabelled(one)) & (other.label != _unlabelled(other))  # a filter's holes
    if np.any(one.label[both] != other.label[both]):
        return [f"the layout {source} is another one in each; make both of the same label maps"]
    return []


def _unlabelled(sample: ShardSample) -> int:
    return int(np.iinfo(sample.label.dtype).max)


def _photos(a: Path, b: Path, reference: Path | None, pairs: Pairs) -> dict[str, Pixels]:
    """The real photo of each layout, at the samples' size."""
    root = reference
    for place in (a, b):
        about = read_manifest(place)
        known = None if about is None else about.of_recipe("data", "root")
        if root is None and known:
            root = Path(known)
    if root is None:
        raise UsageError(
            "--show-reference: the samples do not say of which real data set; give --reference"
        )
    folder = datasets.DataFolder(datasets.recognise(root), root)
    splits = folder.splits() or [None]
    found = {item.key: item for split in splits for item in folder.index(split)}
    if missing := [source for source in pairs if source not in found]:
        raise UserError(
            f"{root}: {counted(len(missing), 'layout')} without a photo (first: {missing[0]}); "
            "give the data set they are from with --reference"
        )
    return {
        source: resize_image(datasets.read_image(found[source]), one.image.shape[:2])
        for source, (one, _) in pairs.items()
    }


def _trials(pairs: Pairs, palette: Palette, photos: Mapping[str, Pixels], seed: int) -> list[Trial]:
    # Whoever knows this code and guesses the seed must not know the sides: the pixels of the
    # originals take part, which the page does not hold.
    secret = hashlib.sha256(str(seed).encode())
    for pair in pairs.values():
        for sample in pair:
            secret.update(sample.image.tobytes())
    rng = np.random.default_rng(list(secret.digest()))
    trials: list[Trial] = []
    for source in rng.permutation(list(pairs)).tolist():
        one, other = pairs[source]
        label = np.where(one.label == _unlabelled(one), other.label, one.label)
        a_is_first = bool(rng.integers(2))
        images = (one.image, other.image) if a_is_first else (other.image, one.image)
        layout, legend = colorize(label, palette.colors), _legend(label, palette)
        name, photo = rng.bytes(6).hex(), photos.get(source)
        trials.append(Trial(name, source, layout, legend, photo, *images, a_is_first))
    return trials


def _legend(label: npt.NDArray[Any], palette: Palette) -> list[tuple[str, str]]:
    """Names and colours of the classes in a layout, the largest first."""
    ids, pixels = np.unique(label, return_counts=True)
    ordered = ids[np.argsort(-pixels, kind="stable")].tolist()
    return [
        (palette.names[i], "rgb({},{},{})".format(*palette.colors[i].tolist()))
        for i in ordered
        if i < len(palette.names)
    ]


def _palette(a: Path, b: Path, pairs: Pairs) -> Palette:
    """Colours and names of the classes; where neither set knows them, colours by id."""
    found: list[tuple[LabelSpace, str]] = []
    for place in (a, b):
        about = read_manifest(place)
        if about is not None:
            found.append((about.class_list(place), about.label_space))
        elif (place / "classes.json").is_file():
            found.append((labels.load_label_space(place / "classes.json"), "input"))
    if not found:
        unlabelled = max(_unlabelled(sample) for pair in pairs.values() for sample in pair)
        by_id = [*map(labels.default_color, range(unlabelled)), (0, 0, 0)]
        return Palette(np.array(by_id, np.uint8))
    if len({(space.names, ids) for space, ids in found}) > 1:
        raise UserError(f"{a} and {b} have other classes, or other ids of them")
    space, ids = found[0]
    if ids == "evaluation":
        return Palette(space.evaluation_palette, space.names_for_evaluation)
    return Palette(space.palette, space.names)


def _size(sample: ShardSample) -> str:
    return f"{sample.image.shape[0]} x {sample.image.shape[1]}"


def _page(study: str, question: str, trials: Sequence[Trial]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = resources.files("ecgan.evaluation.report").joinpath("study.html.j2")
    shown = [
        {
            "id": trial.id,
            "layout": data_url(trial.layout, quality=None),
            "legend": trial.legend,
            "photo": None if trial.photo is None else data_url(trial.photo, quality=_QUALITY),
            "images": [data_url(image, quality=_QUALITY) for image in (trial.first, trial.second)],
        }
        for trial in trials
    ]
    height, width = trials[0].first.shape[:2]
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        study=study,
        question=question,
        trials=shown,
        schema=SCHEMA,
        height=height,
        width=width,
        with_photo=trials[0].photo is not None,
    )


# Results

_REMEDY = "it is the assignment.json beside study.html"
_Text = Annotated[str, Field(max_length=1000)]


class _Trial(BaseModel):
    source: str
    first: Literal["a", "b"]


class _Assignment(BaseModel):
    """``assignment.json``."""

    schema_version: Literal[1] = Field(alias="schema")
    study: _Text
    a: _Text
    b: _Text
    trials: Annotated[dict[str, _Trial], Field(min_length=1)]


class _Answers(BaseModel):
    """A file that a participant exported; what fits no trial is listed with all of its kind."""

    schema_version: int = Field(alias="schema")
    study: _Text
    id: _Text = ""
    participant: _Text = ""
    answers: list[Any]


@dataclass(frozen=True)
class Results:
    """Votes of the participants.

    Attributes:
        a: name of one set.
        b: name of the other.
        votes: name of each participant -> votes for ``a`` and for ``b``.
        trials: layouts that somebody answered.
        left: votes for the image that was shown on the left, and votes of which the side is known.
    """

    a: str
    b: str
    votes: Mapping[str, tuple[int, int]]
    trials: int
    left: tuple[int, int]

    @property
    def total(self) -> tuple[int, int]:
        """Votes for ``a`` and for ``b``."""
        return sum(v[0] for v in self.votes.values()), sum(v[1] for v in self.votes.values())

    def to_json(self) -> dict[str, Any]:
        """Shares, intervals and counts; shares are those of ``a``."""
        for_a, for_b = self.total
        n = for_a + for_b
        found = statistics.share(for_a, n)
        between = self._over_participants()
        return {
            "a": self.a,
            "b": self.b,
            "preference": found.value,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "votes": n,
            "trials": self.trials,
            "participants": {name: {"a": v[0], "b": v[1]} for name, v in self.votes.items()},
            "over_participants": between,
            "left": None if self.left[1] == 0 else self.left[0] / self.left[1],
            "notes": self._notes(),
        }

    def _over_participants(self) -> dict[str, float] | None:
        """Interval of the share of ``a`` by a bootstrap over participants; None of one alone."""
        votes = np.asarray([*self.votes.values()])
        if len(votes) < 2:
            return None
        found = statistics.bootstrapped_ratio(
            votes[:, 0], votes.sum(axis=1), [*self.votes], resamples=_RESAMPLES
        )
        return {"low": found.low, "high": found.high}

    def _notes(self) -> list[str]:
        """Reasons to read the intervals with care."""
        if len(self.votes) < 2:
            return ["one participant: nothing is known of how far people differ"]
        notes = [
            "votes of one participant are not independent: read the interval over participants"
        ]
        if len(self.votes) < _FEW:
            notes.append(f"{len(self.votes)} participants: that interval, too, is a rough one")
        left, n = self.left
        if n and statistics.share(left, n).p < 0.01:
            notes.append(f"{100 * left / n:.0f} % chose the left image, whosever it was")
        return notes

    def table(self) -> str:
        """Shares, intervals and counts as text for people."""
        found = self.to_json()
        lines = [
            f"{self.a} was preferred to {self.b} in {100 * found['preference']:.1f} % of "
            f"{counted(found['votes'], 'vote')} (95 % interval {100 * found['low']:.1f} to "
            f"{100 * found['high']:.1f} %, Wilson; p = {found['p']:.3g} for no preference)",
            f"{counted(len(self.votes), 'participant')}, {counted(self.trials, 'layout')}",
        ]
        between = found["over_participants"]
        if between is not None:
            lines.append(
                f"over participants (bootstrap): {100 * between['low']:.1f} to "
                f"{100 * between['high']:.1f} %"
            )
        rows = [("participant", "for a", "for b", "for a, %")]
        rows += [
            (name, str(v[0]), str(v[1]), f"{100 * v[0] / sum(v):.1f}")
            for name, v in self.votes.items()
        ]
        lines = [*plain(lines), *lines_of(rows, markdown=False)]
        return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])]) + "\n"


def read(files: Sequence[Path], assignment: Path) -> Results:
    """Answers of participants, put together.

    A participant is who the page took for one: a random id in the browser's storage, whatever the
    name. A later answer to the same trial takes the place of an earlier one.

    Args:
        files: answers that the page exported, one file for each participant or session.
        assignment: the file beside the page.

    Raises:
        UserError: files that are not of this study, or hold no answers; all of them at once.
    """
    found = read_json(assignment, "an assignment of ecgan report study", _REMEDY)
    place = f"{assignment}: not an assignment of ecgan report study"
    known = checked(_Assignment, found, place, _REMEDY)
    faults: list[str] = []
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    names: dict[str, str] = {}
    for file in files:
        for (participant, name), answer in _answers(file, known, faults):
            names[participant] = name
            key = participant, answer["trial"]
            if key not in answers or answers[key]["time"] <= answer["time"]:
                answers[key] = answer
    if faults:
        raise UserError("answers that cannot be counted", faults)
    if not answers:
        raise UserError("no answers in these files")
    votes: dict[str, Counter[str]] = {}
    sides = [a["choice"] == a["left"] for a in answers.values() if a.get("left") in (1, 2)]
    for (participant, trial), answer in answers.items():
        first = known.trials[trial].first
        chosen = first if answer["choice"] == 1 else {"a": "b", "b": "a"}[first]
        votes.setdefault(participant, Counter())[chosen] += 1
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    votes_by_name = {
        (f"{names[p]} ({p[:8]})" if names[p] in twice else names[p]): (v["a"], v["b"])
        for p, v in sorted(votes.items(), key=lambda pair: names[pair[0]])
    }
    layouts = {trial for _, trial in answers}
    return Results(known.a, known.b, votes_by_name, len(layouts), (sum(sides), len(sides)))


def _answers(
    file: Path, known: "_Assignment", faults: list[str]
) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    """Participant, by id and name, and answer: those that can be counted. Faults are added."""
    try:
        value = read_json(file, "answers that a study exported", "export them again")
        found = checked(_Answers, value, str(file), "not answers that a study exported")
    except UserError as error:
        faults.append(str(error))
        return []
    fault = ""
    if found.schema_version != SCHEMA:
        fault = f"schema {found.schema_version}, this ecgan reads {SCHEMA}"
    elif found.study != known.study:
        fault = f"of study {found.study}, not of {known.study}"
    if fault:
        faults.append(f"{file}: {fault}")
        return []
    good: list[tuple[tuple[str, str], dict[str, Any]]] = []
    for answer in found.answers:
        if _is_answer(answer) and answer["trial"] in known.trials:
            name = found.participant or file.stem
            good.append(((found.id or name, name), answer))
        else:
            faults.append(f"{file}: {shown(answer)}: not an answer to a trial of this study")
    return good


def _is_answer(answer: object) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(answer, dict)
        and isinstance(answer.get("trial"), str)
        and type(answer.get("choice")) is int
        and answer["choice"] in (1, 2)
        and type(answer.get("time")) is int
    )
