"""Networks of features: what they give, what stands for them in a cache, what is refused."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ecgan import features
from ecgan.errors import UserError
from ecgan.models.pretrained import efficientnet_lite0

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
    assert torch.equal(found["efficientnet_lite0"](x), efficientnet_lite0()(x))
    assert found["efficientnet_lite0"].dim == 1280
    assert skipped == {}


def test_what_has_no_weights_is_skipped_with_its_reason():
    found, skipped = networks("inception", "inception_clean", "dinov2")
    assert found == {}
    assert set(skipped) == {"fid", "kid", "fid_clean", "kid_clean", "fd_dinov2"}
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
    assert network(images()).shape == (2, 12)


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
    (small_dinov2(tmp_path / "half") / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="half"):
        networks("dinov2", dinov2=str(tmp_path / "half"))


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
    torch.testing.assert_close(found["inception_clean"](x), expected, rtol=1e-4, atol=1e-5)
    small = images(2, 40, 56)
    assert not torch.allclose(found["inception"](small), found["inception_clean"](small))
    assert found["inception"].hash != found["inception_clean"].hash


def test_clean_resize_is_pillows_on_floats(inception_weights):
    network = features.InceptionClean(inception_weights)
    channel = np.random.default_rng(0).integers(0, 256, (40, 56)).astype(np.float32)
    expected = Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC)
    assert np.array_equal(network.resized(channel), np.asarray(expected))
    assert network.resized(channel).shape == (299, 299)
    # An image made smaller is antialiased: a fine grid becomes grey
    grid = np.indices((598, 598)).sum(0) % 2 * 255
    inner = network.resized(grid.astype(np.float32))[2:-2, 2:-2]
    assert np.abs(inner - 127.5).max() < 8
