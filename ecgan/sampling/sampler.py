"""Layouts and styles in, images and edges out, on one device.

What a sample looks like depends on its layout, its style and the weights alone; to the byte, also
on what goes through the network with it. What the styles of a layout share is computed once.

    label maps --> [condition] --> what styles share --+
                                        styles z ------+--> [generate] --> bytes --> [copy]

On CUDA all of it is queued, bytes and not floats come back, and they do so while the next pass
runs. A pass that is as full as the batch lets it be has one of very few shapes: there the network
may be compiled and replayed as a CUDA graph.

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
from ecgan.data.loader import to_images
from ecgan.data.transforms import canny_edges
from ecgan.errors import UsageError, UserError, first_line
from ecgan.labels import Labels, LabelSpace
from ecgan.models.inference import DirectGenerator, InferenceGenerator, LayoutFeatures
from ecgan.recipe import Recipe
from ecgan.runtime.device import (
    Download,
    compile_failures,
    compiled,
    is_out_of_memory,
    one_thread,
    refuse_beyond_memory,
    uploaded,
)
from ecgan.sampling.cuda_graphs import Draw, RecordedPass, Share

ARITHMETIC = 2
"""Counts changes of the order of sums: data sets made with another one are not gone on with."""
COMPILED_FROM = 50_000
"""Samples of a data set from which on ``sampling.compile: auto`` compiles: it takes a minute."""

Pixels = npt.NDArray[np.uint8]

_BROKEN = "take another generator, or train longer"


class Layout(NamedTuple):
    """A label map at the generator's size."""

    key: str
    label: Labels  # (H, W), input ids
    boundary: Pixels | None  # (H, W), 0 or 1; None where the generator takes none


class GeneratedPair(NamedTuple):
    """One generated pair."""

    image: Pixels  # (H, W, 3)
    edge: Pixels  # (H, W): the mean of I'_e's channels, or Canny of the image without Ge


def compiles(recipe: Recipe, num_samples: int, *, on_cuda: bool) -> bool:
    """Whether the network is compiled for a data set; see ``sampling.compile``.

    Raises:
        UserError: it shall be, and cannot.
    """
    wanted = recipe.sampling.compile
    fused = recipe.model.output == "fused"
    if wanted == "auto":
        return on_cuda and not fused and num_samples >= COMPILED_FROM
    if wanted and not on_cuda:
        raise UserError(
            "sampling.compile=true: the network is compiled for CUDA, and this device is none; "
            "add --set sampling.compile=auto"
        )
    if wanted and fused:
        raise UserError(
            "sampling.compile=true: class-specific heads, which model.output=fused needs, cannot "
            "be recorded as a graph; add --set sampling.compile=auto"
        )
    return wanted


