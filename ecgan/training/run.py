"""Train ECGAN: ``run`` checks, builds and resumes; ``_fit`` is the loop.

    checks --> label generator --> players --> [batch --> step --> average --> log, preview,
                                                score, checkpoint] ... --> generator.safetensors

Images seen are the clock, positions in the row of images are the seed: the same command again goes
on where the newest checkpoint is, and ends with the same bits as a run that was never cut (on CPU).
"""

import json
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from ecgan import checkpoint, labels
from ecgan.checkpoint import InheritedTraining
from ecgan.data import checks, datasets
from ecgan.data.label_cache import LabelCache
from ecgan.data.loader import Batch, TripleDataset, batches, to_device, to_images
from ecgan.data.transforms import Edges
from ecgan.errors import UsageError, UserError, first_line
from ecgan.labels import LabelSpace
from ecgan.models.encoder import BLOCK_WIDTHS
from ecgan.models.layers import condition
from ecgan.recipe import Recipe, label_space
from ecgan.runtime import distributed
from ecgan.runtime.device import choose_device, compile_failures
from ecgan.runtime.files import held_lock, write_whole, writing
from ecgan.runtime.storage import Folder
from ecgan.runtime.timing import span
from ecgan.training import networks
from ecgan.training import step as players
from ecgan.training.ema import AveragedGenerator
from ecgan.training.log import Journal, Means
from ecgan.training.objective import Inputs, Objective
from ecgan.training.step import NonFiniteError, Player, Players, StepValues
from ecgan.training.warm_start import transfer

Outcome = Literal["done", "interrupted"]

_LOCK, _CLASSES = ".lock", "classes.json"
_WARM_UP_STEPS = 2  # of a profile

Sets = tuple[TripleDataset, TripleDataset]
"""What a run trains on, and what it is looked at with."""


def run(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    init: Path | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train, or go on training, the run in ``out``.

    Args:
        recipe: what to do.
        out: run folder; made if it is not there.
        device: auto, cpu, cuda or cuda:N.
        init: a generator to start from.
        quiet: no progress bar.

    Returns:
        ``interrupted`` after Ctrl-C or SIGTERM; a checkpoint is written then.

    Raises:
        UserError: whatever the user can mend, before anything is computed where possible.
    """
    own_device = choose_device(device, current=True)
    recipe = recipe.resolved(own_device.type)
    with distributed.process_group(own_device):
        place = Place(out, own_device, init, quiet)
        with _Signals() as signals:
            try:
                cache = LabelCache(Folder(out))
                space, sets = check(recipe, out, cache=cache, progress=place.shows_progress)
                with _only_writer(out):
                    if distributed.is_first():
                        cache.save()
                    return Training(recipe, space, sets, place).run(signals)
            except KeyboardInterrupt:  # before the first step, or a second one after that
                return "interrupted"


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Keep a second training out of the run folder; rank 0 speaks for all."""
    with ExitStack() as stack:
        if distributed.is_first():
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held_lock(out / _LOCK, str(out)))
        yield


def _refuse_other_classes(out: Path, space: LabelSpace) -> None:
    """A run goes on with its own class list: the recipe alone may not name it."""
    path = out / _CLASSES
    if not path.is_file():
        return
    before = labels.load_label_space(path)
    if before != space:
        raise UserError(
            f"{out} was trained on other classes ({_listed(before)}; now {_listed(space)}); use "
            "a new --out, and --init to start from its generator"
        )


def _listed(space: LabelSpace) -> str:
    return f"{space.num_classes}: {', '.join(space.names[:5])}{', ...' * (space.num_classes > 5)}"


