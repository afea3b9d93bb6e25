"""The process of one part: it calls a function, whose figures go to a file, line by line."""

import importlib
import json
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.device.run import Run

OURS = {"ecgan", "ecgan_cli", "tests"}


class Child:
    """What a part is told, and where its figures go.

    Attributes:
        run: what every part is told.
        seconds: its time limit.
        scratch: a folder that is removed at its end.
    """

    def __init__(self, path, scratch, seconds, run):
        self.run, self.seconds, self.scratch = run, seconds, scratch
        self.failures = 0
        self._path = path

    @property
    def device(self):
        """The torch.device."""
        import torch

        return torch.device(self.run.device)

    @property
    def on_cuda(self):
        return self.run.device == "cuda"

    def size(self, small, full):
        """One of two sizes of a case."""
        return small if self.run.small else full

    def figure(self, name, value, unit="", *, at_least=None, at_most=None, note=""):
        """Write a figure, with its target where sizes and device are those of the targets."""
        target = None
        if self.on_cuda and not self.run.small:
            for bound, limit in (("at least", at_least), ("at most", at_most)):
                target = target if limit is None else (bound, limit)
        self.write(
            {"name": name, "value": value, "unit": unit, "target": target, "note": str(note)}
        )

    @contextmanager
    def attempt(self, name):
        """What fails in here is a line, and the part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            self.fail(name, in_words(error))

    def fail(self, name, reason):
        """A line for what was not measured."""
        self.failures += 1
        self.figure(name, None, note=reason)

    def write(self, line):
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def in_words(error):
    """``ValueError: what it says``, its first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'it says nothing'}"[:300]


def main():
    call, path, scratch, seconds, run = sys.argv[1:]
    child = Child(Path(path), Path(scratch), float(seconds), Run(**json.loads(run)))
    module, _, name = call.partition(":")
    try:
        getattr(importlib.import_module(module), name)(child)
        if child.failures:
            child.write({"failure": f"{child.failures} of its lines; the others stand"})
    except ModuleNotFoundError as error:
        traceback.print_exc()
        ours = (error.name or "").partition(".")[0] in OURS
        child.write(
            {"failure": in_words(error)}
            if ours or not error.name
            else {"left out": f"the package {error.name} is not installed"}
        )
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        child.write({"failure": in_words(error)})


if __name__ == "__main__":
    main()
