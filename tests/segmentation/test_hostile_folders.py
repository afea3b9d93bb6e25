"""Segmenter folders of somebody else: one sentence, no code run, no question, no other model."""

import builtins
import json
import resource
import shutil
import socket
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ecgan.segmentation.loading import load_for_finetuning, load_segmenter
from tests.helpers.errors import message
from tests.helpers.segmenters import overflow, save_segmenter
from tests.segmentation.test_segmenter import STREET, small_swin, space_of, universal

SPACE = space_of(*STREET)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("whole") / "s", STREET)


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy to damage; whatever asks a question or opens a connection fails the test."""

    def refuse(*_, **__):
        pytest.fail("asked a question, or opened a connection")

    monkeypatch.setattr(builtins, "input", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return shutil.copytree(whole, tmp_path / "s")


def change(path, **values):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | values))


def refused(folder, *words):
    start = time.monotonic()
    text = message(load_segmenter, folder, SPACE, evaluation=True)
    assert time.monotonic() - start < 5
    for word in words:
        assert word in text, text
    assert len(text.splitlines()) <= 7
    assert max(map(len, text.splitlines())) < 700
    return text


@pytest.mark.parametrize("model_type", ["segformer", "custom"])
def test_code_in_a_folder_is_never_run(folder, model_type):
    change(
        folder / "config.json",
        model_type=model_type,
        auto_map={
            "AutoConfig": "code.Config",
            "AutoModelForSemanticSegmentation": "code.Net",
        },
    )
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    refused(folder, "config.json", "code" if model_type == "segformer" else "'custom'")
    assert not (folder / "ran").exists()
    message(load_for_finetuning, folder, STREET, 0)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("attn_implementation", "attacker/kernel"),
        ("_attn_implementation", "flash_attention_2"),
        ("use_timm_backbone", True),
        ("use_pretrained_backbone", True),
        ("backbone", "attacker/model"),
        ("dtype", "int8"),
        ("torch_dtype", {"": "float8"}),
        ("model_type", None),
        ("model_type", ["segformer"]),
        ("model_type", "timm_backbone"),
        ("num_labels", 10**9),
        ("num_labels", "three"),
        ("id2label", {"0": "a", "9": "b"}),
        ("id2label", ["a", "b"]),
        ("id2label", 7),
        ("id2label", True),
        ("id2label", "ab"),
        ("id2label", {"0": ["a"]}),
        ("id2label", {str(i): "a" for i in range(70_000)}),
        ("hidden_sizes", [10**9, 1, 1, 1]),
        ("hidden_sizes", [1 << 23, 1 << 22, 1 << 22, 1 << 22]),
        ("hidden_sizes", "wide"),
        ("hidden_sizes", []),
        ("depths", [1 << 22] * 4),
        ("depths", [-1, None, {}, 2]),
        ("num_encoder_blocks", 1 << 20),
        ("decoder_hidden_size", 1 << 24),
        ("decoder_hidden_size", 72),
        ("num_attention_heads", [0, 0, 0, 0]),
        ("hidden_act", "__import__('os')"),
        ("strides", {"a": 1}),
        ("backbone_config", {"model_type": "timm_backbone", "backbone": "resnet50"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configurations_that_ask_for_too_much_or_for_others(folder, key, value):
    change(folder / "config.json", **{key: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB


@pytest.mark.parametrize("name", ["config.json", "segmenter.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"7"]
)
def test_damaged_descriptions(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, name)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("segmenter.json", "class_map", [0, 1, 99]),
        ("segmenter.json", "class_map", [0, 1]),
        ("segmenter.json", "class_map", [-1, -1, -1]),
        ("segmenter.json", "class_map", ["0", "1", "2"]),
        ("segmenter.json", "names", "sky"),
        ("segmenter.json", "provenance", {"kind": "loaded"}),
        ("segmenter.json", "provenance", None),
        ("segmenter.json", "sources", {"keys": 5, "labels": []}),
        ("preprocessor_config.json", "image_mean", [0.5, 0.5]),
        ("preprocessor_config.json", "image_mean", "half"),
        ("preprocessor_config.json", "image_std", [0, 0.5, 0.5]),
        ("preprocessor_config.json", "image_std", [[0.5], 0.5, 0.5]),
    ],
)
def test_fields_of_descriptions(folder, name, key, value):
    change(folder / name, **{key: value})
    refused(folder, name, "sources" if key == "sources" else key)


def test_only_safetensors_are_read(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, "has no model.safetensors", "pickle")


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/a.safetensors", "a.bin", 5])
def test_an_index_of_weights_stays_in_its_folder(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"weight_map": {"decode_head.classifier.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model.safetensors.index.json")


def test_weights_in_several_files_are_read(folder, whole):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_segmenter(folder, SPACE, evaluation=True)
    assert loaded.hash == load_segmenter(whole, SPACE, evaluation=True).hash


def test_an_adapter_in_the_folder_is_not_followed(folder):
    adapter = {"base_model_name_or_path": "attacker/model", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert load_segmenter(folder, SPACE, evaluation=True).names == STREET


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    state = load_file(folder / "model.safetensors")
    state["decode_head.classifier.bias"][1] = value
    save_file(state, folder / "model.safetensors")
    word = "NaN" if np.isnan(value) else "an infinite value"
    refused(folder, f"decode_head.classifier.bias: {word}", "give another")


def test_a_backbone_of_the_hub_is_not_followed(folder, tmp_path):
    swin = small_swin().to_dict() | {"use_pretrained_backbone": True}
    shutil.rmtree(folder)
    universal("mask2former", folder)
    change(folder / "config.json", backbone_config=swin)
    refused(folder, "backbone_config.use_pretrained_backbone")
    change(folder / "config.json", backbone_config=None, backbone="attacker/model")
    refused(folder, "backbone: 'attacker/model'")


def test_tokens_of_a_oneformer_come_from_the_folder_alone(folder):
    shutil.rmtree(folder)
    universal("oneformer", folder)
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"})
    )
    (folder / "code.py").write_text("raise SystemExit(9)\n")
    (folder / "vocab.json").unlink(missing_ok=True)
    (folder / "merges.txt").unlink(missing_ok=True)
    refused(folder, "neither of tokenizer.json, vocab.json")


@pytest.mark.parametrize("evaluation", [True, False])
def test_predictions_that_overflow_are_refused_with_folder_and_role(folder, evaluation):
    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    whole = load_segmenter(folder, SPACE, evaluation=evaluation, role="judge")
    assert whole.predict(images).shape == (1, 64, 64)
    found = load_segmenter(overflow(folder), SPACE, evaluation=evaluation, role="judge")
    text = message(found.predict, images)
    assert text.startswith(f"judge {folder}: its predictions are NaN or infinite")
    assert "give another" in text
    with torch.inference_mode():
        assert message(found.probabilities, images) == text
    assert found.probabilities(images).isnan().all()  # with a gradient, training looks at its terms
