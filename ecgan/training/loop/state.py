"""What a training is, and all that it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ecgan.checkpoint import Training, refuse_misfits
from ecgan.checkpoint.tensors import kinds_of
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.models.pretrained.hed import Hed
from ecgan.recipe import Recipe
from ecgan.training import step
from ecgan.training.ema import AveragedGenerator
from ecgan.training.log import Progress
from ecgan.training.loop.data_files import DataFiles
from ecgan.training.objective import Objective
from ecgan.training.validation import Validation


@dataclass(frozen=True)
class Job:
    """A training that passed its checks.

    Attributes:
        recipe: the resolved recipe.
        space: the class list.
        train_set: pairs to train on.
        validation_set: pairs for previews and scores.
        out: run folder.
        device: device of this process.
        init: generator to start from, if any.
        quiet: no progress bar.
        label_cache: results of the label checks, to be kept in the run folder.
        files: the files that it learns from, on the rank that has read them.
        unlabelled: photos without label maps to learn from too, by SHA-256, in order.
        photos_alone: these with the label maps that a segmenter has read, once it has.
    """

    recipe: Recipe
    space: LabelSpace
    train_set: TripleDataset
    validation_set: TripleDataset
    out: Path
    device: torch.device
    init: Path | None
    quiet: bool
    label_cache: LabelCache | None
    files: DataFiles | None
    unlabelled: Mapping[str, Path] = field(default_factory=dict[str, Path])
    photos_alone: TripleDataset | None = None

    @property
    def segmenters(self) -> Path:
        """Cache of the segmenters that are trained for this run."""
        return self.out / "segmenters"


@dataclass
class TrainingState:
    """Everything that a training changes.

    Attributes:
        job: what is trained.
        trained: G and D with their optimisers.
        objective: loss terms, with the memory bank.
        averaged: moving average of G.
        validation: previews and scores of the average.
        hed: HED, if real edges come from it.
        progress: images seen, means of the log and best score.
        notes: messages for the start of the log.
        saved_at: images seen at the checkpoint that was written last; None: none yet.
        unread: images seen before the last step, and that step's values, until they are read.
    """

    job: Job
    trained: step.TrainedNetworks
    objective: Objective
    averaged: AveragedGenerator
    validation: Validation
    hed: Hed | None
    progress: Progress
    notes: list[str] = field(default_factory=list[str])
    saved_at: int | None = None
    unread: tuple[int, step.StepValues] | None = None

    @property
    def saved(self) -> dict[str, torch.nn.Module]:
        """Networks that a checkpoint holds, by name."""
        found = {name: one.network for name, one in self.trained.by_name.items()}
        found |= {"averaged": self.averaged.networks}
        return found if self.objective.bank is None else {**found, "bank": self.objective.bank}

    def refuse_other(self, saved: Training) -> None:
        """Compare a checkpoint with what this training has, before any of it is taken.

        Raises:
            UserError: networks or optimiser states are missing, or of other shapes.
        """
        for name, network in self.saved.items():
            if name not in saved.networks:
                raise UserError(f"{name}.safetensors is missing")
            found, own = kinds_of(saved.networks[name]), kinds_of(network.state_dict())
            refuse_misfits(found, own, f"{name}.safetensors does not fit the recipe")
        for name, one in self.trained.by_name.items():
            if f"{name}_optimizer" not in saved.optimizers:
                raise UserError(f"{name}_optimizer.pt is missing")
            one.refuse_other_optimizer(saved.optimizers[f"{name}_optimizer"], name)
