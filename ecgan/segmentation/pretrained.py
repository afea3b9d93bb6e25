"""Models of transformers from a folder of somebody else's: checked first, built afterwards.

transformers' own loaders are not used for what a folder holds. They ask on the terminal whether to
run its code, follow names in it to the hub (backbones, adapters, attention kernels), unpickle
weights, and build a network of any size before they look at the weights. Here config.json is read
as plain JSON, keys that name code or another model are refused, the network is outlined without
memory and compared with the headers of the weights, and only then built and filled.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ecgan.checkpoint.tensors import NoDraws, refuse_not_finite
from ecgan.errors import UserError, first_line, shown
from ecgan.reading.documents import check_file, read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MOST_CLASSES = 65_535  # of a network; label maps hold no more
_MOST_JSON = 64 << 20  # bytes of a description
_FAULTS = 5  # of a description in one message
_MOST_NUMBER = 1 << 24  # in a configuration: no width or size of a real network is near
_ROOM = 1 << 24  # parameters that a network may have beyond its weights: a new head
_HARMLESS: tuple[object, ...] = (None, False, "", "eager", "sdpa")
_REFUSED = {  # keys of a configuration, at any depth
    "auto_map": "names code of its own, which ecgan never runs",
    "quantization_config": "describes quantised weights; give the plain ones",
    "compression_config": "describes compressed weights; give the plain ones",
    "attn_implementation": "names an attention kernel; leave it out",
    "_attn_implementation": "names an attention kernel; leave it out",
    "_attn_implementation_internal": "names an attention kernel; leave it out",
    "use_kernels": "asks for kernels of the hub; leave it out",
    "kernel_config": "asks for kernels of the hub; leave it out",
    "use_timm_backbone": "takes its backbone from timm; give one with backbone_config",
    "use_pretrained_backbone": "takes its backbone from elsewhere; set it to false",
    "backbone": "names another model; give one with backbone_config",
}
_COUNTS = re.compile("layers|depth|blocks|stages|repeats|cells")  # keys of what has tensors each
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_DTYPES = (None, "float32", "float16", "bfloat16", "float64")


class Model:
    """Description of a model in a folder, and the headers of its weights.

    Args:
        folder: a folder with config.json and model.safetensors.
        place: how the user named it, for messages.
        network: finds a network of transformers by a model_type and its configuration's class; None
            where it is not wanted.
        expected: what is wanted, for the message.

    Raises:
        UserError: files that are missing or damaged, or a description that asks for code, another
            model, or more than the weights are.
    """

    def __init__(
        self,
        folder: Path,
        place: str,
        network: Callable[[str, type[Any]], type[Any] | None],
        expected: str,
    ) -> None:
        self.folder, self.place = folder, place
        values = read_config(folder, place)
        kind = values.get("model_type")
        if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
            raise self._fault(
                f"{CONFIG}: model_type: {shown(kind)}: no model that this transformers "
                f"({transformers.__version__}) knows"
            )
        config_class = transformers.CONFIG_MAPPING[kind]
        self.kind, self.network = kind, network(kind, config_class)
        if self.network is None:
            raise self._fault(f"a {kind} {expected}")
        self.shapes = _shapes(folder, place)
        self._check_description(values)
        with self._explained(), quiet_transformers():
            self.config: Any = config_class.from_dict(values)
            labels = cast("dict[Any, Any]", getattr(self.config, "id2label", None) or {})
            self.names = [str(name) for _, name in sorted(labels.items())]

    def build(self, hint: str, *, new_head: bool = False) -> nn.Module:
        """The network, filled with its weights, as float32.

        Args:
            hint: what to do where weights are missing, for the message.
            new_head: accept weights of another shape and missing ones, which are drawn.

        Raises:
            UserError: weights that are missing, of another shape, or not finite.
        """
        with self._explained(), quiet_transformers():
            self._check_outline(new_head=new_head)
            built, found = cast(Any, self.network).from_pretrained(
                None,
                config=self.config,
                state_dict=self._weights(),
                output_loading_info=True,
                ignore_mismatched_sizes=new_head,
            )
        if not new_head:
            lost = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
            if lost:  # transformers draws them at random
                raise self._fault(f"its weights lack {min(lost)} ({len(lost)} in all): {hint}")
        return cast(nn.Module, built).float()

    def tokens(self, text: str, length: int) -> Tensor:
        """Tokens of a text for a OneFormer, (1, length)."""
        if not any((self.folder / name).is_file() for name in _VOCABULARIES):
            raise self._fault(f"has neither of {', '.join(_VOCABULARIES)}; give the whole folder")
        with self._explained(), quiet_transformers():
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            found = tokenizer(
                text,
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            return cast(Any, found)["input_ids"]

    def _check_description(self, values: dict[str, Any]) -> None:
        faults = [*_config_faults(values, "", len(self.shapes)), *self._label_faults(values)]
        if len(faults) == 1:
            raise self._fault(f"{CONFIG}: {faults[0]}")
        if faults:
            more = [f"and {len(faults) - _FAULTS} more"] if len(faults) > _FAULTS else []
            raise UserError(f"{self.place}: {CONFIG}", [*faults[:_FAULTS], *more])
        for key in ("dtype", "torch_dtype", "_name_or_path"):
            values.pop(key, None)

    def _label_faults(self, values: dict[str, Any]) -> Iterator[str]:
        """Faults of the class list, which transformers would write out in full."""
        most = min(
            MOST_CLASSES, max((max(shape, default=0) for shape in self.shapes.values()), default=0)
        )
        count, labels = values.get("num_labels"), values.get("id2label")
        if count is not None and (type(count) is not int or not 0 < count <= most):
            yield f"num_labels: {shown(count)}; the weights have at most {most}"
        if labels is None:
            return
        if not isinstance(labels, dict) or not _counts_from_0(labels):
            yield f"id2label: {shown(labels)}; expected names by number from 0 on"
        elif len(labels) > most:
            yield f"id2label: {len(labels)} classes; the weights have at most {most}"
        elif not all(isinstance(name, str) for name in labels.values()):
            yield "id2label: a name that is not text"

    def _check_outline(self, *, new_head: bool) -> None:
        """Build the network without memory, and compare it with the weights' headers."""
        with _limited(len(self.shapes)), torch.device("meta"), NoDraws():
            outline = cast(Any, self.network)(self.config)
        own = outline.state_dict()
        wanted = sum(value.numel() for value in outline.parameters())
        buffers = sum(value.numel() for value in outline.buffers())
        stored = sum(_size(shape) for shape in self.shapes.values())
        if max(wanted, buffers) > 2 * stored + _ROOM:
            raise self._fault(
                f"{CONFIG} describes {max(wanted, buffers):,} numbers, the weights have {stored:,};"
                " they do not belong together"
            )
        if new_head:
            return
        for name, value in own.items():
            shape = self.shapes.get(name)
            if shape is not None and shape != tuple(value.shape):
                raise self._fault(
                    f"{CONFIG} describes {name} of {tuple(value.shape)}, the weights have {shape}; "
                    "they do not belong together"
                )

    def _weights(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for file in _files(self.folder, self.place):
            state |= safetensors.torch.load_file(file)
        refuse_not_finite(state, self.place)
        return state

    def _fault(self, reason: str) -> UserError:
        return UserError(f"{self.place}: {reason}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What transformers, safetensors and torch raise for others' folders, in one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # any kind: a type where another was expected, in any module
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise self._fault(f"cannot be loaded as a {self.kind}: {reason}") from error


def read_config(folder: Path, place: str) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: no such file, or no description of a model.
    """
    path = folder / CONFIG
    remedy = "give a model saved by transformers"
    if not path.exists():
        raise UserError(f"{place}: has no {CONFIG}; {remedy}")
    values = read_json(path, "a description of a model", remedy, _MOST_JSON)
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a description of a model: {shown(values)}; {remedy}")
    return cast("dict[str, Any]", values)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off progress bars and advice of transformers: what matters is checked here."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _config_faults(value: object, at: str, tensors: int) -> Iterator[str]:
    """Keys that name code or another model, and numbers that no network has, at any depth.

    Each layer has weights of its own, so there are no more layers than ``tensors``.
    """
    if isinstance(value, dict):
        for key, one in cast("dict[str, object]", value).items():
            place = f"{at}.{key}" if at else key
            reason = _refusal(key, one)
            if reason:
                yield f"{place}: {shown(one)}: {reason}"
            else:
                yield from _config_faults(one, place, tensors)
    elif isinstance(value, list):
        for index, one in enumerate(cast("list[object]", value)):
            yield from _config_faults(one, f"{at}.{index}", tensors)
    elif isinstance(value, int | float):
        most = tensors if type(value) is int and _COUNTS.search(at) else _MOST_NUMBER
        if abs(value) > most:
            yield f"{at}: {shown(value)}: at most {most:,}, by its weights"


def _refusal(key: str, value: object) -> str:
    """Why a key of a configuration is not accepted with this value; empty where it is."""
    if key in _REFUSED and not _is_harmless(value):
        return _REFUSED[key]
    if key in {"dtype", "torch_dtype"} and value not in _DTYPES:
        return "no floating point type; expected float32 or the like"
    if key == "model_type" and "timm" in str(value):
        return "a model of timm; give one of transformers"
    return ""


def _is_harmless(value: object) -> bool:
    return any(value is one or (isinstance(value, str) and value == one) for one in _HARMLESS)


def _counts_from_0(labels: dict[Any, Any]) -> bool:
    return sorted(labels, key=_number) == [str(number) for number in range(len(labels))]


def _number(key: str) -> int:
    return int(key) if key.isdecimal() and key.isascii() and len(key) < 9 else -1


def _files(folder: Path, place: str) -> list[Path]:
    """The safetensors files of a model: one, or those that its index names."""
    if (folder / WEIGHTS).exists():
        check_file(folder / WEIGHTS)
        return [folder / WEIGHTS]
    remedy = f"give a folder with {CONFIG} and {WEIGHTS}"
    if not (folder / INDEX).exists():
        kept = [path.name for path in folder.glob("*.bin")]
        why = f"; {kept[0]} is a pickle, which can run code when it is read" if kept else ""
        raise UserError(f"{place}: has no {WEIGHTS}{why}; {remedy}")
    index = read_json(folder / INDEX, "an index of weights", remedy, _MOST_JSON)
    names = cast(Any, index).get("weight_map") if isinstance(index, dict) else None
    values = list(names.values()) if isinstance(names, dict) else []
    if not values or not all(isinstance(name, str) for name in values):
        raise UserError(f"{folder / INDEX}: has no weight_map; {remedy}")
    files = sorted(set(cast("list[str]", values)))
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX}: {shown(name)}: not a file of this folder; {remedy}")
        check_file(folder / name)
    return [folder / name for name in files]


def _shapes(folder: Path, place: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(folder, place):
        try:
            opened: Any = safetensors.safe_open(path, framework="pt")
            with opened as file:
                for name in file.keys():  # noqa: SIM118
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path}: not a whole safetensors file ({first_line(error)}); it may be truncated: "
                "copy it again"
            ) from error
    return shapes


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


@contextmanager
def _limited(tensors: int) -> Iterator[None]:
    """End the building of a network that registers far more than its weights have."""
    counts = {"parameters": 0, "modules": 0}
    limits = {"parameters": 4 * tensors + 1000, "modules": 8 * tensors + 2000}

    def count(kind: str) -> None:
        counts[kind] += 1
        if counts[kind] > limits[kind]:
            raise ValueError(f"more than {limits[kind]} {kind}, the weights have {tensors} tensors")

    handles = [
        hooks.register_module_parameter_registration_hook(lambda *_: count("parameters")),
        hooks.register_module_module_registration_hook(lambda *_: count("modules")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
