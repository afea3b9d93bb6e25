"""Folders of segmenters that a stranger trained: judges, filters and label generators."""

import functools
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests.attacks.harness import Expect, Try, chosen
from tests.attacks.mutations import (
    NUMBERS,
    PATHS,
    TEXTS,
    TYPES,
    as_folder,
    as_link,
    as_pipe,
    damaged,
    mutated,
    nested,
    places,
    removed,
    replaced,
)
from tests.attacks.world import World

KIND = "segmenter folders"
COMMANDS = ("label generator", "filter", "judge")
ALL = (*COMMANDS, "dry run", "student")
QUICK = ("filter", "filter", "filter", "label generator")
DOCUMENTS = ("config.json", "segmenter.json", "preprocessor_config.json")
WEIGHTS = "model.safetensors"
_TRAIN = (
    *("model.label_generator=segmenter", "model.width=4", "losses.perceptual_network=none"),
    *("data.height=32", "data.width=64", "train.images=2", "train.batch=2"),
    *("train.checkpoint_every=2", "train.preview_every=2"),
)
Change = Callable[[Path], object]
Attack = Callable[..., Try]


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """Everything that takes one: judge, filter, label generator, what a student starts from."""
    attack = functools.partial(_attack, world)
    for command in ALL:
        yield attack(command, "as it is", lambda folder: None, Expect.TAKEN)
    yield from _code(attack)
    yield from _fields(rng, attack, world.segmenter)
    yield from _sizes(rng, attack)
    yield from _texts(rng, attack)
    yield from _weights(rng, attack)
    yield from _files(rng, attack)


def _attack(
    world: World, command: str, name: str, change: Change, expect: Expect = Expect.REFUSED
) -> Try:
    """A command with a copy of a segmenter that ``change`` has altered; every question gets a y."""
    source, generator, data = world.segmenter, world.generator, world.data
    samples = world.samples("webdataset")

    def prepare(folder: Path) -> Sequence[object]:
        own = world.copy(source, folder / "work/segmenter")
        change(own)
        run = world.copy(generator, folder / "work/run/generator.safetensors")
        words: dict[str, Sequence[object]] = {
            "label generator": [
                *("train", "--recipe", "demo", "--data", data, "--out", "out"),
                *(word for value in _TRAIN for word in ("--set", value)),
            ],
            "dry run": [
                *("train", "--recipe", "demo", "--data", data, "--dry-run"),
                *(word for value in _TRAIN for word in ("--set", value)),
            ],
            "student": [
                *("downstream", "--samples", samples, "--reference", data, "--mix", "0"),
                *("--segmenter", "segmenter", "--seeds", "1", "--out", "out"),
                *("--set", "evaluate.downstream_training.images=2"),
                *("--set", "evaluate.downstream_training.batch=2"),
            ],
            "filter": [
                *("augment", "--checkpoint", run, "--labels", data / "labels/val"),
                *("--filter", "segmenter", "--data", data, "--out", "out"),
            ],
            "judge": [
                *("evaluate", "--samples", samples, "--reference", data, "--split", "val"),
                *("--judge", "segmenter", "--out", "out"),
            ],
        }
        return [*words[command], "--device", "cpu", "-q"]

    return Try(KIND, f"{command}: {name}", prepare, expect, writes=("out", "run"), stdin="y\n" * 20)


def _set(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, **values}))

    return change


# Code


class _Payload:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ../executed ../../executed",)


def _with_code(folder: Path, name: str, values: dict[str, object], own: Sequence[str]) -> None:
    _set(name, **values)(folder)
    marker = str(folder.parents[1] / "executed")
    for file in own:
        (folder / file).write_text(f"open({marker!r}, 'w').close()\nraise SystemExit(0)\n")


def _pickled(folder: Path, name: str, *, by_torch: bool, alone: bool) -> None:
    if alone:
        (folder / WEIGHTS).unlink()
    if by_torch:
        torch.save(_Payload(), folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(_Payload()))


