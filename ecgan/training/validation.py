"""Validation during training: previews, a judge's mIoU and the Frechet distance to real photos."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ecgan.data.loader import TripleDataset, ordered_batches, to_device, to_images
from ecgan.labels import Labels
from ecgan.metrics.distribution import frechet_distance_of
from ecgan.metrics.segmentation import PerImageConfusion, agreement
from ecgan.models.generator import Generator
from ecgan.models.layers import condition
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.models.pretrained.hed import Hed
from ecgan.seeds import TorchStream, sample_seed
from ecgan.segmentation.segmenter import Segmenter
from ecgan.segmentation.training import train_segmenter
from ecgan.training.ema import AveragedGenerator
from ecgan.visualization import colorize, grid, legend_of

PREVIEW_ROWS = 6


class Validation:
    """Previews and scores of the averaged generator on the validation split.

    Args:
        averaged: the generator.
        dataset: layouts with their photos.
        cache: folder of trained segmenters, for a judge that is trained here.
        judge: that the recipe names; None: one is trained when it is first needed.
        quiet: no progress bar.
    """

    def __init__(
        self,
        averaged: AveragedGenerator,
        dataset: TripleDataset,
        cache: Path,
        *,
        judge: Segmenter | None,
        quiet: bool,
    ) -> None:
        self.averaged, self.dataset, self.cache, self.quiet = averaged, dataset, cache, quiet
        self._previewed = _spread(dataset, PREVIEW_ROWS)
        self._judge = judge

    @torch.no_grad()
    def preview(self, hed: Hed | None) -> Image.Image:
        """Grid of validation layouts, always the same, each with its own style."""
        space, rows, labels = self.dataset.space, [], []
        generator = self.averaged.generator
        for index, batch in enumerate(ordered_batches(self._previewed, 1)):
            moved = to_device(batch, self.averaged.device)
            assert moved.images is not None
            made = generator(
                condition(moved.labels, moved.boundary, space),
                moved.labels.long(),
                space.ignore_index,
                self.averaged.styles(TorchStream.PREVIEW, [index]),
            )
            edges = moved.edges
            if hed is not None:
                edges = (hed(to_images(moved.images)) * 255).round().to(torch.uint8)
            blank = np.full((*batch.labels.shape[1:], 3), 255, np.uint8)
            labels.append(batch.labels[0].numpy())
            rows.append(
                [
                    colorize(batch.labels[0].numpy(), space.palette),
                    blank if made.edge is None else _pixels(made.edge.mean(1, keepdim=True)),
                    blank if edges is None else edges[0, 0].cpu().numpy(),
                    _pixels(made.coarse),
                    _pixels(made.image),
                    moved.images[0].permute(1, 2, 0).cpu().numpy(),
                ]
            )
        titles = ("label", "edge", "real edge", "coarse", "image", "real")
        return grid(rows, titles, legend=legend_of(labels, space.names, space.palette))

    def score(self) -> dict[str, float]:
        """Agreement with a judge, and distance to the photos."""
        if self._judge is None:
            self._judge = self._trained_judge()
        evaluate = self.averaged.recipe.evaluate
        return validate(
            self.averaged.generator,
            self.dataset,
            self._judge,
            features=evaluate.features,
            seed=evaluate.judge_training.seed,
            styles_of=self.averaged.styles_of,
        )

    def _trained_judge(self) -> Segmenter:
        averaged = self.averaged
        return train_segmenter(
            averaged.train_set,
            self.dataset.space,
            averaged.recipe.evaluate.judge_training,
            self.cache,
            averaged.device,
            role=None if self.quiet else "judge",
            evaluation=True,
            workers=averaged.recipe.data.workers,
        )


@torch.no_grad()
def validate(
    generator: Generator,
    dataset: TripleDataset,
    judge: Segmenter | None,
    *,
    features: Sequence[str] = (),
    batch: int = 8,
    seed: int = 0,
    styles_of: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Scores of a generator during training, by one image of each layout of a data set.

    Args:
        generator: generator, in evaluation mode or not; left as it was.
        dataset: layouts with their photos.
        judge: segmenter of evaluation ids; None: no scores of it.
        features: names of feature networks; only ``efficientnet_lite0`` is used here.
        batch: images of a pass.
        seed: seed of the styles.
        styles_of: noise, (B, 256), to styles; default: the noise itself.

    Returns:
        ``miou``, ``accuracy`` and ``fd_efficientnet_lite0``, those that there are.
    """
    device = next(generator.parameters()).device
    network = EfficientNetLite0().to(device) if "efficientnet_lite0" in features else None
    training = generator.training
    generator.eval()
    space = dataset.space
    confusion = PerImageConfusion(space.num_evaluation_classes)
    made: list[npt.NDArray[np.float32]] = []
    real: list[npt.NDArray[np.float32]] = []
    for found in ordered_batches(dataset, batch):
        moved = to_device(found, device)
        assert moved.images is not None
        z = None
        if generator.style:
            draws = [_noise(seed, n, generator.style_dim) for n in found.positions.tolist()]
            z = torch.stack(draws).to(device)
            z = z if styles_of is None else styles_of(z)
        S = condition(moved.labels, moved.boundary, space)
        generated = generator(S, moved.labels.long(), space.ignore_index, z)
        images = generated.image.float().clamp(-1, 1)
        if judge is not None:
            raw = cast("Labels", found.labels.numpy().astype(space.dtype))
            labels = space.to_evaluation(raw)
            predictions = judge.predict(images).cpu().numpy()
            for key, label, prediction in zip(found.keys, labels, predictions, strict=True):
                confusion.add(key, key, label, prediction)
        if network is not None:
            made.append(network.embed(images).float().cpu().numpy())
            real.append(network.embed(to_images(moved.images)).float().cpu().numpy())
    generator.train(training)
    scores: dict[str, float] = {}
    if len(confusion):
        overall = agreement(confusion).overall
        scores = {name: overall[name].value for name in ("miou", "accuracy")}
    if sum(map(len, made)) > 1:
        value = frechet_distance_of(np.concatenate(made), np.concatenate(real))
        scores["fd_efficientnet_lite0"] = value
    return scores


def _noise(seed: int, number: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(sample_seed(seed, "validation", number))
    return torch.randn(dim, generator=generator)


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


def _pixels(picture: Tensor) -> npt.NDArray[np.uint8]:
    """(1, C, H, W) in [-1, 1] -> (H, W, 3) or, of one channel, (H, W)."""
    pixels = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.permute(1, 2, 0).cpu().numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