class Sampler:
    """A generator on a device.

    Args:
        path: a ``generator.safetensors``.
        device: where it runs; bfloat16 on CUDA, float32 elsewhere.
        compiled: compile the network for full passes, on CUDA.

    Raises:
        UserError: the file is not a generator.
    """

    def __init__(self, path: Path, device: torch.device, *, compiled: bool = False) -> None:
        self.file = load_generator(path)
        self.recipe, self.space = self.file.recipe, self.file.space
        self.device, self.compiled = device, compiled
        self.size = (self.recipe.data.height, self.recipe.data.width)
        self._path = path
        on_cuda = device.type == "cuda"
        features = (self.recipe.model.width + 3) * self.size[0] * self.size[1]
        refuse_beyond_memory(
            features * (2 if on_cuda else 4),
            device,
            f"{path}: a sample of {self.size[0]} x {self.size[1]}",
            "take another generator",
        )
        self.dtype = torch.bfloat16 if on_cuda else torch.float32
        # Fixed shapes are what a GPU's compiler and graphs need; a CPU is faster with less to do
        generator, boundary = self.file.generator, self.recipe.data.instances
        self.generator = (
            DirectGenerator(generator, unlabelled=self.space.ignore is not None, boundary=boundary)
            if generator.trunk.style_map
            else InferenceGenerator(generator, boundary=boundary, lookups=not on_cuda)
        ).to(device, self.dtype)
        self._is_finite: Tensor | None = None  # of the pass that was queued last
        self._copies = torch.cuda.Stream(device) if on_cuda else None
        self._recorded: dict[tuple[int, ...], RecordedPass] = {}
        self._pool: object = None  # memory of all recorded passes

    @property
    def has_style(self) -> bool:
        """Whether one layout can have several images."""
        return self.recipe.model.style

    def read_maps(
        self, item: Item, space: LabelSpace | None = None
    ) -> tuple[Labels, npt.NDArray[np.int32] | None]:
        """A label map in input ids, (H, W), and the instance ids that belong to it.

        Where the generator takes instance boundaries and the item has no instance ids, the classes
        stand for them; where it takes none, there are none. ``space`` gives the file's values their
        meaning in place of the generator's own class list.
        """
        label = datasets.read_label(item, space or self.space, self.recipe.data.dataset)
        if not self.recipe.data.instances:
            return label, None
        if item.instances is None:
            return label, label.astype(np.int32)
        return label, datasets.read_instances(item)

    def layout(
        self,
        key: str,
        label: Labels,
        instances: npt.NDArray[np.int32] | None,
        fit: transforms.Fit = "stretch",
    ) -> Layout:
        """Maps as the generator wants them: nearest neighbour, at its size; borders unlabelled."""
        boundary = None
        if instances is not None:
            own = transforms.fit_nearest(instances, self.size, fit, border=-1)
            boundary = transforms.instance_boundary(own)
        border = self.space.ignore_index
        return Layout(key, transforms.fit_nearest(label, self.size, fit, border), boundary)

    @torch.inference_mode()
    def start(self, layouts: Sequence[Layout], z: Tensor | None, batch: int) -> "Pending":
        """Begin to make K pairs for each of L layouts; on CUDA without waiting for them.

        Args:
            layouts: L.
            z: styles, (L, K, 256); None for a generator without style, then K = 1.
            batch: pairs in one pass; more styles than that are made in several passes, which share
                the modulation maps.

        Raises:
            UserError: that takes more memory than the GPU has, or cannot be compiled.
        """
        assert (z is not None) == self.has_style
        try:
            return self._start(layouts, z, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"the memory does not suffice for {batch} samples at once "
                f"({first_line(error)}); add --batch {max(1, batch // 2)}, and --overwrite "
                "where a part is made already: bytes depend on it"
            ) from error

    def _start(self, layouts: Sequence[Layout], z: Tensor | None, batch: int) -> "Pending":
        pending = Pending(self._path, layouts)
        self._is_finite = None
        with self.same_sums():
            labels, boundary = self.maps(layouts)
            step = max(1, batch // len(layouts))
            parts = [None] if z is None else uploaded(z, self.device).split(step, dim=1)
            share, draw = self._network(labels, boundary, parts[0], batch)
            shared = share(labels, boundary)
            for part in parts:
                images, edges = draw(shared, part)
                finite = self._is_finite
                with self._copying(images, edges, finite):
                    pending.add(
                        Download(images),
                        None if edges is None else Download(edges),
                        None if finite is None else Download(finite),
                    )
        return pending

    def maps(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor | None]:
        """Classes, N where unlabelled, (L, H, W), and boundaries, (L, 1, H, W), on the device."""
        stacked = np.stack([layout.label for layout in layouts])
        if stacked.dtype != np.uint8:  # torch knows few operations on uint16
            stacked = stacked.astype(np.int32)
        labels = uploaded(torch.from_numpy(stacked), self.device).long()
        labels = labels.masked_fill(labels == self.space.ignore_index, self.space.num_classes)
        if not self.recipe.data.instances:
            return labels, None
        found = np.stack([layout.boundary for layout in layouts if layout.boundary is not None])
        return labels, uploaded(torch.from_numpy(found), self.device)[:, None]

    def draw(self, shared: LayoutFeatures, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Bytes of images, (L, K, H, W, 3), and of edges, (L, K, H, W), on the device."""
        images, edges = self.generator.sample(shared, z)
        maps = None if edges is None else to_bytes(edges.mean(dim=2))
        if not self.compiled:  # a recorded graph gives pictures alone; NaN makes them flat
            self._is_finite = torch.isfinite(images).all()
        return to_bytes(images.permute(0, 1, 3, 4, 2)), maps

    def _network(
        self, labels: Tensor, boundary: Tensor | None, z: Tensor | None, batch: int
    ) -> tuple[Share, Draw]:
        """The two parts of the network, recorded ones where the pass is full.

        What a pass gets may depend on its shape and on nothing that was made before: the same
        sample must have the same bytes in every run.
        """
        num_styles = 1 if z is None else z.shape[1]
        if not (self.compiled and is_full(len(labels), num_styles, batch)):
            return self.generator.prepare, self.draw
        shape = (len(labels), num_styles)
        if shape not in self._recorded:
            share, draw = compiled(self.generator.prepare), compiled(self.draw)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            try:
                self._recorded[shape] = RecordedPass(share, draw, labels, boundary, z, self._pool)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, *compile_failures()) as error:
                raise UserError(
                    f"sampling.compile: the network cannot be compiled here ({first_line(error)}); "
                    "it takes a C compiler; or add --set sampling.compile=false"
                ) from error
        recorded = self._recorded[shape]

        def draw_any(shared: LayoutFeatures, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
            same = own is None or own.shape[1] == num_styles
            return recorded.draw(own) if same else self.draw(shared, own)

        return recorded.share, draw_any

    @contextmanager
    def _copying(self, *tensors: Tensor | None) -> Iterator[None]:
        """Let what is made now be copied while the device goes on."""
        if self._copies is None:
            yield
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            yield
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(self._copies)

    def encode_styles(self, photos: Sequence[Path]) -> Tensor:
        """Styles of photos, the mean that the style encoder gives: (photos, 256).

        Raises:
            UserError: the generator has no style encoder, or a photo cannot be read.
        """
        if self.file.style_encoder is None:
            raise UsageError(
                "--style-images: this run has no style encoder; train one with model.style=true"
            )
        read = (datasets.read_image(Item(path.stem, path, image=path)) for path in photos)
        return torch.stack([self.encode_style(transforms.resize_image(x, self.size)) for x in read])

    def encode_style(self, photo: Pixels) -> Tensor:
        """Style of a photo of the generator's size, (H, W, 3): (256,). There is an encoder."""
        assert self.file.style_encoder is not None
        encoder = self.file.style_encoder.to(self.device)
        image = to_images(torch.tensor(photo).permute(2, 0, 1)[None])
        with torch.inference_mode(), one_thread():
            style = encoder(image.to(self.device))[0][0].float().cpu()
        return style.clone()

    def same_sums(self) -> AbstractContextManager[object]:
        """Where what is computed is the same to the byte in every run."""
        return _one_plan(self.device) if self.device.type == "cuda" else one_thread()


def is_full(num_layouts: int, num_styles: int, batch: int) -> bool:
    """Whether a pass holds as many layouts with so many styles each as the batch lets it."""
    return num_layouts == max(1, batch // num_styles)


class Pending:
    """Pairs that are being made; those of one pass behind those of another."""

    def __init__(self, path: Path, layouts: Sequence[Layout]) -> None:
        self._path, self._layouts = path, layouts
        self._parts: list[tuple[Download, Download | None, Download | None]] = []

    def add(self, images: Download, edges: Download | None, finite: Download | None) -> None:
        """On their way: bytes, (L, k, H, W, 3) and (L, k, H, W); whether numbers were finite."""
        self._parts.append((images, edges, finite))

    def result(self) -> list[list[GeneratedPair]]:
        """Wait for them: K for each layout.

        Raises:
            UserError: the generator is broken: numbers that are not finite, or one flat colour.
        """
        made: list[list[GeneratedPair]] = [[] for _ in self._layouts]
        for images, edges, finite in self._parts:
            if finite is not None and not bool(finite.wait()):
                raise UserError(f"{self._path}: made pictures of NaN or infinity; {_BROKEN}")
            pixels = images.wait().numpy()
            maps = None if edges is None else edges.wait().numpy()
            for layout, of_layout in enumerate(made):
                for k, image in enumerate(pixels[layout]):
                    edge = canny_edges(image) if maps is None else maps[layout, k]
                    of_layout.append(GeneratedPair(image, edge))
        self._refuse_one_color([pair.image for of_layout in made for pair in of_layout])
        return made

    def _refuse_one_color(self, images: Sequence[Pixels]) -> None:
        """Refuse pictures that are all of one colour though a label map has several classes."""
        color = images[0][0, 0]
        if not all(bool((image[-1, -1] == color).all()) for image in images):
            return  # the usual case, seen at once
        if all(bool((image == color).all()) for image in images) and any(
            bool((layout.label != layout.label[0, 0]).any()) for layout in self._layouts
        ):
            raise UserError(
                f"{self._path}: made nothing but the colour {color.tolist()}, of every label map; "
                f"{_BROKEN}"
            )


@contextmanager
def _one_plan(device: torch.device) -> Iterator[None]:
    """On this GPU, convolutions by an algorithm that neither speed nor free memory chooses."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with torch.cuda.device(device):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def to_bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] -> 0..255; what lies outside (I' can) is cut off."""
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round_().to(torch.uint8)
    return pixels.contiguous()