def _code(attack: Attack) -> Iterator[Try]:
    """Modules beside the weights, and pickles: none of it may run."""
    auto = {
        "AutoConfig": "code.Config",
        "AutoModel": "code.Net",
        "AutoModelForSemanticSegmentation": "code.Net",
        "AutoImageProcessor": "code.Processor",
    }
    remote = {key: f"attacker/other--{value}" for key, value in auto.items()}
    files = ("code.py", "modeling_segformer.py", "configuration_segformer.py", "sitecustomize.py")
    cases: dict[str, tuple[str, dict[str, object], Expect]] = {
        "auto_map": ("config.json", {"auto_map": auto}, Expect.REFUSED),
        "auto_map of another": ("config.json", {"auto_map": remote}, Expect.REFUSED),
        "auto_map of a new type": (
            "config.json", {"auto_map": auto, "model_type": "custom"}, Expect.REFUSED,
        ),
        "auto_map of the preparation": (
            "preprocessor_config.json", {"auto_map": auto}, Expect.EITHER,
        ),
        "custom_pipelines": (
            "config.json", {"custom_pipelines": {"a": {"impl": "code.P"}}}, Expect.EITHER,
        ),
        "a quantizer": (
            "config.json", {"quantization_config": {"quant_method": "code"}}, Expect.REFUSED,
        ),
        "a kernel": ("config.json", {"_attn_implementation": "attacker/kernel"}, Expect.REFUSED),
        "architectures": ("config.json", {"architectures": ["os.system"]}, Expect.EITHER),
        "trust_remote_code": (
            "config.json", {"trust_remote_code": True, "auto_map": auto}, Expect.REFUSED,
        ),
    }  # fmt: skip
    for name, (file, values, expect) in cases.items():
        for command in ALL if name == "auto_map" else COMMANDS[:2]:
            change = functools.partial(_with_code, name=file, values=values, own=files)
            yield attack(command, f"code: {name}", change, expect)
    for name in ("pytorch_model.bin", "model.ckpt", "training_args.bin", "optimizer.pt"):
        for alone in (True, False):
            for by_torch in (True, False):
                change = functools.partial(_pickled, name=name, by_torch=by_torch, alone=alone)
                text = f"pickle {name}, {'alone' if alone else 'beside'}, torch {by_torch}"
                expect = Expect.REFUSED if alone else Expect.EITHER
                yield attack("filter", text, change, expect)
    for by_torch in (True, False):
        change = functools.partial(_pickled, name=WEIGHTS, by_torch=by_torch, alone=True)
        yield attack("filter", f"pickle as {WEIGHTS}, torch {by_torch}", change)
    adapter = {"base_model_name_or_path": "attacker/model", "peft_type": "LORA"}
    yield attack(
        "filter", "an adapter of another model",
        lambda folder: (folder / "adapter_config.json").write_text(json.dumps(adapter)),
        Expect.EITHER,
    )  # fmt: skip


# Documents


