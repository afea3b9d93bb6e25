"""A user study, as in the paper's Table 1: which of two images of one layout is better?

``write`` makes one page without any trace of which image is whose, and beside it a file that knows.
``read`` puts the answers of participants together with that file.
"""

import hashlib
import io
import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ecgan import labels
from ecgan.checkpoint import write_whole
from ecgan.data import sets
from ecgan.data.shards import ShardSample
from ecgan.errors import UserError
from ecgan.preview import colorize

SCHEMA = 1
QUESTION = "Which image looks more like a photo of this layout?"
_QUALITY = 95
_RESAMPLES = 2000
_LEVEL_Z = 1.959963984540054  # of a two-sided 95 % interval
Pixels = npt.NDArray[np.uint8]


class Trial(NamedTuple):
    """A layout and its two images, in the order in which they are shown."""

    id: str
    source: str
    layout: Pixels  # (H, W, 3), colours of classes
    first: Pixels
    second: Pixels
    a_is_first: bool


def write(
    a: Path, b: Path, out: Path, *, num: int = 50, seed: int = 0, question: str = QUESTION
) -> int:
    """Write ``study.html`` and ``assignment.json``.

    Args:
        a: a data set of samples of ours.
        b: another, of the same layouts.
        out: folder.
        num: most trials; of more layouts, evenly spread ones.
        seed: of sides and order.
        question: what participants are asked.

    Returns:
        Number of trials.

    Raises:
        UserError: the sets share no layout, or differ in size or classes.
    """
    trials = _trials(a, b, num, np.random.default_rng(seed))
    names = {"a": str(a), "b": str(b)}
    known = [
        [t.id, t.source, t.a_is_first, *(_digest(image) for image in (t.first, t.second))]
        for t in trials
    ]
    study = hashlib.sha256(json.dumps([names, known, question, seed]).encode()).hexdigest()[:16]
    assignment = {
        "schema": SCHEMA,
        "study": study,
        **names,
        "question": question,
        "trials": {
            t.id: {"source": t.source, "first": "a" if t.a_is_first else "b"} for t in trials
        },
    }
    write_whole(out / "study.html", _page(study, question, trials).encode())
    write_whole(out / "assignment.json", (json.dumps(assignment, indent=1) + "\n").encode())
    return len(trials)


def _trials(a: Path, b: Path, num: int, rng: np.random.Generator) -> list[Trial]:
    firsts = [_first_styles(place) for place in (a, b)]
    shared = sorted(firsts[0].keys() & firsts[1].keys())
    if not shared:
        raise UserError(f"{a} and {b} have no layout in common; make both of the same label maps")
    picked = np.linspace(0, len(shared) - 1, min(num, len(shared))).round().astype(int)
    palette = _palette(a, b)
    trials: list[Trial] = []
    for index in rng.permutation(picked).tolist():
        source = shared[index]
        one, other = firsts[0][source], firsts[1][source]
        if one.image.shape != other.image.shape:
            raise UserError(
                f"{a} and {b}: {source} is {_size(one)} in one and {_size(other)} in the other; "
                "participants would know them by their size"
            )
        if not np.array_equal(one.label, other.label):
            raise UserError(
                f"{a} and {b}: the layout {source} is another one in each; make both of the same "
                "label maps, without --vary and --filter"
            )
        a_is_first = bool(rng.integers(2))
        images = (one.image, other.image) if a_is_first else (other.image, one.image)
        name = rng.bytes(6).hex()
        trials.append(Trial(name, source, colorize(one.label, palette), *images, a_is_first))
    return trials


def _first_styles(place: Path) -> dict[str, ShardSample]:
    """The first sample of each layout."""
    found: dict[str, ShardSample] = {}
    for sample in sets.read(place):
        found.setdefault(sample.source, sample)
    return found


def _palette(a: Path, b: Path) -> Pixels:
    """Colours of the classes, which both sets must share."""
    spaces = []
    for place in (a, b):
        about = sets.manifest(place)
        if about is not None:
            space = labels.from_json(about["classes"], f"{place}/manifest.json: classes")
            spaces.append((place, space, about["label_space"]))
    if not spaces:
        raise UserError(
            f"{a}, {b}: neither has a manifest.json of ecgan, so the colours of its classes are "
            "not known; one of them must be made by ecgan"
        )
    if len({(space.names, ids) for _, space, ids in spaces}) > 1:
        raise UserError(f"{a} and {b} have other classes, or other ids of them")
    _, space, ids = spaces[0]
    return space.evaluation_palette if ids == "evaluation" else space.palette


def _digest(image: Pixels) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _size(sample: ShardSample) -> str:
    return f"{sample.image.shape[0]} x {sample.image.shape[1]}"


def _page(study: str, question: str, trials: Sequence[Trial]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = resources.files("ecgan").joinpath("study.html.j2").read_text(encoding="utf-8")
    shown = [
        {
            "id": trial.id,
            "layout": _source(trial.layout, exact=True),
            "images": [_source(trial.first), _source(trial.second)],
        }
        for trial in trials
    ]
    height, width = trials[0].first.shape[:2]
    return environment.from_string(template).render(
        study=study, question=question, trials=shown, schema=SCHEMA, height=height, width=width
    )


def _source(image: Pixels, *, exact: bool = False) -> str:
    """A data URL: both images through the same codec, without any of their own metadata."""
    stream = io.BytesIO()
    picture = Image.fromarray(image)
    if exact:
        picture.save(stream, "PNG", optimize=True)
    else:
        picture.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}"