def check(
    recipe: Recipe,
    out: Path,
    *,
    num_processes: int | None = None,
    read_files: bool = True,
    cache: LabelCache | None = None,
    progress: bool = False,
) -> tuple[LabelSpace, Sets]:
    """Everything that can be refused before networks are built.

    Args:
        recipe: what to do.
        out: run folder.
        num_processes: ranks; default: those that are there.
        read_files: read every label and photo once.
        cache: earlier label checks of this run.
        progress: show a bar meanwhile.

    Raises:
        UserError: see there.
    """
    check_folder(out, recipe)
    world = num_processes or distributed.world_size()
    if recipe.train.batch % (world * recipe.train.accumulate):
        raise UserError(
            f"train.batch ({recipe.train.batch}) must divide by ranks x accumulate "
            f"({world} x {recipe.train.accumulate})"
        )
    if not recipe.parts().terms:
        raise UserError(
            "the recipe sums no term of Eq. 10: give one of losses.adversarial, "
            "losses.feature_matching, losses.perceptual, ... a weight above 0"
        )
    space = label_space(recipe.data)
    _refuse_other_classes(out, space)
    sets = build_sets(recipe, space)
    if read_files and distributed.rank() == 0:
        items = {item.label: item for part in sets for item in part.items}
        checks.check_labels(
            list(items.values()), space, recipe.data.dataset, cache=cache, progress=progress
        )
    distributed.barrier()
    return space, sets


