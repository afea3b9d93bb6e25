"""Validation scores during training: a judge's mIoU and the Frechet distance to real photos."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ecgan.data.loader import TripleDataset, ordered_batches, to_device, to_images
from ecgan.labels import Labels
from ecgan.metrics.distribution import frechet_distance_of
from ecgan.metrics.segmentation import PerImageConfusion, agreement
from ecgan.models.generator import Generator
from ecgan.models.layers import condition
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.seeds import sample_seed
from ecgan.segmentation.segmenter import Segmenter


@torch.no_grad()
def validate(
    generator: Generator,
    dataset: TripleDataset,
    judge: Segmenter | None,
    *,
    features: Sequence[str] = (),
    batch: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of a generator during training, by one image of each layout of a data set.

    Args:
        generator: generator, in evaluation mode or not; left as it was.
        dataset: layouts with their photos.
        judge: segmenter of evaluation ids; None: no scores of it.
        features: names of feature networks; only ``efficientnet_lite0`` is used here.
        batch: images of a pass.
        seed: seed of the styles.

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
