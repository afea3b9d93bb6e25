"""Generator files, run folders and training state of a stranger."""

import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from tests.attacks import mutations
from tests.attacks.harness import Expect, Try, chosen
from tests.attacks.world import World

Change = Callable[[Path], object]
_FIELDS = 60  # tries at the metadata of a generator, and as many at state.json


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """Generator files in ``augment`` and ``--init``, run folders in ``train``."""
    generator, run, data = world.generator, world.run, world.data
    yield from _generators(rng, world, generator, data)
    yield from _runs(rng, world, run, data)


def _generators(rng: random.Random, world: World, generator: Path, data: Path) -> Iterator[Try]:
    def augmented(name: str, change: Change, expect: Expect = Expect.REFUSED) -> Try:
        def prepare(folder: Path) -> Sequence[object]:
            path = world.copy(generator, folder / "work/generator.safetensors")
            change(path)
            labels = data / "labels/val"
            options = ("--device", "cpu", "-q", "--out", "out")
            return ["augment", "--checkpoint", path.name, "--labels", labels, *options]

        return Try("checkpoints", f"generator: {name}", prepare, expect)

    yield augmented("whole", lambda path: None, Expect.TAKEN)
    yield augmented("truncated", lambda path: os.truncate(path, path.stat().st_size // 2))
    yield augmented("empty", lambda path: os.truncate(path, 0))
    yield augmented("pickle", lambda path: torch.save({"a": 1}, path))
    yield augmented("header of a terabyte", lambda path: path.write_bytes(b"\0" * 5 + b"\1\0\0{"))
    for name, change in _spoilt().items():
        yield augmented(f"weights {name}", _with_tensors(change))
    for text in ("", "[]", "null", "{", "1", mutations.nested(100_000), "\x1b[2J"):
        yield augmented(f"metadata {text[:8]!r}", lambda path, t=text: _with_metadata(path, t))
    document = json.loads(_metadata(generator))
    for path, value in _drawn(rng, document, _FIELDS):
        yield augmented(
            f"metadata {path} = {value!r:.40}",
            lambda file, p=path, v=value: _with_metadata(
                file, json.dumps(mutations.replaced(document, p, v))
            ),
            Expect.EITHER,
        )
    for key, values in {
        "width": (2_000, 20_000, 10**9, 10**12),
        "height": (32_768, 2**30, 10**12),
    }.items():
        section = "model" if key == "width" else "data"
        for value in values:
            changed = mutations.replaced(document, ("recipe", section, key), value)
            yield augmented(
                f"{key} {value}", lambda file, c=changed: _with_metadata(file, json.dumps(c))
            )
    many = {"classes": [{"name": f"c{i}"} for i in range(60_000)], "ignore": None}
    changed = json.dumps(mutations.replaced(document, ("classes",), many))
    yield augmented("60,000 classes", lambda file: _with_metadata(file, changed))


def _spoilt() -> dict[str, Callable[[dict[str, torch.Tensor]], object]]:
    """Changes of a generator's tensors, none of which makes a picture."""

    def fill(value: float, ending: str) -> Callable[[dict[str, torch.Tensor]], object]:
        return lambda tensors: [t.fill_(value) for n, t in tensors.items() if n.endswith(ending)]

    return {
        "NaN": fill(float("nan"), "weight"),
        "infinite": fill(float("inf"), "bias"),
        "zero": lambda tensors: [t.zero_() for t in tensors.values() if t.is_floating_point()],
        "of 1e38": lambda tensors: [t.fill_(1e38) for n, t in tensors.items() if "branch" in n],
        "variance below zero": fill(-1.0, "running_var"),
        "variance NaN": fill(float("nan"), "running_var"),
        "complex": lambda tensors: tensors.update(
            {n: t.to(torch.complex64) for n, t in [*tensors.items()][:1]}
        ),
        "missing": lambda tensors: tensors.pop(next(iter(tensors))),
        "further": lambda tensors: tensors.update({"../../x": torch.zeros(1)}),
        "of another shape": lambda tensors: tensors.update(
            {n: t[..., :1].clone() for n, t in tensors.items() if t.dim() == 4}
        ),
        "prior of no axes": lambda tensors: tensors.update({"style_prior.axes": torch.zeros(())}),
        "prior of many axes": lambda tensors: tensors.update(
            {"style_prior.axes": torch.zeros(100_000, 1)}
        ),
    }


def _runs(rng: random.Random, world: World, run: Path, data: Path) -> Iterator[Try]:
    def resumed(name: str, change: Change, expect: Expect, *, first: bool = True) -> Try:
        def prepare(folder: Path) -> Sequence[object]:
            out = world.copy(run, folder / "work/out")
            (out / "generator.safetensors").unlink()
            change(max((out / "checkpoints").iterdir()) if first else out)
            options = ("--device", "cpu", "-q", "--out", "out")
            return ["train", "--recipe", "out/recipe.yaml", "--data", data, *options]

        return Try("checkpoints", f"run: {name}", prepare, expect)

    yield resumed("whole", lambda folder: None, Expect.TAKEN)
    newest = max((run / "checkpoints").iterdir())
    for file in sorted(newest.iterdir()):
        for name, damage in _DAMAGE.items():
            yield resumed(
                f"newest {file.name} {name}",
                lambda folder, f=file.name, d=damage: d(folder / f),
                Expect.TAKEN,
            )
    state = json.loads((newest / "state.json").read_text())
    for path, value in _drawn(rng, state, _FIELDS):
        yield resumed(
            f"state.json {path} = {value!r:.40}",
            lambda folder, p=path, v=value: (folder / "state.json").write_text(
                json.dumps(mutations.replaced(state, p, v))
            ),
            Expect.EITHER,
        )
    yield from _odd_files(resumed)


def _odd_files(resumed: Callable[..., Try]) -> Iterator[Try]:
    """Links and damaged files in a run folder."""
    for name in (".lock", ".lock.guard", "metrics.jsonl", "tensorboard", "checkpoints/000000009"):
        yield resumed(
            f"{name} leads elsewhere",
            lambda out, n=name: _link(out / n, out.parents[1] / "victim"),
            Expect.REFUSED,
            first=False,
        )
    for name in ("classes.json", "data-files.json", "metrics.jsonl", "recipe.yaml"):
        for text in ("", "[]", mutations.nested(100_000), "\0", '{"images": "x"}'):
            yield resumed(
                f"{name} {text[:8]!r}",
                lambda out, n=name, t=text: (out / n).write_text(t),
                Expect.EITHER,
                first=False,
            )


def _bomb(path: Path) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b"\0" * 100_000_000)


class _Code:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ../executed",)


_DAMAGE: dict[str, Change] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": Path.unlink,
    "with code": lambda path: torch.save(_Code(), path),
    "a bomb": _bomb,
    "a pipe": mutations.as_pipe,
}


def _link(path: Path, target: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name("moved"))
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _drawn(rng: random.Random, document: object, count: int) -> list[tuple[tuple, object]]:
    """Places of a document, each with a value that does not belong there."""
    values = [*mutations.TYPES, *mutations.NUMBERS, *mutations.TEXTS, *mutations.PATHS]
    places = [path for path in mutations.places(document) if path]
    return [(path, rng.choice(values)) for path in chosen(places, rng, count)]


def _metadata(path: Path) -> str:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()["ecgan"]


def _with_metadata(path: Path, text: str) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, {"ecgan": text})


def _with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def apply(path: Path) -> None:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        change(tensors)
        safetensors.torch.save_file(tensors, path, metadata)

    return apply
