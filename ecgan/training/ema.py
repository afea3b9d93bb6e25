"""The generator that a run keeps: averaged over the training, its statistics estimated again.

Batch norm's running statistics belong to the weights of the training, not to their average; copied,
they give broken pictures. So, whenever the average is shown, scored or written, they are estimated
over the first training layouts in key order. Nothing here touches the training's weights or draws.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ecgan import checkpoint
from ecgan.checkpoint import InheritedTraining, build_generator, build_style_encoder
from ecgan.data.loader import Batch, TripleDataset, ordered_batches, to_device, to_images
from ecgan.labels import LabelSpace
from ecgan.models.generator import STYLE_DIM, Generator
from ecgan.models.layers import condition
from ecgan.models.pretrained.hed import Hed
from ecgan.recipe import Recipe
from ecgan.seeds import TorchStream, torch_generator
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter
from ecgan.segmentation.training import train_segmenter
from ecgan.training.averaging import Average, reestimate_statistics
from ecgan.training.objective import GeneratorSide
from ecgan.training.validation import validate
from ecgan.visualization import colorize, grid

NUM_LAYOUTS = 512  # that statistics are estimated over
LAYOUTS_AT_ONCE = 8  # at most, whatever the batch of all ranks: one of them estimates, in float32
PREVIEW_ROWS = 6

Bytes = npt.NDArray[np.uint8]


class AveragedGenerator:
    """The average of G and of its style encoder, and what is made of it.

    Its batch norms are plain ones also where the training's are over ranks: it is used on one.

    Args:
        recipe: the run's.
        space: its class list.
        train_set: for the statistics.
        validation_set: for pictures and scores.
        device: where it all happens.
        label_generator: Gl, which the file names, so that it is not taken for a judge.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: LabelSpace,
        train_set: TripleDataset,
        validation_set: TripleDataset,
        device: torch.device,
        label_generator: Segmenter | None = None,
    ) -> None:
        self.recipe, self.space, self.device = recipe, space, device
        self._label_generator = None if label_generator is None else label_generator.describe()
        self.train_set, self.validation_set = train_set, validation_set
        networks: dict[str, nn.Module] = {"generator": build_generator(recipe, space)}
        style_encoder = build_style_encoder(recipe)
        if style_encoder is not None:
            networks["style_encoder"] = style_encoder
        module = nn.ModuleDict(networks).to(device)
        self._average = Average(module, recipe.train.ema_images)
        self._previewed = _spread(validation_set, PREVIEW_ROWS)
        self._layouts: list[Batch] | None = None
        self._judge: Segmenter | None = None
        self._estimated = False  # whether the statistics are those of the weights

    @property
    def networks(self) -> nn.ModuleDict:
        """``generator`` and, with a style, ``style_encoder``."""
        return cast("nn.ModuleDict", self._average.module)

    @property
    def generator(self) -> Generator:
        """G with statistics of its own weights."""
        generator = cast("Generator", self.networks["generator"])
        if not self._estimated:
            reestimate_statistics(generator, self._conditions())
            self._estimated = True
        return generator

    def start(self, side: GeneratorSide) -> None:
        """Begin with the training's own weights."""
        self.networks.load_state_dict(self._same_part(side).state_dict())
        self._estimated = False

    def update(self, side: GeneratorSide, images_seen: int) -> None:
        """Move towards the training's weights, after a step that ended at ``images_seen``."""
        batch = self.recipe.train.batch
        self._average.update(self._same_part(side), batch=batch, images_seen=images_seen)
        self._estimated = False

    def _same_part(self, side: GeneratorSide) -> nn.ModuleDict:
        return nn.ModuleDict({name: getattr(side, name) for name in self.networks})

    def save(
        self, path: Path, images_seen: int, inherited: Sequence[InheritedTraining] = ()
    ) -> None:
        """Write ``generator.safetensors``; ``inherited`` is of :func:`checkpoint.inheritance`."""
        checkpoint.save_generator(
            path,
            self.generator,
            self.recipe,
            self.space,
            style_encoder=self.networks["style_encoder"] if self.recipe.model.style else None,
            seen_keys=self.train_set.keys,
            inherited=inherited,
            label_generator=self._label_generator,
            images_seen=images_seen,
        )

    @torch.no_grad()
    def preview(self, hed: Hed | None) -> Image.Image:
        """A grid of validation layouts, always the same, each with a style of its own."""
        generator, rows = self.generator, []
        for index, batch in enumerate(ordered_batches(self._previewed, 1)):
            moved = to_device(batch, self.device)
            assert moved.images is not None
            made = generator(
                condition(moved.labels, moved.boundary, self.space),
                moved.labels.long(),
                self.space.ignore_index,
                self._style(TorchStream.PREVIEW, [index]),
            )
            edges = moved.edges
            if hed is not None:
                edges = (hed(to_images(moved.images)) * 255).round().to(torch.uint8)
            blank = np.full((*batch.labels.shape[1:], 3), 255, np.uint8)
            rows.append(
                [
                    colorize(batch.labels[0].numpy(), self.space.palette),
                    blank if made.edge is None else _pixels(made.edge.mean(1, keepdim=True)),
                    blank if edges is None else edges[0, 0].cpu().numpy(),
                    _pixels(made.coarse),
                    _pixels(made.image),
                    moved.images[0].permute(1, 2, 0).cpu().numpy(),
                ]
            )
        return grid(rows, ("label", "edge", "real edge", "coarse", "image", "real"))

    def score(self, cache: Path, *, progress: bool) -> dict[str, float]:
        """Agreement with a judge and distance to the photos, on the validation split."""
        if self._judge is None:
            self._judge = self._find_judge(cache, progress=progress)
        return validate(
            self.generator,
            self.validation_set,
            self._judge,
            features=self.recipe.evaluate.features,
            seed=self.recipe.evaluate.judge_training.seed,
        )

    def _find_judge(self, cache: Path, *, progress: bool) -> Segmenter:
        evaluate = self.recipe.evaluate
        if evaluate.judge != "train":
            return load_segmenter(evaluate.judge, self.space, device=self.device, evaluation=True)
        return train_segmenter(
            self.train_set,
            self.space,
            evaluate.judge_training,
            cache,
            self.device,
            role="judge" if progress else None,
            evaluation=True,
            workers=self.recipe.data.workers,
        )

    def _conditions(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first training layouts, each with a style of its own."""
        if self._layouts is None:
            # once, and without the photos: bytes of a few hundred layouts are small
            found = ordered_batches(
                self.train_set,
                min(self.recipe.train.batch, LAYOUTS_AT_ONCE),
                workers=self.recipe.data.workers,
                limit=NUM_LAYOUTS,
            )
            self._layouts = [batch._replace(images=None, edges=None) for batch in found]
        for batch in self._layouts:
            z = self._style(TorchStream.STATISTICS, batch.positions.tolist())
            moved = to_device(batch, self.device)
            yield condition(moved.labels, moved.boundary, self.space), z

    def _style(self, stream: TorchStream, numbers: list[int]) -> Tensor | None:
        if not self.recipe.model.style:
            return None
        seed = self.recipe.train.seed
        draws = [
            torch.randn(STYLE_DIM, generator=torch_generator(seed, stream, n)) for n in numbers
        ]
        return torch.stack(draws).to(self.device)


def _spread(data: TripleDataset, num: int) -> TripleDataset:
    """Items from all over a data set, plain: neighbours in a video look alike."""
    indices = sorted({index * len(data) // num for index in range(num)})
    return TripleDataset(
        [data.items[index] for index in indices],
        data.space,
        data.dataset,
        height=data.size[0],
        width=data.size[1],
        train=False,
        edges=data.edges,
        boundary=data.boundary,
    )


def _pixels(picture: Tensor) -> Bytes:
    """(1, C, H, W) in [-1, 1] -> (H, W, 3) or, of one channel, (H, W)."""
    pixels = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.permute(1, 2, 0).cpu().numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
