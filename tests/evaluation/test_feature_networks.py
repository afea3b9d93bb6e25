"""Networks of features: what they give, what stands for them in a cache, what is refused."""

import os

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from ecgan.errors import UserError
from ecgan.evaluation import feature_networks as features
from ecgan.metrics import distribution
from ecgan.metrics.distribution import pairwise_distances
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.models.pretrained.hed import Vgg16Hed

CPU = torch.device("cpu")


def networks(*wanted, inception_weights=None, dinov2=None, hed_weights=None):
    return features.feature_networks(
        wanted,
        inception_weights=inception_weights,
        dinov2=dinov2,
        hed_weights=hed_weights,
        device=CPU,
    )


def images(n=2, height=40, width=56):
    return torch.rand(n, 3, height, width) * 2 - 1


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file as pytorch-fid's, of random numbers."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        loaded = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
        patch.setattr(loaded, lambda *_, **__: {})
        load = torch.nn.Module.load_state_dict
        patch.setattr(
            torch.nn.Module, "load_state_dict", lambda self, state: load(self, state, strict=False)
        )
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_lite0_is_the_network_of_validation():
    found, skipped = networks("efficientnet_lite0")
    x = images()
    assert torch.equal(found["efficientnet_lite0"](x), EfficientNetLite0().embed(x))
    assert found["efficientnet_lite0"].dim == 1280
    assert skipped == {}


def test_what_has_no_weights_is_skipped_with_its_reason():
    found, skipped = networks("inception", "inception_clean", "dinov2", "vgg16_hed")
    assert found == {}
    assert set(skipped) == {
        *("fid", "kid", "precision_inception", "recall_inception"),
        *("fid_clean", "kid_clean", "precision_inception_clean", "recall_inception_clean"),
        *("fd_dinov2", "precision_dinov2", "recall_dinov2"),
        *("fd_vgg16_hed", "kd_vgg16_hed", "precision_vgg16_hed", "recall_vgg16_hed"),
    }
    assert "data.hed_weights is not set" in skipped["kd_vgg16_hed"]
    assert "evaluate.inception_weights is not set" in skipped["kid_clean"]
    assert "evaluate.dinov2 is not set" in skipped["fd_dinov2"]


def test_vgg16_is_means_of_heds_deep_maps(hed_file):
    network = networks("vgg16_hed", hed_weights=str(hed_file))[0]["vgg16_hed"]
    x = images()
    *_, relu3, relu4, relu5 = Vgg16Hed(hed_file)(x)
    pooled, shown = network.with_map(x)
    assert torch.equal(shown, relu3)
    expected = torch.cat([relu4.mean(dim=(2, 3)) / 6.5, relu5.mean(dim=(2, 3)) / 2.5], dim=1)
    torch.testing.assert_close(pooled, expected)
    assert torch.equal(network(x), pooled)
    with pytest.raises(UserError, match=r"data\.hed_weights: nowhere\.h5: no such file"):
        networks("vgg16_hed", hed_weights="nowhere.h5")


def test_vgg16_of_hed_has_features_of_order_one(camvid):
    path = os.environ.get("ECGAN_HED_WEIGHTS")
    if not path:
        pytest.skip("ECGAN_HED_WEIGHTS does not name HED's weights")
    photos = sorted((camvid / "images" / "test").iterdir())[::40]
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB").resize((128, 96))) for p in photos])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    network = networks("vgg16_hed", hed_weights=path)[0]["vgg16_hed"]
    pooled = network(x)
    assert pooled.shape == (len(photos), network.dim)
    for half in pooled.split(512, dim=1):
        assert 0.7 < half.square().mean().sqrt() < 1.4


