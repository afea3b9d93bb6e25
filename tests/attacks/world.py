"""What attacks start from: whole inputs, made once, copied for each try."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

_TRAIN = {
    "model.width": 4,
    "model.label_generator": "off",
    "train.images": 8,
    "train.batch": 2,
    "train.checkpoint_every": 4,
    "train.preview_every": 8,
    "data.height": 32,
    "data.width": 64,
}


class World:
    """Whole inputs below a folder; each is made when it is first asked for.

    An area asks for them while it lists its tries, so that no try has to make them.

    Args:
        root: folder, empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def copy(self, source: Path, target: Path) -> Path:
        """Copy a file or folder of this world into a try."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            return Path(shutil.copytree(source, target, symlinks=True))
        return Path(shutil.copy2(source, target))

    @cached_property
    def data(self) -> Path:
        """images/, labels/ and classes.json: 10 pairs to train on, 2 held out."""
        return self._made("data", "write_pairs(path, 10, 2)")

    @cached_property
    def generator(self) -> Path:
        """A generator of random weights of the five classes of the data."""
        self.root.joinpath("generator").mkdir(exist_ok=True)
        data = "{'classes': list(NAMES)}"
        return self._made("generator/generator.safetensors", f"make_generator(path, data={data})")

    @cached_property
    def segmenter(self) -> Path:
        """A SegFormer of random weights, as a folder."""
        return self._made("segmenter", "save_segmenter(path)")

    @cached_property
    def run(self) -> Path:
        """A finished training of 8 images with two checkpoints."""
        words = [word for key, value in _TRAIN.items() for word in ("--set", f"{key}={value}")]
        return self._command(
            "run",
            lambda out: ["train", "--recipe", "demo", "--data", self.data, "--out", out, *words],
        )

    def samples(self, form: str) -> Path:
        """A finished data set of 8 samples in 2 shards: webdataset, parquet or folder."""
        return self._command(
            f"samples-{form}",
            lambda out: [
                *(
                    "augment",
                    "--checkpoint",
                    self.generator,
                    "--labels",
                    self.data / "labels/train",
                ),
                *("--n-styles", 1, "--samples-per-shard", 5, "--format", form, "--out", out),
            ],
        )

    @cached_property
    def report(self) -> Path:
        """The folder of an evaluation: report.json and the page."""
        samples, segmenter = self.samples("webdataset"), self.segmenter
        return self._command(
            "report",
            lambda out: [
                *("evaluate", "--samples", samples, "--reference", self.data, "--split", "train"),
                *("--set", f"evaluate.judge={segmenter}", "--out", out),
            ],
        )

    def _made(self, name: str, call: str) -> Path:
        """Run a helper of the tests in another process: this one has to stay without threads."""
        path = self.root / name
        if not path.exists():
            code = (
                "from pathlib import Path; from tests.helpers.tiny import *\n"
                "from tests.helpers.tiny import NAMES; from tests.helpers.segmenters import *\n"
                f"path = Path({str(path)!r}); {call}"
            )
            _checked([sys.executable, "-c", code])
        return path

    def _command(self, name: str, words: Callable[[Path], list[object]]) -> Path:
        path = self.root / name
        if not path.exists():
            tail = [str(word) for word in words(path)]
            _checked([sys.executable, "-m", "ecgan_cli", *tail, "--device", "cpu", "-q"])
        return path


def _checked(words: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file in place; what ``change`` returns takes its place, unless None."""
    document = json.loads(path.read_text())
    changed = change(document)
    path.write_text(json.dumps(document if changed is None else changed))
