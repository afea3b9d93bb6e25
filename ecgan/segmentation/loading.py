"""Loading of segmenters: folders of ours, and models of transformers."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, cast

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ecgan.checkpoint.tensors import read_safetensors
from ecgan.errors import UserError, first_line, shown
from ecgan.labels import LabelSpace
from ecgan.models.pretrained.frozen import IMAGENET_MEAN, IMAGENET_STD
from ecgan.reading.documents import check_file, checked, read_json
from ecgan.runtime.files import sha256
from ecgan.runtime.timing import counted, say
from ecgan.segmentation.class_mapping import UNMAPPED, map_by_name, map_by_number
from ecgan.segmentation.pretrained import MOST_CLASSES, Model, read_config
from ecgan.segmentation.segmenter import (
    DESCRIPTION,
    Normalisation,
    Provenance,
    Segmenter,
    Sources,
)
from ecgan.segmentation.unet import UNET, UNet

_MOST_JSON = 64 << 20  # bytes of a description
_REMEDY = "give the folder as it was saved"
_HEADLESS = "an encoder without a segmentation head? Give a model that was trained for segmentation"
_BY_QUERIES = {"eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer"}  # universal ones
_Number = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Pairs(BaseModel):
    keys: list[str]
    labels: list[str]


class _Origin(BaseModel):
    kind: str
    source: str
    width: _Number = 0
    images: _Number = 0
    data: str = ""
    train_loss: float | None = None


class _Description(BaseModel):
    """``segmenter.json``, which :meth:`Segmenter.save` writes; further keys are let be."""

    model_config = ConfigDict(strict=True, frozen=True)

    class_map: list[int]
    names: Annotated[list[str], Field(min_length=1, max_length=MOST_CLASSES)]
    provenance: _Origin
    task: Annotated[list[list[_Number]], Field(min_length=1, max_length=1)] | None = None
    sources: _Pairs | None = None  # not in folders of earlier versions

    @model_validator(mode="after")
    def _check_map(self) -> Self:
        count = len(self.names)
        if not all(UNMAPPED <= target < count for target in self.class_map):
            raise ValueError(f"class_map: expected numbers from -1 to {count - 1}")
        if all(target == UNMAPPED for target in self.class_map):
            raise ValueError("class_map: maps no class")
        return self


_Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Preparation(BaseModel):
    """The part of ``preprocessor_config.json`` that is read."""

    image_mean: _Triple | None = None
    image_std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | (
        None
    ) = None


def load_segmenter(
    path_or_name: str | Path,
    space: LabelSpace,
    class_map: Mapping[int, int] | None = None,
    device: torch.device | str = "cpu",
    *,
    evaluation: bool = False,
    role: str = "segmenter",
) -> Segmenter:
    """Load a segmenter of ours or of transformers.

    Args:
        path_or_name: a local folder, or a name on the Hugging Face hub; a name is looked up in the
            local cache first.
        space: the recipe's classes.
        class_map: the network's class -> class of the recipe; default: the map that our own
            folders carry, else by name.
        device: device of the segmenter.
        evaluation: map to evaluation ids instead of input ids.
        role: what it is used as, for messages.

    Raises:
        UserError: not found, not a segmenter, or classes that cannot be mapped.
    """
    names = space.names_for_evaluation if evaluation else space.names
    folder, source = _local_folder(str(path_or_name)), str(path_or_name)
    own = _own_description(folder)
    network, own_names, task = _load_unet(folder, source, own) or _load_network(folder, source, own)
    if class_map is not None:
        targets = map_by_number(class_map, len(own_names), len(names), source)
    elif own is not None and tuple(own.names) == names:
        targets = own.class_map
        if len(targets) != len(own_names):
            raise UserError(
                f"{folder / DESCRIPTION}: class_map: {len(targets)} numbers, the network has "
                f"{len(own_names)} classes; {_REMEDY}"
            )
    else:
        targets = map_by_name(own_names, names, source)
    provenance, sources = Provenance("loaded", source), Sources()
    if own is not None:
        provenance, sources = Provenance(**own.provenance.model_dump()), _sources(own) or sources
    segmenter = Segmenter(
        network,
        targets,
        names,
        normalisation=_normalisation(folder),
        provenance=provenance,
        evaluation=evaluation,
        task=task,
        sources=sources,
        loaded_from=source,
        role=role,
    )
    return segmenter.to(device)


def load_for_finetuning(
    path_or_name: str | Path, names: Sequence[str], seed: int
) -> tuple[nn.Module, Normalisation]:
    """Network to fine-tune, with the preparation of images that it expects.

    A head of another number of classes is drawn anew; one of the same number is kept, whatever its
    classes are called.

    Args:
        path_or_name: a local folder, or a name on the Hugging Face hub.
        names: names of the classes to learn.
        seed: seed of a new head.

    Raises:
        UserError: not found, or no network that gives logits of each pixel.
    """
    folder, source = _local_folder(str(path_or_name)), str(path_or_name)
    unet = _load_unet(folder, source, _own_description(folder))
    if unet is not None:
        if len(unet[1]) != len(names):
            raise UserError(
                f"{source}: has {counted(len(unet[1]), 'class', 'classes')}, expected {len(names)}"
                "; give one that was trained on these classes"
            )
        return unet[0], _normalisation(folder)
    model = Model(
        folder,
        source,
        _pixel_classifier,
        "gives no logits of each pixel; expected SegFormer, UperNet, BEiT, DPT or the like",
    )
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model.build(_HEADLESS, new_head=True), _normalisation(folder)


def weights_hash(path_or_name: str | Path) -> str:
    """SHA-256 of the files that :func:`load_for_finetuning` reads.

    Raises:
        UserError: not found.
    """
    folder = _local_folder(str(path_or_name))
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors"})
    for path in files:
        check_file(path)
    return hashlib.sha256(repr([(p.name, sha256(p)) for p in files]).encode()).hexdigest()


def sources_of(path_or_name: str | Path) -> Sources | None:
    """Training pairs of the segmenter in a folder of ours; None where they are not known."""
    own = _own_description(_local_folder(str(path_or_name)))
    return None if own is None else _sources(own)


def check_place(path_or_name: str, option: str) -> None:
    """Refuse a segmenter that is neither a folder nor a name of the Hugging Face hub.

    Nothing is downloaded. A name that is not in the local cache passes where the hub may be asked.

    Args:
        path_or_name: as for :func:`load_segmenter`.
        option: key of the recipe that names it.

    Raises:
        UserError: no such folder or name; with what works offline.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    if Path(path_or_name).is_dir():
        _local_folder(path_or_name)
        return
    reason = "no such folder"
    try:
        huggingface_hub.snapshot_download(path_or_name, local_files_only=True)
    except HFValidationError:
        pass
    except OSError:  # not in the cache
        if path_or_name.count("/") <= 1 and not huggingface_hub.constants.HF_HUB_OFFLINE:
            return
        reason = "no such folder, and not in the local cache of the Hugging Face hub"
    else:
        return
    raise UserError(
        f"{option}: {path_or_name}: {reason}; give a folder with config.json and "
        f"model.safetensors; without one, --set {option}=train trains one on your pairs, offline"
    )


