"""Schema of a recipe: sections, keys, defaults and checks. Reading is in ``loading``.

The first sentence below a key is its description in ``docs/recipes.md`` and in
``ecgan recipes schema``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from ecgan.reading.names import Name
from ecgan.reading.numbers import Count, Positive, Rate, Seed, Share, Weight
from ecgan.recipe.segmenters import (
    DownstreamTraining,
    FilterTraining,
    JudgeTraining,
    Section,
    SegmenterTraining,
)


class Data(Section, frozen=True):
    """Photos and label maps, and how they are prepared."""

    dataset: Literal["folder", "cityscapes", "ade20k", "coco_stuff"] = "folder"
    """Directory structure below root."""
    root: str | None = None
    """Root folder of the data set; --data overrides it."""
    split: str = "train"
    """Split to train on. Previews and validation use val or, without it, a tenth; see val_by."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of that split, chosen by a hash of the key; smaller ones are part of larger ones."""
    pairs: Positive | None = None
    """Number of pairs of that split, in place of a fraction."""
    draw: Count = 0
    """Number of the draw of these pairs: other numbers, other pairs."""
    draw_by: Literal["hash", "block"] = "hash"
    """How pairs are drawn: by a hash of the key, or a block of neighbours by key, as in a video."""
    images: str | None = None
    """Folder of photos, below root or absolute; default: found by its name."""
    labels: str | None = None
    """Folder of label maps, below root or absolute; default: found by its name."""
    label_suffix: str | None = None
    """End of the names of label maps beyond those of photos; default: found from the names."""
    label_encoding: Literal["auto", "index", "color", "gray", "nearest"] = "auto"
    """What pixels of label maps are: numbers, colours of the class list, numbers as r = g = b, or
    the class of the nearest colour; auto: decided over all files, refused where readings differ."""
    orientation: Literal["auto", "apply", "stored"] = "auto"
    """Whether photos are turned as EXIF says; auto: as sizes of label maps tell, else apply."""
    photo_levels: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Values of black and white in photos of more than 8 bits; default: from all photos."""
    unlabelled: str | None = None
    """Folder of photos without label maps, to learn from too: a segmenter trained on the pairs (see
    model.label_generator_training) labels them once, unsure pixels stay unlabelled."""
    val_by: Literal["hash", "sequence"] | list[str] = "hash"
    """How a tenth is held out: by a hash of the key, by sequence, or beginnings of its keys."""
    height: Positive = 256
    """Height of training crops and samples, pixels."""
    width: Positive = 512
    """Width of training crops and samples, pixels."""
    resize_height: Positive | None = None
    """Height to resize to before a random crop; default: height."""
    resize_width: Positive | None = None
    """Width to resize to before a random crop; default: width."""
    flip: bool = True
    """Mirror half of the training pairs at random."""
    classes: str | list[Any] | None = None
    """Class list: a file, or a list of names or of {id, name, color}; default: beside the data."""
    ignore: Count | None = 255
    """Value of unlabelled pixels where the class list's file gives none; null: there are none."""
    instances: bool = False
    """Condition on instance boundaries too (instanceIds, inst, or instances/ beside labels/)."""
    edges: Literal["canny", "hed", "folder"] = "canny"
    """Source of real edges: Canny on the crop, HED (needs hed_weights), or maps in edges/."""
    hed_weights: str | None = None
    """HDF5 file with HED's weights, for data.edges hed and wherever vgg16_hed is named."""
    workers: Count = 2
    """Loader processes per rank; 0 loads in the training process."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for side in ("height", "width"):
            resized = getattr(self, f"resize_{side}")
            if resized is not None and resized < getattr(self, side):
                least = getattr(self, side)
                raise ValueError(f"resize_{side} ({resized}) must not be below {side} ({least})")
        if self.pairs is not None and self.fraction < 1:
            raise ValueError(f"pairs ({self.pairs}) and fraction ({self.fraction:g}): give one")
        if (levels := self.photo_levels) is not None and levels[0] >= levels[1]:
            raise ValueError(f"photo_levels: white must be above black, got {levels}")
        if self.unlabelled is not None and (self.instances or self.edges == "folder"):
            lacking = "instance maps" if self.instances else "edge maps"
            remedy = "instances: false" if self.instances else "edges: canny"
            raise ValueError(f"unlabelled: photos alone have no {lacking}; needs {remedy}")
        return self

    @property
    def resize_to(self) -> tuple[int, int]:
        """Height and width before the crop."""
        return self.resize_height or self.height, self.resize_width or self.width


class Model(Section, frozen=True):
    """Parts of ECGAN and their width."""

    width: Annotated[int, Field(ge=4)] = 64
    """Channels C of the features F; 64 in the paper. All other widths follow from it."""
    upsamplings: Literal["auto", 5, 6] = "auto"
    """x2 upsamplings of the generator's trunk: 6 start at 1/64 of the size, 5 at 1/32; auto is 6 if
    both sides divide by 64 and the image is wider than high."""
    style: bool = False
    """Style encoder (App. C), for several images per layout."""
    style_encoder: Literal["gaugan", "statistics", "none"] = "gaugan"
    """Network of the style encoder: gaugan is the paper's, statistics sees the means and deviations
    of channels without instance norm, so that light and colours are part of the style; none draws
    styles of training images at random, as OASIS does."""
    style_injection: Literal["start", "blocks", "modulation", "map"] = "start"
    """Places where the style enters the trunk: start is its start alone; blocks adds a scale and a
    shift of every channel of each block's output; modulation is those alone, beside a start made of
    the label map; map is 64 more channels of the label map (OASIS)."""
    output: Literal["refined", "fused"] = "refined"
    """Final image: I'', or its per-pixel fusion with the class-specific image I_g."""
    spectral_norm: Literal["default", "all", "none"] = "default"
    """Spectral normalisation: default is the trunk and the inner layers of D, all is all."""
    edge_generator: bool = True
    """Edge generator Ge."""
    edge_transfer: bool = True
    """Edge transfer Gt, Eq. 1."""
    semantic_preserving: bool = True
    """Semantic preserving module Gs, Eq. 2."""
    class_specific: bool = True
    """Class-specific generation, Eqs. 6-7."""
    contrastive: bool = True
    """Contrastive learning Gc, Eq. 5."""
    segmentation_discriminator: Literal["off", "features", "unet"] = "off"
    """Discriminator that segments pictures into the classes and "made": on features of a frozen
    EfficientNet-Lite0, beside the paper's, for small data sets; or OASIS's U-Net, in its place."""
    label_generator: str = "train"
    """Label generator Gl: off, train (on the real pairs), or a segmenter by path or hub name."""
    label_generator_training: SegmenterTraining = SegmenterTraining()
    """Training of the label generator."""
    label_generator_map: dict[int, int] | None = None
    """For a loaded label generator: its class -> class of the recipe; default: matched by name."""

    @field_validator("label_generator", "segmentation_discriminator", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.edge_transfer and not self.edge_generator:
            raise ValueError("edge_transfer needs edge_generator: Gt passes on Ge's features")
        if self.segmentation_discriminator == "unet" and self.edge_generator:
            raise ValueError(
                "segmentation_discriminator: unet judges no edges; needs edge_generator: false"
            )
        if self.output == "fused" and not self.class_specific:
            raise ValueError("output: fused needs class_specific: it fuses I'' with I_g")
        return self


class Losses(Section, frozen=True):
    """Weights of the terms of Eq. 10, and how each is computed. A weight of 0 removes its term."""

    adversarial: Weight = 1.0
    """Weight lambda_c of the adversarial term."""
    similarity: Weight = 1.0
    """Weight lambda_s of the similarity term, Eq. 3; needs model.label_generator."""
    contrastive: Weight = 1.0
    """Weight lambda_l of the pixel-wise contrastive term, Eq. 5; needs model.contrastive."""
    segmentation_adversarial: Weight = 1.0
    """Weight of the adversarial term of model.segmentation_discriminator."""
    label_mix: Weight = 0.0
    """Weight of OASIS's LabelMix consistency in the loss of the segmentation discriminator unet."""
    class_l1: Weight = 1.0
    """Weight of the class-specific L1 term, Eq. 6; needs model.class_specific."""
    feature_matching: Weight = 10.0
    """Weight lambda_f of the discriminator feature matching term."""
    perceptual: Weight = 10.0
    """Weight lambda_p of the perceptual term; needs losses.perceptual_network."""
    refined: Weight = 2.0
    """Weight lambda of I'' against I' in Eqs. 9 and 10."""
    edge_slope: Weight = 0.0
    """Slope added to that of the edge map's tanh in the backward pass, so that an edge generator
    that has gone black learns on; 0.05 for small data sets, 0: tanh's own. Needs
    model.edge_generator."""
    kl: Weight = 0.05
    """Weight of the style encoder's KL divergence; needs model.style."""
    adversarial_kind: Literal["hinge", "log"] = "hinge"
    """Adversarial loss: hinge, or the logarithms printed in the paper."""
    class_l1_mean: Literal["class", "pixels"] = "class"
    """Mean of Eq. 6: per class and then over classes, or over all pixels."""
    perceptual_network: Literal["vgg19", "vgg16_hed", "efficientnet_lite0", "none"] = "vgg19"
    """Network of the perceptual term: vgg19 (torchvision), vgg16_hed (data.hed_weights),
    efficientnet_lite0 (bundled), or none."""
    vgg19_weights: str | None = None
    """torchvision's vgg19-dcbb9e9d.pth; default: torch's cache (ecgan weights fetch vgg19)."""
    similarity_stride: Literal["auto"] | Positive = "auto"
    """Stride of Eq. 3 in both directions; auto: 1 on CUDA, 4 on CPU."""
    contrastive_stride: Positive = 4
    """Side of the squares over which features are averaged before Eq. 5."""
    contrastive_taps: list[Count] = [0]
    """Features that Eq. 5 compares: 0 is F, k is the trunk's k-th block before its last."""
    contrastive_bank: Count = 0
    """Size of Eq. 5's memory bank, embeddings per class; 0: no bank."""
    temperature: Rate = 0.07
    """Temperature tau of Eq. 5."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.contrastive_taps or max(self.contrastive_taps) > 5:
            raise ValueError("contrastive_taps: one to six numbers from 0 to 5")
        if len(set(self.contrastive_taps)) != len(self.contrastive_taps):
            raise ValueError("contrastive_taps: each tap once")
        return self


class Train(Section, frozen=True):
    """Length, optimiser, precision and outputs of a training. Lengths are in training images."""

    images: Positive = 595_200
    """Length of the training."""
    batch: Positive = 16
    """Images per step, over all ranks."""
    accumulate: Positive = 1
    """Gradient accumulation: number of micro-batches per rank and step."""
    lr_generator: Rate = 1e-4
    """Learning rate of Adam for G (TTUR)."""
    lr_discriminator: Rate = 4e-4
    """Learning rate of Adam for D (TTUR)."""
    lr_decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Final fraction of the training over which both learning rates fall linearly to zero."""
    ema_images: Count = 10_000
    """Half-life of the exponential moving average of G, ramped up from the start; 0: no average."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the networks; bfloat16 is autocast, auto uses it on CUDA. Losses are float32."""
    compile: bool = False
    """Use torch.compile for G and D."""
    checkpointing: Annotated[int, Field(ge=0, le=7)] = 0
    """Activation checkpointing: last blocks of the trunk to recompute in the backward pass. Takes
    less memory and a third more time in these blocks, with the same result. The last block is the
    largest."""
    augment: Literal["none", "diffaugment"] = "none"
    """Augmentation of D's inputs, for sets below 2,000 photos."""
    seed: Seed = 0
    """Seed of all random draws."""
    checkpoint_every: Positive = 50_000
    """Images between checkpoints."""
    preview_every: Positive = 10_000
    """Images between preview grids."""
    evaluate_every: Count = 0
    """Images between scores on val, which choose generator-best.safetensors; 0: never."""
    log_every: Positive = 500
    """Images between lines of metrics.jsonl."""
    keep: Positive = 2
    """Number of newest checkpoints to keep."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must divide by accumulate ({self.accumulate})")
        if self.compile and self.checkpointing:
            raise ValueError("checkpointing: not together with compile, which would break at it")
        return self


class Evaluate(Section, frozen=True):
    """Evaluation of samples."""

    judge: str = "train"
    """Segmenter that labels the samples: train (on the reference), or one by path or hub name."""
    judge_training: JudgeTraining = JudgeTraining()
    """Training of the judge."""
    features: list[
        Literal["efficientnet_lite0", "vgg16_hed", "inception", "inception_clean", "dinov2"]
    ] = ["efficientnet_lite0"]
    """Networks for distances of distributions: inception gives fid and kid, inception_clean the
    same with clean-fid's resize, dinov2 fd_dinov2, efficientnet_lite0 fd_efficientnet_lite0,
    vgg16_hed (data.hed_weights) fd_vgg16_hed, kd_vgg16_hed and style_spread_deep; each gives
    precision and recall."""
    inception_weights: str | None = None
    """Weights pt_inception-2015-12-05 (.pth), for fid and kid; default: torch's cache (ecgan
    weights fetch inception)."""
    dinov2: str | None = None
    """Folder of a DINOv2 of transformers, for fd_dinov2."""
    num_images: Count = 0
    """Number of images to score, the first by key; 0: all."""
    downstream_training: DownstreamTraining = DownstreamTraining()
    """Training of the segmenters of a downstream experiment."""


class Sampling(Section, frozen=True):
    """Generation of data sets."""

    batch: Positive = 8
    """Samples per forward pass; it affects the exact sums, so a data set keeps it."""
    compile: bool | Literal["auto"] = "auto"
    """Use torch.compile and CUDA graphs for full batches; auto: on CUDA, for data sets of 50,000
    samples and more. It affects the exact sums too."""
    samples_per_shard: Positive = 1000
    """Samples per shard."""
    layout_fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    """How label maps of another aspect ratio come to the generator's size: stretched, cut to the
    middle part of its ratio (crop), or whole between unlabelled borders (letterbox)."""
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    """Image codec."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of jpg and webp; jpg is written 4:4:4."""
    license: str = "other"
    """Licence named in the data set card and in the images."""
    style_prior: Literal["normal", "photos"] = "normal"
    """Distribution of the styles: N(0, 1), or a Gaussian fitted to the styles of the photos of the
    training, which a small losses.kl needs."""
    style_temperature: Weight = 1.0
    """Factor of the spread of styles along the principal axes of the prior photos."""
    filter_tolerance: Annotated[float, Field(gt=0)] = 1.25
    """Label filter: a pixel becomes unlabelled if its cross-entropy exceeds this many times the
    mean of its class on real images (FreeMask)."""
    filter_min_kept: Share = 0.5
    """Label filter: a sample is inconsistent if it keeps a smaller share of its labelled pixels;
    --on-inconsistent decides what happens to it."""
    filter_min_class_kept: Share = 0.0
    """Label filter: a class becomes unlabelled in a sample that keeps a smaller share of it."""
    filter_retries: Count = 3
    """Maximum number of further attempts with --on-inconsistent retry."""
    filter_training: FilterTraining = FilterTraining()
    """Training of the label filter's segmenters (--filter train)."""
    balance_max_styles: Positive = 20
    """Maximum number of styles per layout with --balance (FreeMask: 20)."""
    things: list[str] = []
    """Classes whose objects --vary paste may move; default: by their names (car, person, ...)."""