def _written(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def _fields(rng: random.Random, attack: Attack, source: Path) -> Iterator[Try]:
    """Every field of a description once with another value, and drawn ones."""
    values = [*TYPES, *NUMBERS, *TEXTS, *PATHS]
    for name in DOCUMENTS:
        document: Any = json.loads((source / name).read_text())
        for path in [p for p in places(document) if len(p) == 1]:
            value = rng.choice(values)
            changed = functools.partial(_written, name=name, value=replaced(document, path, value))
            where = f"{name}: {path[0]}"
            command = rng.choice(QUICK)
            yield attack(command, f"{where} = {value!r:.60}", changed, Expect.EITHER)
        for path in chosen([p for p in places(document) if len(p) == 1], rng, 5):
            changed = functools.partial(_written, name=name, value=removed(document, path))
            yield attack("filter", f"{name}: {path[0]} is missing", changed, Expect.EITHER)
        for _ in range(10):
            text, other = mutated(document, rng)
            changed = functools.partial(_written, name=name, value=other)
            command = rng.choice(QUICK)
            yield attack(command, f"{name}: {text}", changed, Expect.EITHER)


def _sizes(rng: random.Random, attack: Attack) -> Iterator[Try]:
    """Configurations that ask for more than the weights are, or for other models."""
    asked: dict[str, Sequence[object]] = {
        "num_labels": (10**9, 0, -1, "three"),
        "id2label": ({"0": "a", "9": "b"}, {str(n): "a" for n in range(70_000)}, ["a"]),
        "hidden_sizes": ([10**9] * 4, [1 << 23] * 4, [], "wide", [0, 0, 0, 0]),
        "depths": ([1 << 22] * 4, [10**30] * 4, [-1, None, {}, 2]),
        "num_encoder_blocks": (1 << 20, 10**12, -1),
        "decoder_hidden_size": (1 << 24, 1 << 40, 0),
        "num_attention_heads": ([0] * 4, [1 << 30] * 4),
        "mlp_ratios": ([10**9] * 4, [float("nan")] * 4),
        "patch_sizes": ([10**6] * 4, [0] * 4),
        "sr_ratios": ([0] * 4, [1 << 40] * 4),
        "num_channels": (10**9, 1),
        "hidden_act": ("__import__('os')", "../x", None),
        "model_type": ("timm_backbone", None, ["segformer"], "bert", "mask2former"),
        "backbone": ("attacker/model",),
        "backbone_config": ({"model_type": "timm_backbone", "backbone": "resnet50"},),
        "use_pretrained_backbone": (True,),
        "use_timm_backbone": (True,),
        "torch_dtype": ("int8", "os.system", {"": "float8"}),
    }
    for key, values in asked.items():
        for value in chosen(values, rng, 2):
            command = rng.choice(QUICK)
            change = _set("config.json", **{key: value})
            yield attack(command, f"config.json: {key} := {value!r:.40}", change, Expect.EITHER)
    maps = ([0, 1, 99], [], [-1] * 5, ["0"] * 5, [10**30] * 5, [0] * 100_000)
    for value in maps:
        change = _set("segmenter.json", class_map=value)
        yield attack(rng.choice(COMMANDS), f"class_map := {value!r:.40}", change)
    for key in ("image_mean", "image_std"):
        for value in ([0.5] * 2, "half", [[0.5]] * 3, [float("inf")] * 3, [10**400] * 3, [0] * 3):
            expect = Expect.EITHER if value == [0] * 3 and key == "image_mean" else Expect.REFUSED
            change = _set("preprocessor_config.json", **{key: value})
            yield attack(rng.choice(QUICK), f"{key} := {value!r:.40}", change, expect)


def _texts(rng: random.Random, attack: Attack) -> Iterator[Try]:
    """Descriptions that are none."""
    contents = {
        "nothing": b"",
        "a list": b"[]",
        "null": b"null",
        "torn": b"{",
        "no text": b"\xff\xfe",
        "nested lists": nested(100_000).encode(),
        "nested objects": nested(100_000, dict).encode(),
        "NaN": b'{"a": NaN}',
        "many digits": b'{"a": ' + b"9" * 100_000 + b"}",
        "300 MB": b" " * (300 << 20),
    }
    for name in DOCUMENTS:
        for text, content in contents.items():
            change = functools.partial(_bytes, name=name, content=content)
            yield attack(rng.choice(QUICK), f"{name} is {text}", change)


def _bytes(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


# Weights


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    change(state)
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})


def _damage(folder: Path, name: str, rng: random.Random) -> None:
    (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng)[1])


def _header(folder: Path, text: bytes, length: int | None = None) -> None:
    size = len(text) if length is None else length
    (folder / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text + bytes(64))


