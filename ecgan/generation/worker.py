"""The worker: a shard's job in, the shard in its place and its commit record out.

    read layouts -> vary -> generate -> judge -> [encode, in threads] -> write -> commit

Generation, encoding and writing overlap: one thread makes samples, a pool encodes them, and the
calling thread writes them, in order. The same function runs in the calling process and in actors
of Ray, and gives the same bytes.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ecgan.data import datasets, transforms
from ecgan.data.transforms import Fit, canny_edges
from ecgan.errors import UserError
from ecgan.generation import layout_augmentation
from ecgan.generation.plan import SPLIT, Group, Job, passes
from ecgan.generation.request import OnInconsistent
from ecgan.labels import Labels, LabelSpace
from ecgan.runtime.executor import prefetch
from ecgan.runtime.storage import open_store
from ecgan.runtime.timing import StageTimer
from ecgan.sampling.sampler import GeneratedPair, Layout, Pending, Sampler
from ecgan.sampling.styles import Styles
from ecgan.seeds import variant_seed
from ecgan.segmentation.label_filter import Filter, FilterSpec, Judgement
from ecgan.shards import codecs
from ecgan.shards.codecs import Pixels
from ecgan.shards.files.names import Format, ImageFormat, commit_name, sample_key, shard_name
from ecgan.shards.formats import write_shard
from ecgan.shards.manifest import CommitRecord, FilterTotals
from ecgan.shards.records import Encoded, Record, count_classes

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """How samples are written."""

    data_format: Format
    image_format: ImageFormat
    quality: int  # of jpg and webp
    batch: int  # samples of one pass
    evaluation: bool  # labels are written in evaluation ids
    num_classes: int  # number of the ids that are written
    mark: bytes = b""  # XMP packet of every image; empty without provenance
    digital_source_type: str = ""  # of every record; empty without provenance


@dataclass(frozen=True)
class VariantOptions:
    """How varied forms of layouts are made."""

    changes: tuple[layout_augmentation.Change, ...] = ()
    things: frozenset[int] = frozenset()  # classes whose objects may be pasted
    seed: int = 0  # decides what is drawn
    onto_photos: bool = False  # what was not pasted is the layout's own photo


@dataclass(frozen=True)
class GenerationConfig:
    """What is the same for all shards; small, and it can be sent to another machine."""

    generator: Path  # a generator.safetensors
    device: str  # of each worker
    out: str  # folder or address of the data set
    output: Output
    styles: Styles
    variation: VariantOptions = VariantOptions()
    filter: FilterSpec | None = None  # the label filter, if there is one
    on_inconsistent: OnInconsistent = "ignore"  # what to do with samples that it rejects
    retries: int = 3  # most attempts of "retry"
    encoders: int = 1  # threads that encode
    compiled: bool = False  # compile the network for full passes
    reading: LabelSpace | None = None  # class list of the label maps; None: the generator's
    layout_fit: Fit = "stretch"  # of label maps of another aspect ratio


class MadeShard(NamedTuple):
    """What came of a job."""

    shard: CommitRecord
    seconds: dict[str, float]  # of each stage
    elapsed: float


class Ground(NamedTuple):
    """Photo that generated objects are put into."""

    photo: Pixels  # (H, W, 3), at the generator's size
    alpha: npt.NDArray[np.float32]  # (H, W, 1), share of what is generated

    def under(self, made: GeneratedPair) -> GeneratedPair:
        """The photo with what was pasted into its layout, and Canny of that."""
        image = layout_augmentation.blended(self.photo, made.image, self.alpha)
        return GeneratedPair(image, canny_edges(image))


class Prepared(NamedTuple):
    """A layout that a generator is given."""

    layout: Layout
    done: str  # what was done to it
    ground: Ground | None


class Sample(NamedTuple):
    """A generated pair with its label, before it is encoded."""

    group: Group
    style: int  # its number
    attempt: int  # which of the filter's retries it is
    retries: int  # how many there were
    layout: Layout
    variation: str
    made: GeneratedPair
    judgement: Judgement | None

    @property
    def is_consistent(self) -> bool:
        """Whether the filter keeps enough of it."""
        return self.judgement is None or self.judgement.is_consistent

    @property
    def kept_fraction(self) -> float:
        """Share of its labelled pixels that the filter keeps."""
        return 1.0 if self.judgement is None else self.judgement.kept_fraction


class ShardWorker:
    """Makes shards, one after the other, on one device.

    Args:
        settings: what is the same for all shards.
        sampler: in place of the one that the settings name, for benchmarks.
    """

    def __init__(self, settings: GenerationConfig, sampler: Sampler | None = None) -> None:
        cv2.setNumThreads(1)  # encoding has threads of its own
        device = torch.device(settings.device)
        self.settings = settings
        if sampler is None:
            sampler = Sampler(settings.generator, device, compiled=settings.compiled)
        self.sampler = sampler
        self.store = open_store(settings.out)
        self.filter = None
        if settings.filter is not None:
            self.filter = Filter(settings.filter, self.sampler.space, device)
        self.timer = StageTimer()  # of the shard that is made now

    def __call__(self, job: Job) -> MadeShard:
        """Make a shard and commit it.

        Raises:
            UserError: a label map cannot be read, or the filter left nothing.
            OSError: the shard cannot be written.
        """
        self.timer, start = StageTimer(), time.perf_counter()
        counted = Counter[str]()  # what the filter did, beside the sums over the samples
        output = self.settings.output
        with closing(self._samples(job, counted)) as samples:
            shard = write_shard(
                self.store,
                shard_name(output.data_format, SPLIT, job.number),
                self._timed(samples),
                data_format=output.data_format,
                image_format=output.image_format,
                num_classes=output.num_classes,
            )
        totals = FilterTotals(**counted)
        changes = {"filter": shard.filter + totals, "plan": job.plan}
        shard = shard.model_copy(update=changes)
        with self.timer.measured("write"):
            self.store.write(commit_name(job.number), shard.model_dump_json())
        elapsed = time.perf_counter() - start
        return MadeShard(shard, self.timer.seconds, elapsed)

    def _samples(self, job: Job, counted: Counter[str]) -> Generator[Encoded, None, None]:
        """Encoded samples in order, made ahead in other threads as far as a queue holds."""
        limit = max(8, 2 * self.settings.output.batch)
        with ThreadPoolExecutor(self.settings.encoders, "encode") as pool:
            futures = (
                future
                for samples in self._passes(job)
                for future in self._encoded(samples, pool, counted)
            )
            with closing(prefetch(futures, limit)) as made:
                for future in made:
                    yield future.result()
        if counted["dropped"] == job.samples and self.settings.variation.onto_photos:
            raise UserError(
                f"--vary paste found no place for an object in any layout of {job}; give more "
                "--n-variants, or other things with sampling.things"
            )
        if counted["dropped"] == job.samples:
            raise UserError(
                f"--on-inconsistent drop left none of {job}'s samples ({job.samples}); lower "
                "sampling.filter_min_kept, raise sampling.filter_tolerance, make shards larger, or "
                "use --on-inconsistent ignore"
            )

    def _passes(self, job: Job) -> Iterator[list[Sample]]:
        """Samples of each pass; the next one is begun before one is waited for."""
        begun: _Begun | None = None
        for part in passes(job.groups, self.settings.output.batch):
            following = self._begin(part)
            if begun is not None:
                yield self._finish(begun)
            begun = following
        if begun is not None:
            yield self._finish(begun)

    def _encoded(
        self, samples: Sequence[Sample], pool: ThreadPoolExecutor, counted: Counter[str]
    ) -> Iterator["Future[Encoded]"]:
        label: Future[tuple[Labels, bytes]] | None = None
        previous: Labels | None = None
        for sample in samples:
            if not self._keeps(sample, counted):
                continue
            own = sample.layout.label if sample.judgement is None else sample.judgement.label
            if label is None or own is not previous:  # once for all styles of a layout
                label, previous = pool.submit(self._label, own), own
            yield pool.submit(self.encode, sample, label)

    def _keeps(self, sample: Sample, counted: Counter[str]) -> bool:
        """Whether a sample is written; counts it."""
        counted["retried"] += sample.retries
        if self.settings.variation.onto_photos and not sample.variation:
            counted["dropped"] += 1  # nothing was pasted: it would be the photo
            return False
        if sample.is_consistent:
            return True
        drops = self.settings.on_inconsistent == "drop"
        counted["dropped" if drops else "inconsistent"] += 1
        return not drops

    def _begin(self, part: Sequence[Group]) -> "_Begun":
        with self.timer.measured("read"):
            read = [self._layout(group) for group in part]
        styles = [range(group.first, group.first + group.count) for group in part]
        layouts = [one.layout for one in read]
        z = self._styles_of_photos(read)
        z = self._styles(part, styles) if z is None else z
        with self.timer.measured("generate"):
            pending = self.sampler.start(layouts, z, self.settings.output.batch)
        return _Begun(part, read, styles, pending)

    def _finish(self, begun: "_Begun") -> list[Sample]:
        with self.timer.measured("generate"):
            made = begun.pending.result()
        samples: list[Sample] = []
        parts = zip(begun.part, begun.read, begun.styles, made, strict=True)
        for group, (layout, done, ground), numbers, pairs in parts:
            shown = pairs if ground is None else [ground.under(pair) for pair in pairs]
            of_group = [
                Sample(group, number, 0, 0, layout, done, pair, None)
                for number, pair in zip(numbers, shown, strict=True)
            ]
            if self.filter is not None:
                of_group = self._judged(self.filter, of_group)
                if self.settings.on_inconsistent == "retry":
                    of_group = self._retried(self.filter, of_group)
            samples += of_group
        return samples

    def encode(self, sample: Sample, label: "Future[tuple[Labels, bytes]]") -> Encoded:
        """A sample in the bytes of its files."""
        values, encoded_label = label.result()
        output, group, judgement = self.settings.output, sample.group, sample.judgement
        with self.timer.measured("encode"):
            record = Record(
                key=sample_key(group.key, sample.style),
                source=group.source,
                style=sample.style,
                seed=self.settings.styles.seed_of(group.key, sample.style, sample.attempt),
                width=values.shape[1],
                height=values.shape[0],
                class_pixels=count_classes(values, output.num_classes),
                consistency=-1.0 if judgement is None else judgement.consistency,
                kept_fraction=sample.kept_fraction,
                variation=sample.variation,
                digital_source_type=output.digital_source_type,
            )
            made = sample.made
            image = codecs.encode_image(
                made.image, output.image_format, output.quality, output.mark
            )
            return Encoded(record, image, encoded_label, codecs.encode_map(made.edge))

    def _label(self, own: Labels) -> tuple[Labels, bytes]:
        with self.timer.measured("encode"):
            values = own
            if self.settings.output.evaluation:
                values = self.sampler.space.to_evaluation(own)
            return values, codecs.encode_map(values)

    def _layout(self, group: Group) -> Prepared:
        """A layout at the generator's size, and what was done to it."""
        read = partial(self.sampler.read_maps, space=self.settings.reading)
        label, instances = read(group.item)
        done, ground, variation = "", None, self.settings.variation
        if group.variant:
            varied = layout_augmentation.vary(
                layout_augmentation.Scene(group.source, label, instances),
                [layout_augmentation.Scene(i.key, *read(i)) for i in group.donors],
                variation.changes,
                self.sampler.space,
                things=variation.things,
                seed=variant_seed(variation.seed, group.source, group.variant),
            )
            label, instances, done = varied.label, varied.instances, varied.done
            if variation.onto_photos:
                ground = self._ground(group, varied)
                done += "; into its own photo" if done else ""
        fit = self.settings.layout_fit
        return Prepared(self.sampler.layout(group.key, label, instances, fit), done, ground)

    def _ground(self, group: Group, varied: layout_augmentation.Varied) -> Ground:
        size = self.sampler.size
        photo = transforms.resize_image(datasets.read_image(group.item), size)
        mask = np.zeros(size, bool)
        if varied.pasted is not None:
            mask = transforms.resize_nearest(varied.pasted.astype(np.uint8), size) > 0
        return Ground(photo, layout_augmentation.feathered(mask))

    def _styles_of_photos(self, read: Sequence[Prepared]) -> torch.Tensor | None:
        """Styles of the layouts' own photos, (L, 1, 256); None without an encoder or photos."""
        if self.sampler.file.style_encoder is None or read[0].ground is None:
            return None
        photos = [one.ground.photo for one in read if one.ground is not None]
        return torch.stack([self.sampler.encode_style(photo) for photo in photos])[:, None]

    def _styles(
        self, part: Sequence[Group], styles: Sequence[Sequence[int]], attempt: int = 0
    ) -> torch.Tensor | None:
        """Styles of each group, (L, K, 256)."""
        if not self.sampler.has_style:
            return None
        drawn = [
            self.settings.styles.draw(group.key, number, attempt)
            for group, numbers in zip(part, styles, strict=True)
            for number in numbers
        ]
        return torch.stack(drawn).view(len(part), -1, drawn[0].shape[-1])

    def _judged(self, judge: Filter, samples: list[Sample]) -> list[Sample]:
        """The samples of one layout with what the filter says of them."""
        with self.timer.measured("judge"):
            images = np.stack([sample.made.image for sample in samples])
            labels = cast("Labels", np.stack([sample.layout.label for sample in samples]))
            found = judge.judge_batch(images, labels, samples[0].group.fold)
        return [
            sample._replace(judgement=judgement)
            for sample, judgement in zip(samples, found, strict=True)
        ]

    def _retried(self, judge: Filter, samples: list[Sample]) -> list[Sample]:
        """Inconsistent samples made again from the next seeds; of all attempts the best is kept."""
        best = [*samples]
        for attempt in range(1, self.settings.retries + 1):
            failing = [i for i, sample in enumerate(best) if not sample.is_consistent]
            if not failing:
                break
            group, layout = samples[0].group, samples[0].layout
            numbers = [best[i].style for i in failing]
            z = self._styles([group], [numbers], attempt)
            with self.timer.measured("generate"):
                pending = self.sampler.start([layout], z, self.settings.output.batch)
                (pairs,) = pending.result()
            again = self._judged(
                judge,
                [
                    best[i]._replace(attempt=attempt, made=pair)
                    for i, pair in zip(failing, pairs, strict=True)
                ],
            )
            for i, sample in zip(failing, again, strict=True):
                better = sample if sample.kept_fraction > best[i].kept_fraction else best[i]
                best[i] = better._replace(retries=attempt)
        return best

    def _timed(self, samples: Iterator[Encoded]) -> Iterator[Encoded]:
        """Samples as they come; what passes between two of them is the writing."""
        for sample in samples:
            with self.timer.measured("write"):
                yield sample


class _Begun(NamedTuple):
    """A pass that the device may still be at."""

    part: Sequence[Group]
    read: list[Prepared]
    styles: list[range]
    pending: Pending
