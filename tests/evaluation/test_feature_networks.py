"""Networks of features: what they give, what stands for them in a cache, what is refused."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from ecgan.errors import UserError
from ecgan.evaluation import feature_networks as features
from ecgan.metrics.distribution import pairwise_distances
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0

CPU = torch.device("cpu")


def networks(*wanted, inception_weights=None, dinov2=None):
    return features.feature_networks(
        wanted, inception_weights=inception_weights, dinov2=dinov2, device=CPU
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
    found, skipped = networks("inception", "inception_clean", "dinov2")
    assert found == {}
    assert set(skipped) == {
        *("fid", "kid", "precision_inception", "recall_inception"),
        *("fid_clean", "kid_clean", "precision_inception_clean", "recall_inception_clean"),
        *("fd_dinov2", "precision_dinov2", "recall_dinov2"),
    }
    assert "evaluate.inception_weights is not set" in skipped["kid_clean"]
    assert "evaluate.dinov2 is not set" in skipped["fd_dinov2"]


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
    with pytest.raises(UserError, match="a vit, not a dinov2"):
        networks("dinov2", dinov2=str(tmp_path / "vit"))
    broken = small_dinov2(tmp_path / "broken") / "model.safetensors"
    weights = load_file(broken)
    weights.pop("layernorm.bias")
    save_file(weights, broken, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"broken: 1 weights are missing, layernorm\.bias the first"
    ):
        networks("dinov2", dinov2=str(tmp_path / "broken"))
    broken.write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="broken: cannot be loaded"):
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
    class Seen(torch.nn.Module):
        def forward_resized(self, pixels):
            return pixels

    network = features.InceptionClean.__new__(features.InceptionClean)
    torch.nn.Module.__init__(network)
    network.network = Seen()
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
