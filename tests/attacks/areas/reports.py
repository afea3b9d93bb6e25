"""Reports of an evaluation, and the files of a user study, of a stranger."""

import functools
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.attacks.harness import Expect, Try, chosen
from tests.attacks.mutations import (
    NUMBERS,
    PATHS,
    TEXTS,
    TYPES,
    as_folder,
    as_link,
    as_pipe,
    damaged,
    mutated,
    nested,
    places,
    removed,
    replaced,
)
from tests.attacks.world import World

KIND = "reports"
COMMANDS = {
    "show": ("report", "show"),
    "show as Markdown": ("report", "show", "--markdown"),
    "ablation": ("report", "ablation"),
    "ablation as Markdown": ("report", "ablation", "--markdown"),
    "ablation as JSON": ("report", "ablation", "--json"),
}
EVIL = "\x1b[31m\u202e\n| x | [a](javascript:1) <script>`</td><img src=x onerror=a()>&amp;"
ASSIGNMENT = {
    "schema": 1,
    "study": "s",
    "a": "A",
    "b": "B",
    "question": "?",
    "trials": {f"t{i}": {"source": f"x{i}", "first": "ab"[i % 2]} for i in range(4)},
}
ANSWERS = {
    "schema": 1,
    "study": "s",
    "id": "1",
    "participant": "p",
    "answers": [
        {"trial": f"t{i}", "choice": i % 2 + 1, "left": i % 2 + 1, "time": 1} for i in range(4)
    ],
}
Change = Callable[[Path], object]


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """``report show``, ``ablation`` and ``study-results`` on tampered files."""
    report = world.report
    document = json.loads((report / "report.json").read_text())
    for command in COMMANDS:
        yield _report(world, report, command, "as it is", lambda path: None, Expect.TAKEN)
    yield from _values(rng, functools.partial(_report, world, report), document)
    yield from _texts(rng, functools.partial(_report, world, report), document)
    yield from _files(functools.partial(_report, world, report))
    yield from _study(rng)


def _report(
    world: World,
    source: Path,
    command: str,
    name: str,
    change: Change,
    expect: Expect = Expect.EITHER,
) -> Try:
    """A command on a copy of a report, which ``change`` alters."""

    def prepare(folder: Path) -> Sequence[object]:
        own = world.copy(source, folder / "work/report")
        change(own / "report.json")
        return [*COMMANDS[command], "report"]

    check = _steered if "Markdown" in command else _rows
    return Try(KIND, f"{command}: {name}", prepare, expect, check=check)


def _steered(_: Path, output: str) -> Iterable[str]:
    """Elements and links that text of a report made in Markdown."""
    for text in ("<script", "<img", "](javascript"):
        if text in output and not output.startswith("Error"):  # which is for a terminal
            yield f"{text} in Markdown"
    yield from _rows(_, output)


def _rows(_: Path, output: str) -> Iterable[str]:
    """Lines that text of a report made."""
    if any(line.startswith("| x |") for line in output.splitlines()):
        yield "a line of a stranger's"


def _dump(value: object) -> Change:
    return lambda path: path.write_text(json.dumps(value))


def _values(
    rng: random.Random, attack: Callable[..., Try], document: dict[str, Any]
) -> Iterator[Try]:
    """Single values: drawn anywhere, and every field of the report once."""
    for _ in range(60):
        name, other = mutated(document, rng)
        yield attack(rng.choice([*COMMANDS]), name, _dump(other))
    for path in places(document):
        if len(path) == 1:
            yield attack("ablation", f"{path[0]} is missing", _dump(removed(document, path)))
            value = rng.choice((*TYPES, *NUMBERS))
            changed = _dump(replaced(document, path, value))
            yield attack("show", f"{path[0]} = {value!r}", changed)
    for path in chosen([p for p in places(document) if len(p) > 1], rng, 40):
        changed = _dump(replaced(document, path, EVIL))
        where = ".".join(map(str, path))
        yield attack(rng.choice([*COMMANDS]), f"{where} = markup", changed)
    for value in (*PATHS, "/dev/zero", "s3://attacker/set", "https://attacker/x"):
        yield attack("ablation", f"samples = {value!r}", _dump({**document, "samples": value}))


def _keys(document: object, key: str) -> object:
    """A document with another name for the first key of every object."""
    if isinstance(document, list):
        return [_keys(value, key) for value in document]
    if not isinstance(document, dict):
        return document
    items = [(name, _keys(value, key)) for name, value in document.items()]
    return dict([*items[1:], (key, items[0][1])]) if items else {}


