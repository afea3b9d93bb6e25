"""Loading of segmenters: folders of ours, and models of transformers."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.models.pretrained.frozen import IMAGENET_MEAN, IMAGENET_STD
from ecgan.runtime.files import sha256
from ecgan.segmentation.class_mapping import map_by_name, map_by_number
from ecgan.segmentation.segmenter import (
    DESCRIPTION,
    Normalisation,
    Provenance,
    Segmenter,
    Sources,
    quiet_transformers,
)
from ecgan.segmentation.unet import UNET, UNet

_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


def load_segmenter(
    path_or_name: str | Path,
    space: LabelSpace,
    class_map: Mapping[int, int] | None = None,
    device: torch.device | str = "cpu",
    *,
    evaluation: bool = False,
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

    Raises:
        UserError: not found, not a segmenter, or classes that cannot be mapped.
    """
    names = space.names_for_evaluation if evaluation else space.names
    folder, source = _local_folder(str(path_or_name)), str(path_or_name)
    own = _own_description(folder)
    network = _load_unet(folder, source, own) or _load_network(folder, source)
    own_names = [str(name) for _, name in sorted(cast(Any, network).config.id2label.items())]
    if class_map is not None:
        targets = map_by_number(class_map, len(own_names), len(names), source)
    elif own is not None and tuple(own["names"]) == names:
        targets = [int(target) for target in own["class_map"]]
    else:
        targets = map_by_name(own_names, names, source)
    provenance, sources = Provenance("loaded", source), Sources()
    if own is not None:
        provenance = Provenance(**own["provenance"])
        if "sources" in own:  # not in folders of earlier versions
            sources = Sources.from_json(own["sources"])
    segmenter = Segmenter(
        network,
        targets,
        names,
        normalisation=_normalisation(folder),
        provenance=provenance,
        evaluation=evaluation,
        task=_task_tokens(network, folder, own),
        sources=sources,
        loaded_from=source,
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
        if len(unet.config.id2label) != len(names):
            raise UserError(
                f"{source}: has {len(unet.config.id2label)} classes, expected {len(names)}; give "
                "one that was trained on these classes"
            )
        return unet, _normalisation(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(config) not in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            raise UserError(
                f"{source}: a {config.model_type} gives no logits of each pixel; expected "
                "SegFormer, UperNet, BEiT, DPT or the like"
            )
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = transformers.AutoModelForSemanticSegmentation.from_pretrained(
                folder, config=config, local_files_only=True, ignore_mismatched_sizes=True
            )
    except _UNREADABLE as error:
        raise _unreadable(source, error) from None
    return cast(nn.Module, network).float(), _normalisation(folder)


def weights_hash(path_or_name: str | Path) -> str:
    """SHA-256 of the files that :func:`load_for_finetuning` reads.

    Raises:
        UserError: not found.
    """
    folder = _local_folder(str(path_or_name))
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin"})
    return hashlib.sha256(repr([(p.name, sha256(p)) for p in files]).encode()).hexdigest()


def sources_of(path_or_name: str | Path) -> Sources | None:
    """Training pairs of the segmenter in a folder of ours; None where they are not known."""
    own = _own_description(_local_folder(str(path_or_name)))
    return Sources.from_json(own["sources"]) if own is not None and "sources" in own else None


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
    files = ["*.json", "*.safetensors", "*.txt", "*.bin"]
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
            sys.stderr.write(f"downloading {path_or_name} from the Hugging Face hub, once\n")
            return Path(snapshot_download(path_or_name, allow_patterns=files))
    except HFValidationError:
        raise UserError(f"{complaint}: no such folder") from None
    except Exception as error:  # noqa: BLE001  the hub's, httpx's and the system's, by the dozen
        raise UserError(
            f"{complaint} ({type(error).__name__}); offline, give a folder with config.json and "
            "model.safetensors, or train one: model.label_generator: train, evaluate.judge: train"
        ) from None


def _load_unet(folder: Path, source: str, own: dict[str, Any] | None) -> UNet | None:
    """A U-Net that :meth:`Segmenter.save` wrote; None for a folder of transformers."""
    if own is None or own["provenance"]["source"] != UNET:
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = [name for _, name in sorted((int(k), v) for k, v in config["id2label"].items())]
        with torch.random.fork_rng(devices=[]):
            network = UNet(names, pretrained=False)
        network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except _UNREADABLE as error:
        raise _unreadable(source, error) from None
    return network


def _load_network(folder: Path, source: str) -> nn.Module:
    """The model in a folder, by what its config.json says.

    Raises:
        UserError: no model for segmentation, or files that do not fit together.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(config) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            kind: Any = transformers.AutoModelForSemanticSegmentation
        elif type(config) in transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
            kind = transformers.AutoModelForUniversalSegmentation
        else:
            raise UserError(
                f"{source}: a {config.model_type} is not a model for semantic segmentation; "
                "expected SegFormer, UperNet, MaskFormer, Mask2Former, OneFormer or the like"
            )
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            network, found = kind.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
    except _UNREADABLE as error:
        raise _unreadable(source, error) from None
    missing = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if missing:  # transformers draws them at random
        raise UserError(
            f"{source}: its weights lack {missing[0]} ({len(missing)} in all): an encoder without "
            "a segmentation head? Give a model that was trained for segmentation"
        )
    return network.float()


def _unreadable(source: str, error: Exception) -> UserError:
    return UserError(f"{source}: cannot be loaded as a segmenter: {error}")


def _task_tokens(network: nn.Module, folder: Path, own: dict[str, Any] | None) -> Tensor | None:
    """Tokens of a OneFormer's task, which it is told in words."""
    config = cast(Any, network).config
    if config.model_type != "oneformer":
        return None
    if own is not None:
        return torch.tensor(own["task"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(
        "the task is semantic",
        padding="max_length",
        truncation=True,
        max_length=config.task_seq_len,
        return_tensors="pt",
    )
    return cast(Any, tokens)["input_ids"]


def _own_description(folder: Path) -> dict[str, Any] | None:
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def _normalisation(folder: Path) -> Normalisation:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    config = json.loads(path.read_text(encoding="utf-8"))
    return Normalisation(
        tuple(config.get("image_mean") or IMAGENET_MEAN),
        tuple(config.get("image_std") or IMAGENET_STD),
    )