# Results


@dataclass(frozen=True)
class Results:
    """What participants preferred.

    Attributes:
        a: name of one set.
        b: name of the other.
        votes: of each participant, for ``a`` and for ``b``.
    """

    a: str
    b: str
    votes: Mapping[str, tuple[int, int]]

    @property
    def total(self) -> tuple[int, int]:
        """Votes for ``a`` and for ``b``."""
        return sum(v[0] for v in self.votes.values()), sum(v[1] for v in self.votes.values())

    def to_json(self) -> dict[str, Any]:
        """Shares, intervals and counts; shares are those of ``a``."""
        for_a, for_b = self.total
        n = for_a + for_b
        low, high = wilson(for_a, n)
        between = over_participants([*self.votes.values()])
        return {
            "a": self.a,
            "b": self.b,
            "preference": for_a / n,
            "low": low,
            "high": high,
            "p": binomial_p(for_a, n),
            "votes": n,
            "participants": {name: {"a": v[0], "b": v[1]} for name, v in self.votes.items()},
            "over_participants": None
            if between is None
            else {"low": between[0], "high": between[1]},
        }

    def table(self) -> str:
        """The same in words."""
        found = self.to_json()
        lines = [
            f"{self.a} was preferred to {self.b} in {100 * found['preference']:.1f} % of "
            f"{found['votes']} votes (95 % interval {100 * found['low']:.1f} to "
            f"{100 * found['high']:.1f} %, Wilson; p = {found['p']:.3g} for no preference)"
        ]
        lines += [f"  {name}: {v[0]} for a, {v[1]} for b" for name, v in self.votes.items()]
        between = found["over_participants"]
        if between is None:
            lines.append("one participant: nothing is known of how far people differ")
        else:
            lines.append(
                "votes of one participant are not independent; over participants the interval is "
                f"{100 * between['low']:.1f} to {100 * between['high']:.1f} %"
            )
        return "\n".join(lines) + "\n"


def read(files: Sequence[Path], assignment: Path) -> Results:
    """Answers of participants, put together.

    A participant is who the page took for one: a random id in the browser's storage, whatever the
    name. A later answer to the same trial takes the place of an earlier one.

    Args:
        files: what the page exported, one for each participant or session.
        assignment: the file beside the page.

    Raises:
        UserError: files that are not of this study, or hold no answers; all of them at once.
    """
    known = _json(assignment)
    if (
        not isinstance(known, dict)
        or known.get("schema") != SCHEMA
        or not {"study", "trials", "a", "b"} <= known.keys()
    ):
        raise UserError(f"{assignment}: not an assignment of ecgan report study")
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
    for (participant, trial), answer in answers.items():
        first = known["trials"][trial]["first"]
        chosen = first if answer["choice"] == 1 else {"a": "b", "b": "a"}[first]
        votes.setdefault(participant, Counter())[chosen] += 1
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    shown = {
        (f"{names[p]} ({p[:8]})" if names[p] in twice else names[p]): (v["a"], v["b"])
        for p, v in sorted(votes.items(), key=lambda pair: names[pair[0]])
    }
    return Results(known["a"], known["b"], shown)


def _answers(
    file: Path, known: Mapping[str, Any], faults: list[str]
) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    """Participant, by id and name, and answer: those that can be counted. Faults are added."""
    try:
        found = _json(file)
    except UserError as error:
        faults.append(str(error))
        return []
    if not isinstance(found, dict) or not isinstance(found.get("answers"), list):
        faults.append(f"{file}: not answers that a study exported")
        return []
    if found.get("schema") != SCHEMA:
        faults.append(f"{file}: schema {found.get('schema')}, this ecgan reads {SCHEMA}")
        return []
    if found.get("study") != known["study"]:
        faults.append(f"{file}: of study {found.get('study')}, not of {known['study']}")
        return []
    good: list[tuple[tuple[str, str], dict[str, Any]]] = []
    for answer in found["answers"]:
        if _is_answer(answer) and answer["trial"] in known["trials"]:
            name = found.get("participant") or file.stem
            good.append(((str(found.get("id") or name), str(name)), answer))
        else:
            faults.append(f"{file}: {json.dumps(answer)}: not an answer to a trial of this study")
    return good


def _is_answer(answer: object) -> bool:
    return (
        isinstance(answer, dict)
        and isinstance(answer.get("trial"), str)
        and type(answer.get("choice")) is int
        and answer["choice"] in (1, 2)
        and type(answer.get("time")) is int
    )


def _json(file: Path) -> Any:  # noqa: ANN401  whatever is in it
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not JSON: {error}") from error


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``n`` independent votes (1927)."""
    z = _LEVEL_Z
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def binomial_p(successes: int, n: int) -> float:
    """Exact two-sided p of so uneven a vote where there is no preference."""
    far = max(successes, n - successes)
    tail = sum(math.comb(n, k) for k in range(far, n + 1))
    return min(1.0, 2 * tail / 2**n)


def over_participants(votes: Sequence[tuple[int, int]]) -> tuple[float, float] | None:
    """95 % interval of the share of ``a`` by a bootstrap over participants; None of one alone."""
    if len(votes) < 2:
        return None
    counts = np.asarray(votes, float)
    drawn = np.random.default_rng(0).integers(len(votes), size=(_RESAMPLES, len(votes)))
    sums = counts[drawn].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums.sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
