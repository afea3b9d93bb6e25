"""Demo: toy scenes, training, samples and evaluation once, small. Every step resumes."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ecgan.checkpoint import GENERATOR
from ecgan.demo import toy
from ecgan.evaluation import run as evaluate
from ecgan.evaluation.report.document import Report
from ecgan.generation import run as generate
from ecgan.recipe import load_recipe
from ecgan.runtime.files import check_out
from ecgan.training import run as train

NUM_SCENES, NUM_STYLES = 200, 5


@dataclass(frozen=True)
class DemoResult:
    """Folders, report and times of the demo.

    Attributes:
        run: run folder of the training.
        samples: folder of the generated data set.
        report: folder of the report.
        numbers: the report; None where the training was interrupted, and the same call resumes.
        seconds: duration of each step, by name.
    """

    run: Path
    samples: Path
    report: Path
    numbers: Report | None
    seconds: dict[str, float]


def run(
    out: Path,
    *,
    device: str = "auto",
    overrides: tuple[str, ...] = (),
    num_scenes: int = NUM_SCENES,
    quiet: bool = False,
    say: Callable[[str], object],
) -> DemoResult:
    """Draw toy scenes, train the demo recipe, generate 5 styles of each layout, evaluate them.

    Args:
        out: folder of the demo; finished steps are not repeated.
        device: auto, cpu, cuda or cuda:N.
        overrides: changes of the demo recipe.
        num_scenes: number of toy scenes, a tenth of them for validation.
        quiet: no progress bars.
        say: function that prints one line for each step.

    Raises:
        UserError: ``out`` is not empty and not a demo.
    """
    data, folder = out / "toy", out / "run"
    samples, report = out / "samples", out / "report"
    seconds: dict[str, float] = {}
    check_out(out, "a demo", data.name)
    recipe = load_recipe("demo", (*overrides, f"data.root={json.dumps(str(data))}"))

    with _timed(seconds, "draw"):
        if not (data / "classes.json").is_file():
            say(f"1/4  Drawing {num_scenes} toy street scenes into {data}")
            toy.write_toy(data, num_scenes, 0, height=recipe.data.height, width=recipe.data.width)

    with _timed(seconds, "train"):
        say(f"2/4  Training the demo recipe, {recipe.train.images} images, into {folder}")
        state = train.run(recipe, folder, device=device, quiet=quiet)
    if state == "interrupted":
        return DemoResult(folder, samples, report, None, seconds)

    with _timed(seconds, "augment"):
        say(f"3/4  Generating {NUM_STYLES} styles of each validation layout, into {samples}")
        generate.run(
            generate.Request.of(
                generator=folder / GENERATOR,
                out=samples,
                labels=data / "labels" / "val",
                n_styles=NUM_STYLES,
                device=device,
                quiet=quiet,
            )
        )

    with _timed(seconds, "evaluate"):
        say(f"4/4  Evaluating them against the validation photos, into {report}")
        numbers, _ = evaluate.run(
            evaluate.Request(
                samples=(samples,),
                reference=data,
                split="val",
                out=report,
                device=device,
                quiet=quiet,
            )
        )
    return DemoResult(folder, samples, report, numbers, seconds)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[step] = time.monotonic() - start