@dataclass(frozen=True)
class Parts:
    """Networks, loss terms and pictures of a recipe."""

    terms: Mapping[str, float]  # weight of each term of Eq. 10 that is summed for G
    pictures: Mapping[str, float]  # weight of each in the adversarial and the matching terms
    edge_generator: bool  # Ge
    edge_transfer: bool  # Gt
    semantic_preserving: bool  # Gs
    label_generator: bool  # Gl
    contrastive: bool  # Gc
    class_specific: bool  # class-specific generation
    fusion: bool  # of the image with the class-specific one
    style_encoder: bool
    discriminator: bool  # D
    segmentation_discriminator: bool  # of N + 1 classes
    perceptual_network: bool  # of the perceptual term

    @property
    def has_image(self) -> bool:
        """Whether there is an image beside the coarse one."""
        return self.semantic_preserving or self.fusion

    @property
    def names(self) -> list[str]:
        """Names of the parts, the paper's where it has one."""
        optional = {
            "Gi": True,
            "Ge": self.edge_generator,
            "Gt": self.edge_transfer,
            "Gs": self.semantic_preserving,
            "Gl": self.label_generator,
            "Gc": self.contrastive,
            "class_specific": self.class_specific,
            "fusion": self.fusion,
            "style_encoder": self.style_encoder,
            "D": self.discriminator,
            "segmentation_discriminator": self.segmentation_discriminator,
            "perceptual_network": self.perceptual_network,
        }
        return ["E", *(name for name, there in optional.items() if there)]