def _weights(rng: random.Random, attack: Attack) -> Iterator[Try]:
    def fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
        return lambda state: state[min(state)].fill_(value)

    def every(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
        return lambda state: [t.fill_(value) for t in state.values() if t.is_floating_point()]

    cases: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], Expect]] = {
        "NaN": (fill(float("nan")), Expect.REFUSED),
        "infinite": (fill(float("-inf")), Expect.REFUSED),
        "all NaN": (every(float("nan")), Expect.REFUSED),
        "all 3e38": (every(3e38), Expect.REFUSED),
        "that overflow on a picture": (
            lambda state: [t.mul_(1e30) for t in state.values() if t.is_floating_point()],
            Expect.REFUSED,
        ),
        "all zero": (every(0), Expect.EITHER),
        "missing": (lambda state: state.pop(min(state)), Expect.REFUSED),
        "none": (lambda state: state.clear(), Expect.REFUSED),
        "further": (lambda state: state.update({"../../x": torch.zeros(1)}), Expect.EITHER),
        "complex": (
            lambda state: state.update({min(state): state[min(state)].to(torch.complex64)}),
            Expect.EITHER,
        ),
        "integers": (
            lambda state: state.update({k: v.to(torch.int64) for k, v in state.items()}),
            Expect.EITHER,
        ),
        "of no size": (
            lambda state: state.update({k: v[:0].clone() for k, v in state.items() if v.dim()}),
            Expect.REFUSED,
        ),
        "named by marks": (
            lambda state: state.update({f"\x1b[31m{k}": state.pop(k) for k in [*state]}),
            Expect.REFUSED,
        ),
    }
    for name, (change, expect) in cases.items():
        everywhere = any(word in name for word in ("NaN", "3e38", "overflow"))
        for command in ALL if everywhere else COMMANDS[:1]:
            own = functools.partial(_tensors, change=change)
            yield attack(command, f"weights {name}", own, expect)
    entry = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":%s}}'
    headers = {
        "a header of 2^60 bytes": (b"{}", 1 << 60),
        "a header of 90 MB": (b"{" + b" " * (90 << 20) + b"}", None),
        "a nested header": (nested(100_000, dict).encode(), None),
        "2^60 numbers": (entry % (b"[1152921504606846976]", b"[0,64]"), None),
        "a size that overflows": (entry % (b"[4294967296,4294967296,16]", b"[0,64]"), None),
        "offsets below 0": (entry % (b"[4]", b"[-16,0]"), None),
        "offsets beyond": (entry % (b"[4]", b"[0,1152921504606846976]"), None),
        "names by the thousand": (
            json.dumps(
                {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                 for n in range(200_000)}
            ).encode(), None,
        ),
    }  # fmt: skip
    for name, (text, length) in headers.items():
        own = functools.partial(_header, text=text, length=length)
        yield attack(rng.choice(QUICK), f"weights of {name}", own)
    for number in range(8):
        own = functools.partial(_damage, name=WEIGHTS, rng=random.Random(rng.random()))
        yield attack("filter", f"weights damaged {number}", own, Expect.EITHER)
    for name in (*PATHS, "/dev/zero", "other.bin", 5, None):
        own = functools.partial(_index, name=name)
        yield attack("filter", f"index names {name!r}", own)


def _index(folder: Path, name: object) -> None:
    (folder / WEIGHTS).rename(folder.parent / "other.safetensors")
    _written(folder, f"{WEIGHTS}.index.json", {"weight_map": {"decode_head.classifier.bias": name}})


# Files


def _files(rng: random.Random, attack: Attack) -> Iterator[Try]:
    """What is no file, and names of what is none."""
    for name in (*DOCUMENTS, WEIGHTS):
        required = name in {"config.json", WEIGHTS}
        kinds: dict[str, Change] = {
            "a pipe": functools.partial(_at, name=name, put=as_pipe),
            "a folder": functools.partial(_at, name=name, put=as_folder),
            "/dev/zero": functools.partial(
                _at, name=name, put=functools.partial(as_link, target="/dev/zero")
            ),
            "a link to itself": functools.partial(
                _at, name=name, put=functools.partial(as_link, target=name)
            ),
            "gone": functools.partial(_at, name=name, put=Path.unlink),
        }
        for kind, change in kinds.items():
            expect = Expect.REFUSED if required or kind in {"a pipe", "/dev/zero"} else None
            yield attack(rng.choice(QUICK), f"{name} is {kind}", change, expect or Expect.EITHER)
    hole = functools.partial(_hole, name=WEIGHTS)
    yield attack("filter", f"{WEIGHTS} is 40 GB of holes", hole)


def _at(folder: Path, name: str, put: Change) -> None:
    put(folder / name)


def _hole(folder: Path, name: str) -> None:
    (folder / name).write_bytes((40 << 20).to_bytes(8, "little") + b"{")
    os.truncate(folder / name, 40 << 30)
