"""Recipes: everything that decides what a run does, read from YAML and checked. No torch here.

``load_recipe`` takes the name of a recipe that comes with the package, or a file, and overrides
``section.key=value``. ``ecgan recipes schema`` prints every key with its default and description.
"""

import copy
import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ecgan import labels
from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelSpace

Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Every part of a recipe: no unknown keys, no changes once it is read, no inf or NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Data(Section):
    """Which photos and label maps, and how they are prepared."""

    dataset: Literal["folder", "cityscapes", "ade20k", "coco_stuff"] = "folder"
    """Layout of the files below root."""
    root: str | None = None
    """Folder of the data set; --data overrides it."""
    split: str = "train"
    """Split to train on. The split val, or a tenth of the keys held out by hash where there is
    none, serves for previews and validation."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of that split to train on, chosen by a hash of the key: what few labels would give."""
    height: Positive = 256
    """Height of training crops and samples, pixels."""
    width: Positive = 512
    """Width of training crops and samples, pixels."""
    resize_height: Positive | None = None
    """Height that photos and labels are resized to before a random crop; default: height."""
    resize_width: Positive | None = None
    """Width before the random crop; default: width."""
    flip: bool = True
    """Mirror half of the training triples, at random."""
    classes: str | list[Any] | None = None
    """Class list: a JSON file, or a list of names or {id, name, color}; default: the data set's
    own, or classes.json below root."""
    ignore: Count | None = 255
    """Value of unlabelled pixels in label files of a folder data set; null if there are none. A
    classes.json that names its own wins."""
    instances: bool = False
    """Condition on instance boundaries too (Cityscapes instanceIds, COCO-Stuff inst, or a folder
    instances/ beside labels/)."""
    edges: Literal["canny", "hed", "folder"] = "canny"
    """Real edges: Canny of the crop, HED (needs hed_weights), or edge maps in edges/ beside labels/
    of the data set."""
    hed_weights: str | None = None
    """HDF5 file of HED's weights (README, "Pretrained networks"); used by data.edges hed and by
    losses.perceptual_network vgg16_hed."""
    workers: Count = 2
    """Loader processes of each rank; 0 loads in the training process."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for side in ("height", "width"):
            resized = getattr(self, f"resize_{side}")
            if resized is not None and resized < getattr(self, side):
                raise ValueError(
                    f"resize_{side} ({resized}) must not be below {side} ({getattr(self, side)})"
                )
        return self

    @property
    def resize_to(self) -> tuple[int, int]:
        """Height and width before the crop."""
        return self.resize_height or self.height, self.resize_width or self.width


class Model(Section):
    """Which parts of ECGAN are there, and how wide."""

    width: Annotated[int, Field(ge=4)] = 64
    """Channels C of the features F; 64 in the paper. All other widths follow."""
    upsamplings: Literal["auto", 5, 6] = "auto"
    """x2 steps of the trunk: 6 starts at 1/64 of the size, 5 at 1/32; auto is 6 when both sides
    divide by 64 and the image is wider than high."""
    style: bool = False
    """A style encoder (App. C): several images for one layout."""
    output: Literal["refined", "fused"] = "refined"
    """The image that is kept: I'' or its per-pixel fusion with the class-specific I_g."""
    spectral_norm: Literal["default", "all", "none"] = "default"
    """Trunk and inner layers of D; every convolution of G and D; or none."""
    edge_generator: bool = True
    """Ge."""
    edge_transfer: bool = True
    """Gt, Eq. 1."""
    semantic_preserving: bool = True
    """Gs, Eq. 2."""
    class_specific: bool = True
    """Class-specific generation, Eqs. 6-7."""
    contrastive: bool = True
    """Gc, Eq. 5."""
    label_generator: str = "train"
    """Gl: off, train (a SegFormer-B0 on the same real pairs), or a transformers segmenter by local
    path or hub name."""
    label_generator_images: Positive = 20_000
    """Length of training Gl, in images."""
    label_generator_width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels of the first stage of the Gl that is trained here; 32 is SegFormer-B0."""
    label_generator_map: dict[int, int] | None = None
    """For a Gl that is loaded: its class -> class of the recipe; default: by name."""

    @field_validator("label_generator", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as false

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.edge_transfer and not self.edge_generator:
            raise ValueError("edge_transfer needs edge_generator: Gt passes on Ge's features")
        if self.output == "fused" and not self.class_specific:
            raise ValueError("output: fused needs class_specific: it fuses I'' with I_g")
        return self


class Losses(Section):
    """Weights of Eq. 10 and how each term is computed. A weight of 0 leaves its term out."""

    adversarial: Weight = 1.0
    """lambda_c."""
    similarity: Weight = 1.0
    """lambda_s, Eq. 3; needs model.label_generator."""
    contrastive: Weight = 1.0
    """lambda_l, Eq. 5; needs model.contrastive."""
    class_l1: Weight = 1.0
    """Eq. 6; needs model.class_specific."""
    feature_matching: Weight = 10.0
    """lambda_f."""
    perceptual: Weight = 10.0
    """lambda_p; needs losses.perceptual_network."""
    refined: Weight = 2.0
    """lambda of Eqs. 9 and 10: weight of I'' against I'."""
    kl: Weight = 0.05
    """KL divergence of the style encoder; needs model.style."""
    adversarial_kind: Literal["hinge", "log"] = "hinge"
    """Hinge, or the logarithms that the paper prints."""
    class_l1_mean: Literal["class", "pixels"] = "class"
    """Mean per class, then over classes; or over all pixels."""
    perceptual_network: Literal["vgg19", "vgg16_hed", "efficientnet_lite0", "none"] = "vgg19"
    """vgg19 (torchvision), vgg16_hed (data.hed_weights), efficientnet_lite0 (comes with ecgan), or
    none."""
    vgg19_weights: str | None = None
    """torchvision's vgg19-*.pth; default: torch's cache."""
    similarity_stride: Literal["auto"] | Positive = "auto"
    """Eq. 3 on every s-th pixel in each direction; auto: 1 on CUDA, 4 on CPU."""
    contrastive_stride: Positive = 4
    """Eq. 5 on features averaged over s x s pixels."""
    contrastive_taps: list[Count] = [0]
    """Features that Eq. 5 looks at: 0 is F, k the trunk's k-th block before its last."""
    contrastive_bank: Count = 0
    """Embeddings of each class kept from earlier steps; 0: no bank."""
    temperature: Rate = 0.07
    """tau of Eq. 5."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.contrastive_taps or max(self.contrastive_taps) > 5:
            raise ValueError("contrastive_taps: one to six numbers from 0 to 5")
        if len(set(self.contrastive_taps)) != len(self.contrastive_taps):
            raise ValueError("contrastive_taps: each tap once")
        return self


class Train(Section):
    """How long and how fast. Lengths are in images seen by the generator."""

    images: Positive = 595_200
    """Length of the run."""
    batch: Positive = 16
    """Images a step, over all ranks."""
    accumulate: Positive = 1
    """Parts that a rank's batch is split into to save memory."""
    lr_generator: Rate = 1e-4
    """Adam's rate for G (TTUR)."""
    lr_discriminator: Rate = 4e-4
    """Adam's rate for D (TTUR)."""
    lr_decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Last part of the run over which both rates fall linearly to zero."""
    ema_images: Count = 10_000
    """Half-life of the averaged generator, ramped up from the start; 0: no average."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 autocast for the networks; auto: on CUDA. Losses are float32 in any case."""
    compile: bool = False
    """torch.compile for G and D."""
    checkpointing: Annotated[int, Field(ge=0, le=7)] = 0
    """Last blocks of the trunk whose activations are computed again for their gradients: less
    memory, a third more time in them, the same numbers. The last block is the largest."""
    augment: Literal["none", "diffaugment"] = "none"
    """Augmentation of D's inputs, for sets below 2,000 photos."""
    seed: Count = 0
    """Of every random draw."""
    checkpoint_every: Positive = 50_000
    """Images between checkpoints."""
    preview_every: Positive = 10_000
    """Images between preview grids."""
    evaluate_every: Count = 0
    """Images between scores on the validation split, by which generator-best.safetensors is chosen;
    0: never."""
    log_every: Positive = 500
    """Images between lines of metrics.jsonl."""
    keep: Positive = 2
    """Checkpoints kept, the newest."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must divide by accumulate ({self.accumulate})")
        if self.compile and self.checkpointing:
            raise ValueError("checkpointing: not together with compile, which would break at it")
        return self


class Evaluate(Section):
    """How samples are judged."""

    judge: str = "train"
    """train (a segmenter on the reference's train split), or a transformers segmenter by path or
    name."""
    judge_images: Positive = 20_000
    """Length of training the judge, in images."""
    judge_network: Literal["segformer", "unet"] = "segformer"
    """Judge that is trained here: a SegFormer from scratch, as label generators are, or a U-Net on
    EfficientNet-Lite1 with ImageNet's weights (needs ecgan[eval]), which reads better."""
    judge_width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels of the first stage of a SegFormer that is trained as judge."""
    features: list[Literal["efficientnet_lite0", "inception", "inception_clean", "dinov2"]] = [
        "efficientnet_lite0"
    ]
    """Networks for distances of distributions: inception gives fid and kid, inception_clean the
    same with clean-fid's resize, dinov2 fd_dinov2, efficientnet_lite0 fd_efficientnet_lite0; each
    precision and recall."""
    inception_weights: str | None = None
    """pt_inception-2015-12-05 weights (.pth) for fid and kid."""
    dinov2: str | None = None
    """Folder of a DINOv2 of transformers, for fd_dinov2."""
    num_images: Count = 0
    """Images to score, the first by key; 0: all."""
    seed: Count = 1
    """Of the judge's training; not train.seed's default, so that the judge is not Gl again."""
    student_width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels of the first stage of the SegFormers that --downstream trains; 32 is B0."""
    student_images: Positive = 20_000
    """Length of training each of them, in images."""
    student_batch: Positive = 8
    """Images of a step of that training."""


class Sampling(Section):
    """How samples are made and written."""

    batch: Positive = 8
    """Layouts and styles of one forward pass; decides the exact sums, so part of the plan."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile and CUDA graphs for passes that fill the batch; auto: on CUDA, for data sets of
    50,000 samples and more. Decides the exact sums too."""
    samples_per_shard: Positive = 1000
    """Samples in a shard."""
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    """Codec of images."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Of jpg and webp; jpg is written 4:4:4."""
    license: str = "other"
    """Licence that the data set card and the images name."""
    filter_tolerance: Annotated[float, Field(gt=0)] = 1.25
    """Label filter: a pixel whose cross-entropy exceeds this many times its class's mean on real
    images becomes unlabelled (FreeMask)."""
    filter_min_kept: Share = 0.5
    """A sample of which the filter keeps a smaller share of the labelled pixels is inconsistent;
    --on-inconsistent says what becomes of it."""
    filter_min_class_kept: Share = 0.0
    """A class of which the filter keeps a smaller share in a sample becomes unlabelled there."""
    filter_retries: Count = 3
    """Most attempts of --on-inconsistent retry, beside the first."""
    filter_images: Positive = 20_000
    """Length of training each of the filter's segmenters (--filter train), in images."""
    filter_width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels of the first stage of those segmenters; 32 is SegFormer-B0."""
    balance_max_styles: Positive = 20
    """Most styles of one layout when --balance spreads them (FreeMask: 20)."""
    things: list[str] = []
    """Classes whose objects --vary paste may move; default: by their names (car, person, ...)."""


class Recipe(Section):
    """A run: data, model, losses, training, evaluation, sampling."""

    name: str = "custom"
    """What outputs are called by default."""
    data: Data = Data()
    """Photos and label maps."""
    model: Model = Model()
    """Parts of ECGAN."""
    losses: Losses = Losses()
    """Eq. 10."""
    train: Train = Train()
    """Length and speed."""
    evaluate: Evaluate = Evaluate()
    """Judgement."""
    sampling: Sampling = Sampling()
    """Output."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sides, stride = (self.data.height, self.data.width), self.losses.contrastive_stride
        if self.model.contrastive and any(side % stride for side in sides):
            raise ValueError(
                f"losses.contrastive_stride: {stride} must divide data.height ({sides[0]}) and "
                f"data.width ({sides[1]})"
            )
        nearest = nearest_size(self.data.height, self.data.width, self.model.upsamplings)
        if nearest != (self.data.height, self.data.width):
            raise ValueError(
                f"the trunk cannot reach height {self.data.height} x width {self.data.width}; "
                f"the nearest size is height {nearest[0]} x width {nearest[1]}"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved recipe, every key, as YAML that ``load_recipe`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def hash(self) -> str:
        """SHA-256 of the resolved recipe."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()


def num_upsamplings(height: int, width: int, upsamplings: Literal["auto", 5, 6]) -> int:
    """x2 steps of the trunk for a size; see ``Model.upsamplings``."""
    if upsamplings != "auto":
        return upsamplings
    return 6 if height % 64 == 0 and width % 64 == 0 and width > height else 5


def nearest_size(height: int, width: int, upsamplings: Literal["auto", 5, 6]) -> tuple[int, int]:
    """The size nearest to this one that the trunk reaches: multiples of 32, or of 64 with 6."""
    step = 2 ** num_upsamplings(height, width, upsamplings)

    def near(side: int) -> int:
        return max(step, (side + step // 2) // step * step)

    return near(height), near(width)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with the package, comments included.

    Raises:
        UserError: no such recipe.
    """
    path = _recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(
            f"no recipe {name!r}{_suggestion(name, recipe_names())}; there are "
            f"{', '.join(recipe_names())}, or give the path of a .yaml file"
        )
    return path.read_text(encoding="utf-8")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check it.

    Args:
        name_or_path: a name of :func:`recipe_names`, or a YAML file.
        overrides: ``section.key=value``, the value in YAML; later ones win.

    Raises:
        UserError: no such file, not YAML, or faults in it; all of them at once, with suggestions.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        try:
            text, source = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot read the recipe: {error}") from error
    else:
        text, source = recipe_text(name_or_path), f"recipe {name_or_path}"
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise UserError(f"{source}: expected sections data, model, losses, train, ...")
    fields = cast("dict[str, Any]", document)
    fields.setdefault("name", path.stem)
    return parse_recipe(fields, source, overrides)


def parse_recipe(document: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe given as nested dicts; ``overrides`` as for :func:`load_recipe`.

    Raises:
        UserError: unknown keys, wrong types or values; all of them at once.
    """
    document = copy.deepcopy(document)
    for override in overrides:
        _apply_override(document, override)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        found = [dict(e) for e in error.errors()]
        keys = [override.partition("=")[0] for override in overrides]
        from_options = any(
            _place(e).startswith(key) or key.startswith(_place(e)) for e in found for key in keys
        )
        kind = UsageError if from_options else UserError
        raise kind(source, [_fault(e) for e in found]) from None


def label_space(data: Data) -> LabelSpace:
    """The class list that a recipe means: its own, the data set's, or classes.json below root.

    Raises:
        UserError: there is none, or it has faults.
    """
    if isinstance(data.classes, list):
        return labels.from_json(
            {"classes": data.classes, "ignore": data.ignore}, "data.classes of the recipe"
        )
    if data.classes is not None:
        return labels.load_label_space(Path(data.classes))
    if data.dataset != "folder":
        return labels.builtin(data.dataset)
    if data.root is None:
        raise UsageError("data.root is not set: give the folder with --data DIR")
    return labels.load_label_space(Path(data.root) / "classes.json")


def _recipe_folder() -> Path:
    installed = Path(__file__).parent / "_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override}: expected SECTION.KEY=VALUE, e.g. train.batch=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not YAML: {error}") from error
    section = document
    for part in parts[:-1]:
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: {part} is a value, not a section")
        section = cast("dict[str, Any]", inner)
    section[parts[-1]] = value


def _place(error: dict[str, Any]) -> str:
    """The key that is at fault, as the user writes it."""
    # A union names its failed branch in the location; the user's key is what comes before.
    return ".".join(
        str(part)
        for part in error["loc"]
        if not str(part).startswith(("literal[", "constrained", "function-", "list["))
    )


def _fault(error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    place = _place(error)
    if error["type"] == "extra_forbidden":
        return f"{place}: no such key{_suggestion(location[-1], _keys(location[:-1]))}"
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}" if place else str(error["ctx"]["error"])
    return f"{place}: {error['msg']}, got {error['input']!r}"


def _keys(location: Sequence[str]) -> list[str]:
    fields = Recipe.model_fields
    for part in location:
        annotation = fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        fields = annotation.model_fields
    return list(fields)


def _suggestion(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