class Recipe(Section, frozen=True):
    """All settings of a run: data, model, losses, training, evaluation and sampling."""

    name: Name = "custom"
    """Default name of outputs."""
    data: Data = Data()
    """Photos and label maps."""
    model: Model = Model()
    """Parts of ECGAN."""
    losses: Losses = Losses()
    """Terms of Eq. 10."""
    train: Train = Train()
    """Training."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""
    sampling: Sampling = Sampling()
    """Generation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sides, stride = (self.data.height, self.data.width), self.losses.contrastive_stride
        if self.model.contrastive and any(side % stride for side in sides):
            raise ValueError(
                f"losses.contrastive_stride: {stride} must divide data.height ({sides[0]}) and "
                f"data.width ({sides[1]})"
            )
        if self.sampling.style_prior == "photos" and self.model.style_encoder == "none":
            raise ValueError("sampling.style_prior: photos needs a model.style_encoder")
        nearest = nearest_size(self.data.height, self.data.width, self.model.upsamplings)
        if nearest != (self.data.height, self.data.width):
            raise ValueError(
                f"the trunk cannot reach height {self.data.height} x width {self.data.width}; "
                f"the nearest size is height {nearest[0]} x width {nearest[1]}"
            )
        return self

    def parts(self) -> Parts:
        """Networks, terms and pictures that this recipe builds."""
        model, terms = self.model, self._terms()
        fusion = model.output == "fused"
        pictures = {
            "edge": 1.0 * model.edge_generator,
            "coarse": 1.0,
            "image": self.losses.refined * (model.semantic_preserving or fusion),
        }
        return Parts(
            terms=terms,
            pictures={name: weight for name, weight in pictures.items() if weight > 0},
            edge_generator=model.edge_generator,
            edge_transfer=model.edge_transfer,
            semantic_preserving=model.semantic_preserving,
            label_generator="similarity" in terms,
            contrastive="contrastive" in terms,
            class_specific="class_l1" in terms or fusion,
            fusion=fusion,
            style_encoder=model.style and model.style_encoder != "none",
            discriminator=bool({"adversarial", "feature_matching"} & terms.keys()),
            segmentation_discriminator="segmentation_adversarial" in terms,
            perceptual_network="perceptual" in terms,
        )

    def _terms(self) -> dict[str, float]:
        model, weights = self.model, self.losses
        candidates = {
            "adversarial": weights.adversarial,
            "feature_matching": weights.feature_matching,
            "segmentation_adversarial": weights.segmentation_adversarial
            * (model.segmentation_discriminator != "off"),
            "perceptual": weights.perceptual * (weights.perceptual_network != "none"),
            "similarity": weights.similarity * (model.label_generator != "off"),
            "contrastive": weights.contrastive * model.contrastive,
            "class_l1": weights.class_l1 * model.class_specific,
            "kl": weights.kl * (model.style and model.style_encoder != "none"),
        }
        return {name: weight for name, weight in candidates.items() if weight > 0}

    def resolved(self, device_type: str) -> Self:
        """Replace what is ``auto`` in training by its value on a device: ``cpu`` or ``cuda``."""
        cuda = device_type == "cuda"
        losses, train = self.losses, self.train
        if losses.similarity_stride == "auto":
            losses = losses.model_copy(update={"similarity_stride": 1 if cuda else 4})
        if train.precision == "auto":
            train = train.model_copy(update={"precision": "bfloat16" if cuda else "float32"})
        return self.model_copy(update={"losses": losses, "train": train})

    def to_yaml(self) -> str:
        """All keys as YAML that ``load_recipe`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def num_upsamplings(height: int, width: int, upsamplings: Literal["auto", 5, 6]) -> int:
    """Number of x2 upsamplings of the trunk for a size; see ``Model.upsamplings``."""
    if upsamplings != "auto":
        return upsamplings
    return 6 if height % 64 == 0 and width % 64 == 0 and width > height else 5


def nearest_size(height: int, width: int, upsamplings: Literal["auto", 5, 6]) -> tuple[int, int]:
    """Nearest size that the trunk reaches: multiples of 32, or of 64 with 6 upsamplings."""
    step = 2 ** num_upsamplings(height, width, upsamplings)

    def near(side: int) -> int:
        return max(step, (side + step // 2) // step * step)

    return near(height), near(width)