def _texts(
    rng: random.Random, attack: Callable[..., Try], document: dict[str, Any]
) -> Iterator[Try]:
    """Whole documents: what is no report, what is too deep, numbers that are none."""
    whole = json.dumps(document)
    number = next(str(m["value"]) for m in document["metrics"].values() if m["value"])
    refused = {
        "nested lists": nested(100_000),
        "nested objects": nested(100_000, dict),
        "nested in the protocol": json.dumps({**document, "protocol": {"a": 0}}).replace(
            '{"a": 0}', '{"a": ' + nested(100_000) + "}"
        ),
        "nothing": "",
        "null": "null",
        "a list": "[]",
        "a number": "7",
        "Infinity": whole.replace(number, "Infinity", 1),
        "1e999": whole.replace(number, "1e999", 1),
        "NaN": whole.replace(number, "NaN", 1),
        "a million digits": whole.replace(number, "9" * 1_000_000, 1),
        "half": whole[: len(whole) // 2],
    }
    for name, text in refused.items():
        for command in chosen([*COMMANDS], rng, 2):
            change = functools.partial(_write, text=text)
            yield attack(command, f"document: {name}", change, Expect.REFUSED)
    either = {
        "a lone surrogate as a class": json.dumps(_keys(document, "\ud800")),
        "markup as keys": json.dumps(_keys(document, EVIL)),
        "a key twice": whole[:-1] + ', "schema": 2, "metrics": {}}',
        "200,000 warnings": json.dumps({**document, "warnings": ["x"] * 200_000}),
        "20,000 classes": json.dumps(
            {**document, "per_class": dict.fromkeys(map(str, range(20_000)), 1)}
        ),
        "a note of megabytes": json.dumps({**document, "notes": ["<b>\x1b[2J" * (1 << 20)]}),
    }
    for name, text in either.items():
        for command in ("show", "show as Markdown", "ablation as Markdown"):
            yield attack(command, f"document: {name}", functools.partial(_write, text=text))
    for seed in range(12):
        draw = random.Random(rng.random())
        yield attack("show", f"damaged {seed}", functools.partial(_damage, rng=draw))


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _damage(path: Path, rng: random.Random) -> None:
    path.write_bytes(damaged(path.read_bytes(), rng)[1])


def _hole(path: Path) -> None:
    os.truncate(path, 40 << 30)


def _files(attack: Callable[..., Try]) -> Iterator[Try]:
    """What is no file, or more than one reads."""
    kinds: dict[str, Change] = {
        "a pipe": as_pipe,
        "a folder": as_folder,
        "40 GB of holes": _hole,
        "/dev/zero": functools.partial(as_link, target="/dev/zero"),
        "a link to itself": functools.partial(as_link, target="report.json"),
        "no permission's file": functools.partial(as_link, target="/proc/self/mem"),
        "gone": Path.unlink,
    }
    for name, change in kinds.items():
        for command in ("show", "ablation"):
            yield attack(command, f"report.json is {name}", change, Expect.REFUSED)


# User studies


def _results(
    name: str,
    files: dict[str, Change],
    expect: Expect = Expect.EITHER,
    options: Sequence[str] = (),
) -> Try:
    """``study-results`` on the files of a study, some of which are changed."""

    def prepare(folder: Path) -> Sequence[object]:
        work = folder / "work"
        (work / "assignment.json").write_text(json.dumps(ASSIGNMENT))
        (work / "one.json").write_text(json.dumps(ANSWERS))
        (work / "two.json").write_text(json.dumps({**ANSWERS, "id": "2", "participant": "q"}))
        for file, change in files.items():
            change(work / file)
        words = ["report", "study-results", "one.json", "two.json"]
        return [*words, "--assignment", "assignment.json", *options]

    return Try(KIND, f"study-results: {name}", prepare, expect, check=_rows)


def _study(rng: random.Random) -> Iterator[Try]:
    for options in ((), ("--json",)):
        yield _results("as it is", {}, Expect.TAKEN, options)
    for file, document in (("assignment.json", ASSIGNMENT), ("one.json", ANSWERS)):
        yield from _study_values(rng, file, document)
        yield from _study_files(file, document)
    many = [{"trial": f"t{i % 4}", "choice": 1, "time": 1} for i in range(200_000)]
    for name, answers in {
        "many answers": many,
        "answers to no trial": [{"trial": EVIL, "choice": 1, "time": 1}] * 1000,
        "answers that are none": [{"trial": "t1", "choice": 0, "time": 1}] * 200_000,
        "one trial twice": ANSWERS["answers"][:1] * 2,
        "answers of no choice": [{"trial": "t1", "choice": "left", "time": 1}],
        "nested answers": [[["x" * 9999] * 99] * 99],
    }.items():
        yield _results(name, {"one.json": _dump({**ANSWERS, "answers": answers})})


def _study_values(rng: random.Random, file: str, document: dict[str, Any]) -> Iterator[Try]:
    for _ in range(25):
        name, other = mutated(document, rng)
        options = rng.choice(((), ("--json",)))
        yield _results(f"{file}: {name}", {file: _dump(other)}, options=options)
    for field in document:
        options = rng.choice(((), ("--json",)))
        changed = _dump({**document, field: EVIL})
        yield _results(f"{file}: {field} = markup", {file: changed}, options=options)
        changed = _dump(removed(document, (field,)))
        yield _results(f"{file}: {field} is missing", {file: changed})


def _study_files(file: str, document: dict[str, Any]) -> Iterator[Try]:
    for text in ("", "[]", nested(100_000), nested(100_000, dict), '{"schema": 1', "\0"):
        change = functools.partial(_write, text=text)
        yield _results(f"{file}: {text[:8]!r}", {file: change}, Expect.REFUSED)
    kinds = {"a pipe": as_pipe, "a folder": as_folder, "40 GB of holes": _hole}
    for name, change in kinds.items():
        yield _results(f"{file} is {name}", {file: change}, Expect.REFUSED)
    for text in TEXTS:
        changed = _dump(_keys(document, text))
        yield _results(f"{file}: keys {text[:20]!r}", {file: changed})