def _local_folder(path_or_name: str) -> Path:
    """The folder itself, or the hub's files in the local cache, downloaded if need be.

    Raises:
        UserError: neither a folder nor a model of the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    folder = Path(path_or_name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: has no config.json; expected a model saved by transformers")
        return folder
    files = ["*.json", "*.safetensors", "*.txt"]
    complaint = (
        f"segmenter {path_or_name!r}: neither a local folder nor a model that the Hugging Face hub "
        "could give"
    )
    try:
        try:
            return Path(
                snapshot_download(path_or_name, allow_patterns=files, local_files_only=True)
            )
        except OSError:  # not in the cache
            say(f"downloading {path_or_name} from the Hugging Face hub, once")
            return Path(snapshot_download(path_or_name, allow_patterns=files))
    except HFValidationError:
        raise UserError(f"{complaint}: no such folder") from None
    except Exception as error:  # noqa: BLE001  the hub's, httpx's and the system's, by the dozen
        raise UserError(
            f"{complaint} ({type(error).__name__}); offline, give a folder with config.json and "
            "model.safetensors, or train one: model.label_generator: train, evaluate.judge: train"
        ) from None


_Loaded = tuple[nn.Module, Sequence[str], Tensor | None]  # network, its classes, a OneFormer's task


def _load_unet(folder: Path, source: str, own: _Description | None) -> _Loaded | None:
    """A U-Net that :meth:`Segmenter.save` wrote; None for a folder of transformers.

    Raises:
        UserError: files that are damaged, or do not fit each other.
    """
    if own is None or own.provenance.source != UNET:
        return None
    labels = read_config(folder, source).get("id2label")
    state = read_safetensors(folder / "model.safetensors")
    head = state.get("head.weight")
    if not isinstance(labels, dict) or head is None or len(labels) != len(head):
        raise UserError(
            f"{source}: config.json: id2label: {shown(labels)}; expected the names of "
            f"{'its' if head is None else len(head)} classes; {_REMEDY}"
        )
    names = [str(labels.get(str(number))) for number in range(len(labels))]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = UNet(names, pretrained=False)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(f"{source}: its weights do not fit: {first_line(error)}") from None
    return network.float(), names, None


def _load_network(folder: Path, source: str, own: _Description | None) -> _Loaded:
    """The model in a folder, by what its config.json says.

    Raises:
        UserError: no model for segmentation, or files that do not fit together.
    """
    model = Model(
        folder,
        source,
        _any_segmenter,
        "is not a model for semantic segmentation; expected SegFormer, UperNet, MaskFormer, "
        "Mask2Former, OneFormer or the like",
    )
    with torch.random.fork_rng(devices=[]):
        network = model.build(_HEADLESS)
    if model.kind != "oneformer":
        return network, model.names, None
    length = model.config.task_seq_len
    if own is None:  # it is told its task in words
        return network, model.names, model.tokens("the task is semantic", length)
    if own.task is None or len(own.task[0]) != length:
        raise UserError(f"{folder / DESCRIPTION}: task: expected {length} tokens; {_REMEDY}")
    return network, model.names, torch.tensor(own.task)


def _pixel_classifier(_: str, config: type[Any]) -> type[Any] | None:
    return cast(Any, transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING).get(config, None)


def _any_segmenter(kind: str, config: type[Any]) -> type[Any] | None:
    if kind in _BY_QUERIES:
        return cast(Any, transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING).get(config, None)
    return _pixel_classifier(kind, config)


def _own_description(folder: Path) -> _Description | None:
    path = folder / DESCRIPTION
    if not path.exists():
        return None
    value = read_json(path, "a description of a segmenter", _REMEDY, _MOST_JSON)
    return checked(_Description, value, str(path), _REMEDY)


def _sources(own: _Description) -> Sources | None:
    if own.sources is None:
        return None
    return Sources(frozenset(own.sources.keys), frozenset(own.sources.labels))


def _normalisation(folder: Path) -> Normalisation:
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    value = read_json(path, "a preparation of images", _REMEDY, _MOST_JSON)
    found = checked(_Preparation, value, str(path), _REMEDY)
    return Normalisation(
        tuple(found.image_mean or IMAGENET_MEAN), tuple(found.image_std or IMAGENET_STD)
    )