def small_dinov2(folder, **changes):
    config = transformers.Dinov2Config(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        **changes,
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_looks_at_imagenets_normalisation(tmp_path):
    folder = small_dinov2(tmp_path / "dino")
    network = networks("dinov2", dinov2=str(folder))[0]["dinov2"]
    x = images(2, 224, 224)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    model = transformers.Dinov2Model.from_pretrained(folder)
    with torch.no_grad():
        expected = model(pixel_values=((x + 1) / 2 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    assert network.dim == 12
    # Of other sizes: Pillow's bicubic filter, which antialiases, cut off between black and white
    x = images(1, 300, 120)
    resized = np.stack(
        [
            np.asarray(Image.fromarray(c).resize((224, 224), Image.Resampling.BICUBIC))
            for c in x[0].numpy()
        ]
    ).clip(-1, 1)
    torch.testing.assert_close(
        network(x), network(torch.from_numpy(resized)[None]), rtol=1e-3, atol=1e-4
    )
    # In single precision, also where the folder is in half
    model.half().save_pretrained(tmp_path / "half")
    half = networks("dinov2", dinov2=str(tmp_path / "half"))[0]["dinov2"]
    assert half(x).dtype == torch.float32


def test_hashes_tell_weights_and_networks_apart(tmp_path):
    one = networks("dinov2", dinov2=str(small_dinov2(tmp_path / "a")))[0]["dinov2"]
    other = networks("dinov2", dinov2=str(small_dinov2(tmp_path / "b")))[0]["dinov2"]
    again = networks("dinov2", dinov2=str(tmp_path / "a"))[0]["dinov2"]
    assert one.hash == again.hash != other.hash
    lite = networks("efficientnet_lite0")[0]["efficientnet_lite0"]
    assert lite.hash != features.StageFeatures().hash  # the same weights, other features


def test_wrong_dinov2_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.dinov2: .*nowhere: no config\.json"):
        networks("dinov2", dinov2=str(tmp_path / "nowhere"))
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="a vit is not a dinov2"):
        networks("dinov2", dinov2=str(tmp_path / "vit"))
    broken = small_dinov2(tmp_path / "broken") / "model.safetensors"
    weights = load_file(broken)
    weights.pop("layernorm.bias")
    save_file(weights, broken, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"broken: its weights lack layernorm\.bias \(1 in all\)"):
        networks("dinov2", dinov2=str(tmp_path / "broken"))
    broken.write_bytes(b"0" * 100)
    with pytest.raises(UserError, match=r"broken/model\.safetensors: not a whole"):
        networks("dinov2", dinov2=str(tmp_path / "broken"))


@pytest.mark.slow
def test_inception_is_torch_fidelitys_and_its_clean_form_differs_by_the_resize(inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    found, _ = networks("inception", "inception_clean", inception_weights=str(inception_weights))
    theirs = FeatureExtractorInceptionV3("x", ["2048"], str(inception_weights))
    pixels = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)
    x = pixels.float() / 127.5 - 1
    (expected,) = theirs(pixels)
    assert torch.equal(found["inception"](x), expected)
    # Of that size already: neither resizes
    spread = float(expected.std())
    torch.testing.assert_close(found["inception_clean"](x), expected, rtol=0, atol=1e-4 * spread)
    small = images(2, 40, 56)
    assert not torch.allclose(found["inception"](small), found["inception_clean"](small))
    assert found["inception"].hash != found["inception_clean"].hash


def test_clean_resize_is_pillows_on_floats_between_black_and_white():
    channel = np.random.default_rng(0).integers(0, 256, (40, 56)).astype(np.float32)
    expected = np.asarray(Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC))
    resized = features.clean_resize(channel)
    inside = (expected > 0) & (expected < 255)
    assert 0.9 < inside.mean() < 1
    assert np.array_equal(resized[inside], expected[inside])
    assert set(np.unique(resized[~inside])) == {0, 255}
    assert resized.shape == (299, 299)
    # An image made smaller is antialiased: a fine grid becomes grey
    grid = np.indices((598, 598)).sum(0) % 2 * 255
    inner = features.clean_resize(grid.astype(np.float32))[2:-2, 2:-2]
    assert np.abs(inner - 127.5).max() < 8


def test_clean_inception_reads_rounded_pixels_of_each_channel(monkeypatch):
    network = features.InceptionClean.__new__(features.InceptionClean)
    torch.nn.Module.__init__(network)
    monkeypatch.setattr(network, "forward_resized", lambda pixels: pixels)
    x = images(2)
    pixels = ((x + 1) * 127.5).round().numpy()
    seen = network(x).numpy()
    for i in range(2):
        for c in range(3):
            assert np.array_equal(seen[i, c], features.clean_resize(pixels[i, c]))


def naive_unit_length(maps):
    """Channels of each pixel, divided by the root of the sum of their squares."""
    result = torch.empty_like(maps)
    for b, y, x in np.ndindex(maps.shape[0], *maps.shape[2:]):
        pixel = maps[b, :, y, x]
        result[b, :, y, x] = pixel / sum(value**2 for value in pixel.tolist()) ** 0.5
    return result


def test_stages_are_lite0s_maps_of_unit_length():
    stages, x = features.StageFeatures(), images(2, 32, 48)
    with torch.no_grad():
        maps = stages.network(x)
    found = stages(x)
    assert [tuple(m.shape[2:]) for m in found] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    for one, own in zip(found, maps, strict=True):
        torch.testing.assert_close(one, naive_unit_length(own), rtol=1e-4, atol=1e-5)
    same, other = pairwise_distances(stages(torch.stack([x[0], x[0], x[1]])))[:2].tolist()
    assert same == 0
    assert other > 0.1


def test_inception_weights_are_checked(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match=r"inception_weights.*no such file"):
        features.Inception(tmp_path / "none.pth")
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05"):
        features.Inception(bad)
    torch.save({"a": torch.zeros(1)}, bad)
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05"):
        features.Inception(bad)


@pytest.mark.slow
def test_inception_features_take_images_in_our_range(tmp_path):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = extractor.FeatureExtractorInceptionV3.__new__(extractor.FeatureExtractorInceptionV3)
    original = extractor.load_state_dict_from_url

    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StopError

    extractor.load_state_dict_from_url = stop
    try:
        with pytest.raises(StopError):
            network.__init__("inception", ["2048"])
    finally:
        extractor.load_state_dict_from_url = original
    saved = network.state_dict()  # random weights of the right shapes
    path = tmp_path / "inception.pth"
    torch.save(saved, path)
    ours = features.Inception(path)
    images = torch.rand(2, 3, 40, 60) * 2 - 1
    result = ours(images)
    assert result.shape == (2, features.Inception.dim)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(result, ours.network(pixels)[0])
    assert not any(p.requires_grad for p in ours.parameters())


def random_features(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d))


