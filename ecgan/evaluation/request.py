"""Options of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from ecgan.data.datasets import Subset
from ecgan.evaluation.downstream.arms import Arm
from ecgan.recipe import Recipe


@dataclass(frozen=True)
class DownstreamOptions:
    """Options of a downstream experiment.

    Attributes:
        arms: what students learn from, beside a part of the real training pairs.
        parts: parts of the real training pairs.
        curve: further parts, for the worth of more labelled photos.
        unlabelled: folder of photos without labels.
        seeds: number of seeds.
        segmenter: segmenter to fine-tune, by path or name; None: one from scratch.
        unknown_generator: accept samples whose generator's training data is unknown.
    """

    arms: tuple[Arm, ...] = (Arm.of(0), Arm.of("copy-paste"), Arm.of(1), Arm.of("synthetic"))
    parts: tuple[Subset, ...] = (Subset(),)
    curve: tuple[Subset, ...] = ()
    unlabelled: Path | None = None
    seeds: int = 3
    segmenter: str | None = None
    unknown_generator: bool = False


@dataclass(frozen=True)
class Request:
    """Options of an evaluation.

    Attributes:
        samples: data sets of samples, folders or addresses; or runs, from which samples are
            generated first; empty: the newest below ``datasets/``.
        out: folder of the report; None: ``reports/`` and the name of the first data set.
        reference: the real data set; None: the data.root of the samples' recipe.
        recipe: recipe in place of the samples' own.
        overrides: ``section.key=value``, over the samples' recipe; used only without ``recipe``.
        split: split of the reference; None: test, or val where there is no test.
        judge: replaces evaluate.judge.
        force_judge: accept the generator's own label generator as judge, with a warning.
        reference_statistics: npz of pytorch-fid, in place of the reference's own for ``fid``.
        save_statistics: folder for npz files of all sets and of the reference.
        downstream: options of a downstream experiment, if there shall be one.
        n_styles: images of each layout, where a run is given.
        device: auto, cpu, cuda or cuda:N.
        workers: number of workers; default: one for each GPU, or one.
        gpus_per_worker: share of a GPU for each worker.
        ray_address: address of a Ray cluster.
        quiet: no progress bars.
    """

    samples: tuple[str | Path, ...] = ()
    out: Path | None = None
    reference: Path | None = None
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()
    split: str | None = None
    judge: str | None = None
    force_judge: bool = False
    reference_statistics: Path | None = None
    save_statistics: Path | None = None
    downstream: DownstreamOptions | None = None
    n_styles: int = 1
    device: str = "auto"
    workers: int | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    quiet: bool = False
