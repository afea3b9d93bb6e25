"""Layouts and styles in, images and edges out, on one device.

What a sample looks like depends on its layout, its style and the weights alone. The styles of one
layout share its modulation maps, three quarters of the arithmetic: they are computed once.

Shape legend:
    L, K  layouts, and styles of each      H, W  height and width
    S  condition, (L, channels of S, H, W)      z  style, (L, K, 256)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ecgan.checkpoint import load_generator
from ecgan.data import datasets, transforms
from ecgan.data.datasets import Item
from ecgan.data.edges import canny_edges
from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace
from ecgan.models.layers import channels_last
from ecgan.ops.onehot_conv import one_hot

Pixels = npt.NDArray[np.uint8]


class Layout(NamedTuple):
    """A label map at the generator's size."""

    key: str
    label: Labels  # (H, W), input ids
    boundary: Pixels | None  # (H, W), 0 or 1; None where the generator takes none


class Made(NamedTuple):
    """One generated pair."""

    image: Pixels  # (H, W, 3)
    edge: Pixels  # (H, W): the mean of I'_e's channels, or Canny of the image without Ge


def condition(labels: Tensor, boundary: Tensor | None, space: LabelSpace) -> Tensor:
    """S of labels, (B, H, W), and instance boundaries, (B, 1, H, W); channels last, as networks."""
    S = one_hot(
        labels,
        space.num_classes,
        space.ignore_index,
        unknown=space.ignore is not None,
        boundary=boundary,
    )
    return S.contiguous(memory_format=torch.channels_last)


class Sampler:
    """A generator on a device.

    Args:
        path: a ``generator.safetensors``.
        device: where it runs; bfloat16 on CUDA, float32 elsewhere.

    Raises:
        UserError: the file is not a generator.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.file = load_generator(path)
        self.recipe, self.space = self.file.recipe, self.file.space
        self.device = device
        self.size = (self.recipe.data.height, self.recipe.data.width)
        self.generator = self.file.generator.to(device)
        channels_last(self.generator)

    @property
    def has_style(self) -> bool:
        """Whether one layout can have several images."""
        return self.recipe.model.style

    @property
    def edge_source(self) -> str:
        """Where ``edge.png`` comes from."""
        return "generator" if self.recipe.model.edge_generator else "canny of the image"

    def read_layout(self, item: Item) -> Layout:
        """A label map as the generator wants it; see :meth:`layout`."""
        return self.layout(item.key, *self.read_maps(item))

    def read_maps(self, item: Item) -> tuple[Labels, npt.NDArray[np.int32] | None]:
        """A label map in input ids, (H, W), and the instance ids that belong to it.

        Where the generator takes instance boundaries and the item has no instance ids, the classes
        stand for them; where it takes none, there are none.
        """
        label = datasets.read_label(item, self.space, self.recipe.data.dataset)
        if not self.recipe.data.instances:
            return label, None
        if item.instances is None:
            return label, label.astype(np.int32)
        return label, datasets.read_instances(item)

    def layout(self, key: str, label: Labels, instances: npt.NDArray[np.int32] | None) -> Layout:
        """Maps as the generator wants them: nearest neighbour, at its size."""
        boundary = None
        if instances is not None:
            boundary = transforms.instance_boundary(transforms.resize_nearest(instances, self.size))
        return Layout(key, transforms.prepare_label(label, self.size), boundary)

    @torch.inference_mode()
    def make(self, layouts: Sequence[Layout], z: Tensor | None, batch: int) -> list[list[Made]]:
        """K pairs for each of L layouts; one modulation pass for the K styles of a layout.

        Args:
            layouts: L.
            z: styles, (L, K, 256); None for a generator without style, then K = 1.
            batch: pairs in one pass; more styles than that are made in several passes, which share
                the modulation maps.
        """
        assert (z is not None) == self.has_style
        S = self.condition(layouts)
        made: list[list[Made]] = [[] for _ in layouts]
        with self._same_sums():
            modulations = self.generator.modulations(S)
            step = max(1, batch // len(layouts))
            parts = [None] if z is None else list(z.to(self.device).split(step, dim=1))
            for part in parts:
                images, edges = self.generator.sample(S, part, modulations)
                self._append(made, images, edges)
        return made

    def condition(self, layouts: Sequence[Layout]) -> Tensor:
        """S of the layouts, on the device."""
        labels = np.stack([layout.label for layout in layouts])
        if labels.dtype != np.uint8:  # torch knows few operations on uint16
            labels = labels.astype(np.int32)
        boundary = None
        if self.recipe.data.instances:
            stacked = np.stack(
                [layout.boundary for layout in layouts if layout.boundary is not None]
            )
            boundary = torch.from_numpy(stacked)[:, None].to(self.device)
        return condition(torch.from_numpy(labels).to(self.device), boundary, self.space)

    def _append(self, made: list[list[Made]], images: Tensor, edges: Tensor | None) -> None:
        """Bytes of a pass, (L, k, 3, H, W), behind what each layout has already."""
        pixels = _to_bytes(images.permute(0, 1, 3, 4, 2))
        maps = None if edges is None else _to_bytes(edges.float().mean(dim=2))
        for layout, of_layout in enumerate(made):
            for k in range(pixels.shape[1]):
                image = pixels[layout, k]
                edge = canny_edges(image) if maps is None else maps[layout, k]
                of_layout.append(Made(image, edge))

    def encode_styles(self, photos: Sequence[Path]) -> Tensor:
        """Styles of photos, the mean that the style encoder gives: (photos, 256).

        Raises:
            UserError: the generator has no style encoder, or a photo cannot be read.
        """
        encoder = self.file.style_encoder
        if encoder is None:
            raise UserError(
                "--style-images: this run has no style encoder; train one with model.style=true"
            )
        encoder = encoder.to(self.device)
        styles: list[Tensor] = []
        for path in photos:
            pixels = datasets.read_image(Item(path.stem, path, image=path))
            pixels = transforms.resize_image(pixels, self.size)
            image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.inference_mode(), one_thread():
                styles.append(encoder(image.to(self.device))[0][0].float().cpu())
        return torch.stack(styles).clone()

    def _same_sums(self) -> AbstractContextManager[object]:
        if self.device.type == "cuda":
            return torch.autocast(self.device.type, torch.bfloat16)
        return one_thread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores: samples are the same to the byte."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _to_bytes(pictures: Tensor) -> Pixels:
    """[-1, 1] -> 0..255; what lies outside (I' can) is cut off."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