def check_folder(out: Path, recipe: Recipe) -> None:
    """Refuse a folder that is not ours, or is another recipe's run."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out}: a file; give a folder")
    if (out / "recipe.yaml").is_file():
        checkpoint.refuse_another_recipe(out, recipe)
    elif any(not path.name.startswith(".") for path in out.iterdir()):
        raise UsageError(
            f"--out {out}: not empty, and not a run of ecgan train (no recipe.yaml in it); "
            "give another folder"
        )


def build_sets(recipe: Recipe, space: LabelSpace) -> Sets:
    """The data of a run."""
    data = recipe.data
    if data.root is None:
        raise UsageError("data.root is not set: give the folder of the data set with --data DIR")
    # HED looks at the crop on the device; without Ge nobody looks at edges
    edges: Edges = "none" if data.edges == "hed" or not recipe.model.edge_generator else data.edges
    parts: list[TripleDataset] = []
    for split in (data.split, "val"):
        items = datasets.items_for(
            data.dataset,
            Path(data.root),
            split,
            train_split=data.split,
            fraction=data.fraction,
            instances=data.instances,
            edges_folder=edges == "folder",
        )
        part = TripleDataset(
            items,
            space,
            data.dataset,
            height=data.height,
            width=data.width,
            resize_to=data.resize_to,
            flip=data.flip,
            train=split == data.split,
            seed=recipe.train.seed,
            edges=edges,
            boundary=data.instances,
        )
        parts.append(part)
    return parts[0], parts[1]


@dataclass(frozen=True)
class Place:
    """Where a run happens."""

    out: Path
    device: torch.device
    init: Path | None
    quiet: bool

    @property
    def shows_progress(self) -> bool:
        """Whether there is somebody to see bars."""
        return not self.quiet and sys.stderr.isatty() and distributed.rank() == 0

    @property
    def segmenters(self) -> Path:
        """Cache of segmenters trained here."""
        return self.out / "segmenters"


@dataclass
class _Progress:
    """How far the training is, with what a checkpoint holds beside the networks."""

    images_seen: int = 0
    means: Means = field(default_factory=Means)
    best: dict[str, float] | None = None  # images and value of the best score
    init: str = ""  # SHA-256 of the generator that it started from
    inherited: list[InheritedTraining] = field(default_factory=list[InheritedTraining])

    def to_json(self) -> dict[str, Any]:
        """All but images_seen, which names the checkpoint."""
        means = {"sums": self.means.sums, "count": self.means.count}
        return {
            "means": means,
            "best": self.best,
            "init": self.init,
            "inherited": [one.model_dump() for one in self.inherited],
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "_Progress":
        """What ``to_json`` gave."""
        init = state["init"]
        # A checkpoint of an earlier version does not say what that one saw
        unknown = [{"sha256": init, "classes": [], "keys": []}] if init else []
        means = Means(**state["means"])
        inherited = [InheritedTraining(**one) for one in state.get("inherited", unknown)]
        return cls(state["images_seen"], means, state["best"], init, inherited)


class Training:
    """One run: its networks and data, and the loop over them."""

    def __init__(
        self,
        recipe: Recipe,
        space: LabelSpace,
        sets: Sets,
        place: Place,
        *,
        for_profile: bool = False,
    ) -> None:
        self.recipe, self.space, self.place = recipe, space, place
        self.train_set, self.validation_set = sets
        self.progress = _Progress()
        self._unread: tuple[int, StepValues] | None = None  # and images seen before that step
        device = place.device
        # A file that is not there is refused before the label generator is trained.
        perceptual_network = networks.perceptual_network(recipe, device)
        self.hed = networks.hed(recipe, device)
        source = checkpoint.load_generator(place.init) if place.init is not None else None
        if distributed.rank() == 0:
            classes = json.dumps(space.to_json(), indent=1).encode()
            write_whole(place.out / _CLASSES, classes)
            write_whole(place.out / "recipe.yaml", recipe.to_yaml().encode())
        self.objective = Objective(
            recipe,
            space,
            device,
            networks.untrained_label_generator(recipe, space, device)
            if for_profile
            else networks.label_generator(
                recipe,
                space,
                self.train_set,
                cache=place.segmenters,
                device=device,
                progress=place.shows_progress,
            ),
            perceptual_network,
            players.build_bank(recipe, space, device),
        )
        self.players: Players = players.build(recipe, space, device)
        self.averaged = AveragedGenerator(
            recipe,
            space,
            self.train_set,
            self.validation_set,
            device,
            self.objective.label_generator,
        )
        self.notes: list[str] = []
        if source is not None and place.init is not None:
            side = self.players.side
            taken = transfer(side.generator, side.style_encoder, recipe, space, source)
            self.notes = [f"--init {place.init}", *taken.lines()]
            if distributed.is_first():
                write_whole(place.out / "init.txt", taken.listing().encode())
            self.progress.init = source.sha256
            self.progress.inherited = checkpoint.inheritance(place.init)
        self.averaged.start(self.players.side)

    def run(self, signals: "_Signals") -> Outcome:
        """Go on from the newest checkpoint, if there is one, to the end."""
        self._resume()
        if self._is_finished():
            return "done"
        length, place = self.recipe.train.images, self.place
        with Journal(place.out, self.progress.images_seen, length, quiet=place.quiet) as journal:
            for note in self.notes:
                journal.say(note)
            outcome = self._fit(journal, signals)
        if outcome == "done" and distributed.rank() == 0:
            self._save_generator(checkpoint.GENERATOR)
        distributed.barrier()
        return outcome

    def _fit(self, journal: Journal, signals: "_Signals") -> Outcome:
        recipe, progress = self.recipe.train, self.progress
        signals.defer()
        for batch in self.batches():
            if progress.images_seen >= recipe.images:
                break
            if distributed.any_rank(signals.came):
                self._save()
                return "interrupted"
            before = progress.images_seen
            self.step(batch)
            progress.images_seen += recipe.batch
            self.averaged.update(self.players.side, progress.images_seen)
            journal.advance(recipe.batch)
            self._report(journal, before)
        self._settle()
        if progress.means.count:
            self._log(journal)
        self._save()
        return "done"

    def _is_finished(self) -> bool:
        images_seen = self.progress.images_seen
        written = checkpoint.images_seen(self.place.out / checkpoint.GENERATOR)
        return written == images_seen >= self.recipe.train.images

    def batches(self) -> Generator[Batch, None, None]:
        return batches(
            self.train_set,
            self.progress.images_seen,
            self.recipe.train.batch,
            rank=distributed.rank(),
            world=distributed.world_size(),
            workers=self.recipe.data.workers,
            pin=self.place.device.type == "cuda",
        )

    def step(self, batch: Batch) -> None:
        """Launch a step, and read what the one before measured: a GPU need not wait for us.

        Raises:
            UserError: a value was not finite, the GPU is too small, or nothing can be compiled.
        """
        factor = players.rate_factor(self.recipe, self.progress.images_seen)
        with self._explained():
            with span("copy"):
                parts = [self._inputs(part) for part in _parts(batch, self.recipe.train.accumulate)]
            values = players.step(self.players, self.objective, parts, factor)
        self._settle()
        self._unread = self.progress.images_seen, values

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What a step fails of that a recipe can mend, in a sentence."""
        train = self.recipe.train
        try:
            yield
        except torch.OutOfMemoryError as error:
            at_once = train.batch // distributed.world_size() // train.accumulate
            blocks = min(len(BLOCK_WIDTHS), train.checkpointing + 3)
            remedy = f"--set train.checkpointing={blocks}"
            if train.compile:  # not together
                remedy = f"--set train.compile=false {remedy}"
            raise UserError(
                f"{self.place.out}: the GPU's memory does not suffice for {at_once} images at "
                f"once ({first_line(error)}). The checkpoint before is untouched. "
                f"{remedy} takes less, here too; in a new run also a lower train.batch or a higher "
                "train.accumulate"
            ) from error
        except Exception as error:
            if not train.compile or not isinstance(error, compile_failures()):
                raise
            raise UserError(
                f"{self.place.out}: train.compile: the networks cannot be compiled here "
                f"({first_line(error)}); add --set train.compile=false"
            ) from error

    def _settle(self) -> None:
        """Read what the last step measured. Nothing is shown, scored or written before.

        Raises:
            UserError: a value is not finite; the step before that one is the last good one.
        """
        if self._unread is None:
            return
        (images, values), self._unread = self._unread, None
        try:
            self.progress.means.add(values.read())
        except NonFiniteError as error:
            size = self.recipe.train.batch
            raise UserError(
                f"{self.place.out}: the term {error.term} is {error.value} at step "
                f"{images // size} (after {images} images), on {', '.join(error.keys)}. The "
                "checkpoint before is untouched. Look at these samples, lower train.lr_generator "
                "and train.lr_discriminator, or set train.precision=float32"
            ) from error

    def _inputs(self, batch: Batch) -> Inputs:
        moved = to_device(batch, self.place.device)
        assert moved.images is not None
        image = to_images(moved.images)
        edge = None
        if self.hed is not None:
            with torch.no_grad():
                edge = self.hed(image) * 2 - 1
        elif moved.edges is not None:
            edge = to_images(moved.edges)
        return Inputs(
            keys=batch.keys,
            positions=batch.positions,
            labels=moved.labels.long(),
            S=condition(moved.labels, moved.boundary, self.space),
            image=image,
            edge=None if edge is None else edge.expand(-1, 3, -1, -1),
        )

    def _report(self, journal: Journal, before: int) -> None:
        """Whatever is due at the first step at or past its cadence."""
        recipe, now = self.recipe.train, self.progress.images_seen
        cadences = {
            "log": recipe.log_every,
            "preview": recipe.preview_every,
            "evaluate": recipe.evaluate_every,
            "checkpoint": recipe.checkpoint_every,
        }
        due = {name for name, n in cadences.items() if n > 0 and now // n > before // n}
        if due:
            self._settle()
        if "log" in due:
            self._log(journal)
        better = False
        if distributed.rank() == 0:
            if "preview" in due:
                journal.picture(now, self.averaged.preview(self.hed))
            if "evaluate" in due:
                better = self._score(journal)
        better = distributed.any_rank(better)
        if ("checkpoint" in due or better) and now < recipe.images:
            self._save()
            if distributed.rank() == 0:
                self._save_generator(checkpoint.GENERATOR)

    def _log(self, journal: Journal) -> None:
        """A line of means since the last one."""
        recipe, now = self.recipe.train, self.progress.images_seen
        factor = players.rate_factor(self.recipe, now - recipe.batch)  # of the last step
        rates = {
            "lr_generator": recipe.lr_generator * factor,
            "lr_discriminator": recipe.lr_discriminator * factor,
            "images_per_second": journal.speed(now),
        }
        journal.log(now, self.progress.means.take() | rates)

    def _score(self, journal: Journal) -> bool:
        """Score on the validation split; keep the generator if it is the best so far."""
        now = self.progress.images_seen
        scores = self.averaged.score(self.place.segmenters, progress=self.place.shows_progress)
        journal.log(now, scores)
        # the higher the better: mIoU, or the negative distance where there is no judge
        value = scores.get("miou", -scores.get("fd_efficientnet_lite0", float("inf")))
        best = self.progress.best
        if best is not None and not value > best["value"]:  # NaN is no better
            return False
        self.progress.best = {"images": now, "value": value}
        self._save_generator(checkpoint.BEST)
        return True

    def _save_generator(self, name: str) -> None:
        images_seen = self.progress.images_seen
        self.averaged.save(self.place.out / name, images_seen, self.progress.inherited)

    def _save(self) -> None:
        """Write a training checkpoint."""
        self._settle()
        images_seen, best = self.progress.images_seen, self.progress.best
        if distributed.rank() == 0 and images_seen > 0:
            networks, optimised = self._stateful()
            checkpoint.save_training(
                self.place.out,
                images_seen,
                checkpoint.Training(
                    {name: network.state_dict() for name, network in networks.items()},
                    {name: p.optimizer.state_dict() for name, p in optimised.items()},
                    self.progress.to_json(),
                ),
            )
            kept = None if best is None else int(best["images"])
            checkpoint.prune(self.place.out, self.recipe.train.keep, kept)
        distributed.barrier()

    def _resume(self) -> None:
        folders = checkpoint.training_checkpoints(self.place.out)
        if not folders:
            return
        saved = checkpoint.load_training(folders[-1])
        init = saved.state["init"]
        if self.progress.init not in {"", init}:
            raise UserError(
                f"{self.place.out} did not start from --init {self.place.init}; leave the option "
                "out to go on, or use a new folder"
            )
        networks, optimised = self._stateful()
        for name, network in networks.items():
            network.load_state_dict(saved.networks[name])
        for name, player in optimised.items():
            player.load_optimizer(saved.optimizers[name])
        self.progress = _Progress.from_json(saved.state)
        self.notes = [f"going on from {folders[-1]}"]

    def _stateful(self) -> tuple[dict[str, torch.nn.Module], dict[str, Player]]:
        sides = {"generator": self.players.generator, "discriminator": self.players.discriminator}
        there = {name: player for name, player in sides.items() if player is not None}
        networks = {name: player.network for name, player in there.items()}
        networks |= {"averaged": self.averaged.networks}
        if self.objective.bank is not None:
            networks["bank"] = self.objective.bank
        return networks, {f"{name}_optimizer": player for name, player in there.items()}


class _Signals:
    """Ctrl-C and SIGTERM: at once while things are set up, at the end of the step afterwards."""

    def __init__(self) -> None:
        self.came = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on, only note that one came."""
        self._deferred = True

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._deferred or self.came:  # a second one does not wait
            raise KeyboardInterrupt
        self.came = True


def _parts(batch: Batch, num_parts: int) -> Iterator[Batch]:
    size = len(batch.keys) // num_parts
    for start in range(0, len(batch.keys), size):
        part = slice(start, start + size)
        yield Batch(
            batch.keys[part],
            batch.positions[part],
            batch.labels[part],
            *(None if x is None else x[part] for x in (batch.images, batch.edges, batch.boundary)),
        )
