"""What users can have without a generator: pairs that samples have to be better than.

Shape legend:
    H, W  height and width      n  photos without labels      K  classes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from ecgan.data import transforms
from ecgan.data.files.images import read_photo
from ecgan.evaluation.sources import Photos
from ecgan.generation.layout_augmentation import blended, feathered, pasted_scene
from ecgan.generation.paste import Pasted, Scene
from ecgan.labels import Labels, LabelSpace
from ecgan.segmentation.label_filter import KEPT, Confidence, surest

Image = npt.NDArray[np.uint8]  # (H, W, 3)
_DONORS = 3  # photos that things are taken from for one picture


class Pair(NamedTuple):
    """An image with its label map."""

    image: Image
    label: Labels  # (H, W), evaluation ids


class Pairs(Protocol):
    """Pairs by their number."""

    def __len__(self) -> int: ...

    def pair(self, index: int, rng: np.random.Generator) -> Pair:
        """The pair of a number; what is drawn for it is drawn from ``rng``."""
        ...


class Real(Photos):
    """Real pairs: those of a part, whole pictures at the size of the samples."""

    def pair(self, index: int, rng: np.random.Generator) -> Pair:  # noqa: ARG002
        """A photo with its label map."""
        scene = self.scene(index)
        return Pair(scene.image, scene.label)


@dataclass(frozen=True)
class CopyPaste:
    """Real pairs with things of other photos of the part, at the places of ``--vary paste``.

    The label maps change as those of ``ecgan augment --vary paste`` do, but the pixels are the
    photos' own, blended over one pixel at the seam.

    Attributes:
        real: pairs of the part.
        things: ids of the classes that move.
    """

    real: Real
    things: frozenset[int]

    def __len__(self) -> int:
        return len(self.real)

    def pair(self, index: int, rng: np.random.Generator) -> Pair:
        """A pair with up to four things of three other photos."""
        data, indices = self.real.dataset, self.real.indices
        target = data.load_plain(indices[index])
        others = [i for i in range(len(indices)) if i != index]
        drawn = rng.choice(len(others), min(_DONORS, len(others)), replace=False) if others else []
        donors = {one.key: one for one in (data.load_plain(indices[others[int(i)]]) for i in drawn)}
        assert target.image is not None
        scene, pasted = pasted_scene(
            Scene(target.key, target.label, None),
            [Scene(key, donor.label, None) for key, donor in donors.items()],
            data.space,
            things=self.things,
            rng=rng,
        )
        image = target.image.copy()
        for one in pasted:
            photo = donors[one.key].image
            assert photo is not None
            _blend(image, photo, one)
        return Pair(image, data.space.to_evaluation(scene.label))


def _blend(image: Image, photo: Image, pasted: Pasted) -> None:
    """Put an object's own pixels into a photo of the same size."""
    cut = photo[pasted.source]
    height, width = pasted.visible.shape
    cut = transforms.resize_image(np.ascontiguousarray(cut), (height, width))
    image[pasted.box] = blended(image[pasted.box], cut, feathered(pasted.visible))


@dataclass(frozen=True)
class Unlabelled:
    """Photos without labels, at the size of the samples.

    Attributes:
        photos: (n, H, W, 3).
    """

    photos: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, paths: Sequence[Path], size: tuple[int, int]) -> "Unlabelled":
        """Read and resize photos, as real pairs are.

        Raises:
            UserError: one cannot be read.
        """
        read = (transforms.resize_image(read_photo(path), size) for path in paths)
        return cls(np.stack(list(read)))


@dataclass(frozen=True)
class Matched:
    """Real pairs whose photos have the histograms of photos without labels.

    Attributes:
        real: pairs of the part.
        unlabelled: photos whose colours are taken.
    """

    real: Real
    unlabelled: Unlabelled

    def __len__(self) -> int:
        return len(self.real)

    def pair(self, index: int, rng: np.random.Generator) -> Pair:
        """A pair in the colours of a drawn photo."""
        image, label = self.real.pair(index, rng)
        like = self.unlabelled.photos[int(rng.integers(len(self.unlabelled.photos)))]
        return Pair(match_histogram(image, like), label)


def match_histogram(image: Image, like: Image) -> Image:
    """Each channel's values mapped so that their distribution is that of another photo's.

    Value v becomes the value of ``like`` at the same quantile, F_like^-1(F_image(v)), linear
    between the values that occur.
    """
    matched = np.empty_like(image)
    for c in range(image.shape[2]):
        ours, theirs = (
            np.bincount(one[..., c].ravel(), minlength=256).cumsum() / one[..., c].size
            for one in (image, like)
        )
        table = np.interp(ours, theirs, np.arange(256))
        matched[..., c] = np.rint(table).astype(np.uint8)[image[..., c]]
    return matched


@dataclass(frozen=True)
class SelfTrained:
    """Photos without labels, labelled by a student of the real pairs.

    Attributes:
        unlabelled: photos.
        labels: evaluation ids or unlabelled, (n, H, W).
    """

    unlabelled: Unlabelled
    labels: Labels

    @classmethod
    def of(
        cls,
        unlabelled: Unlabelled,
        space: LabelSpace,
        probabilities: Callable[[Image], npt.NDArray[np.float32]],
    ) -> "SelfTrained":
        """Label photos with what a student reads in them.

        Of the pixels that are read as a class the surest 70 % keep it, over all photos, class by
        class, as in a training with ``data.unlabelled``.

        Args:
            unlabelled: photos.
            space: class list.
            probabilities: of each class for a photo, (K, H, W).
        """
        read: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        sureness = Confidence.of(space.num_evaluation_classes)
        for found in map(probabilities, unlabelled.photos):
            read.append((found.argmax(axis=0), found.max(axis=0)))
            sureness.add(*read[-1])
        least = sureness.thresholds(KEPT)
        labels = np.stack([surest(*one, least, space) for one in read])
        return cls(unlabelled, cast(Labels, labels))

    def __len__(self) -> int:
        return len(self.labels)

    def pair(self, index: int, rng: np.random.Generator) -> Pair:  # noqa: ARG002
        """A photo with the labels that were read in it."""
        return Pair(self.unlabelled.photos[index], cast(Labels, self.labels[index]))