def test_statistics_are_exchanged_with_pytorch_fid(tmp_path):
    x = random_features(40, 5, 1)
    own = distribution.gaussian(x)
    features.write_npz(tmp_path / "deep" / "x.npz", own)
    back = features.read_npz(tmp_path / "deep" / "x.npz", 5)
    assert np.array_equal(back.mean, own.mean)
    assert np.array_equal(back.covariance, own.covariance)
    assert back.num_images is None
    with np.load(tmp_path / "deep" / "x.npz") as file:
        assert sorted(file) == ["mu", "sigma"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.npz"]
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    theirs = features.read_npz(tmp_path / "theirs.npz", 5)
    np.savez(tmp_path / "single.npz", mu=np.zeros(5, np.float32), sigma=np.eye(5, dtype="f4"))
    assert features.read_npz(tmp_path / "single.npz", 5).covariance.dtype == np.float64
    assert distribution.frechet_distance(theirs, own) == pytest.approx(0, abs=1e-9)
    y = distribution.gaussian(random_features(30, 5, 2))
    assert distribution.frechet_distance(theirs, y) == pytest.approx(
        distribution.frechet_distance_of(x, random_features(30, 5, 2)), rel=1e-9
    )


def test_statistics_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    own = distribution.gaussian(random_features(9, 3, 1))
    with pytest.raises(UserError, match=r"x\.npz: cannot write: "):
        features.write_npz(tmp_path / "file" / "x.npz", own)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"x\.npz: cannot write: No space left"):
        features.write_npz(tmp_path / "x.npz", own)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def damaged(path):
    np.savez_compressed(path, mu=np.zeros(5), sigma=np.eye(5))
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(content)


def bare(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(5))


NOT_NPZ = r"^[^ ]+x\.npz: not an npz file of mean \(mu\) and covariance \(sigma\); give one that"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a folder, not a file"),
        (damaged, NOT_NPZ),
        (bare, NOT_NPZ),
        (
            lambda path: np.savez(path, mu=np.array(list("abcde")), sigma=np.eye(5)),
            NOT_NPZ,
        ),
        (
            lambda path: np.savez(path, mu=np.full(5, np.nan), sigma=np.eye(5)),
            "mu or sigma has NaN or infinity",
        ),
        (
            lambda path: np.savez(path, mu=np.zeros(5), sigma=np.full((5, 5), np.inf)),
            "mu or sigma has NaN or infinity",
        ),
        (lambda path: path.write_bytes(b"no npz"), NOT_NPZ),
        (lambda path: np.savez(path, mu=np.zeros(5)), "expected mu and sigma"),
        (
            lambda path: np.savez(path, mu=np.zeros(4), sigma=np.eye(4)),
            r"mu \(4,\) and sigma \(4, 4\); expected \(5,\)",
        ),
        (
            lambda path: np.savez(path, mu=np.array([None] * 5), sigma=np.eye(5)),
            NOT_NPZ,
        ),
    ],
)
def test_other_npz_files_are_refused(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(UserError, match=message):
        features.read_npz(tmp_path / "x.npz", 5)
