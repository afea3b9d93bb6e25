"""Seeds, styles, and the pass that makes the styles of a layout together."""

import numpy as np
import pytest
import torch
from PIL import Image

from ecgan.data.datasets import Item
from ecgan.data.edges import canny_edges
from ecgan.errors import UserError
from ecgan.sampling import Layout, Sampler
from ecgan.styles import Styles, sample_seed
from tests.tiny import SIZE, make_generator

CPU = torch.device("cpu")


def layout(seed, key="a", boundary=None):
    label = np.random.default_rng(seed).integers(0, 4, SIZE, dtype=np.uint8)
    label[label == 3] = 255
    return Layout(key, label, boundary)


@pytest.fixture
def sampler(tmp_path):
    return Sampler(make_generator(tmp_path / "g.safetensors"), CPU)


def draw(num_layouts, num_styles):
    styles = Styles(seed=5)
    drawn = [
        torch.stack([styles.draw(f"layout-{i}", k) for k in range(num_styles)])
        for i in range(num_layouts)
    ]
    return torch.stack(drawn)


def test_a_seed_is_the_same_on_every_machine_and_fits_json():
    assert sample_seed(0, "aachen_000000_000019", 3) == 2286783031254185
    seeds = {sample_seed(r, k, s) for r in (0, 1) for k in ("a", "b") for s in range(50)}
    assert len(seeds) == 200
    assert max(seeds) < 2**53


def test_each_sample_has_a_style_of_its_own():
    z = draw(2, 3).flatten(0, 1)
    assert z.shape == (6, 256)
    assert torch.pdist(z).min() > 10
    assert z.mean().abs() < 0.1
    assert z.std() == pytest.approx(1, abs=0.05)


def test_a_shared_seed_gives_all_layouts_the_same_styles():
    styles = Styles(shared_seed=7)
    assert torch.equal(styles.draw("a", 1), styles.draw("b", 1))
    assert not torch.equal(styles.draw("a", 1), styles.draw("a", 0))
    assert styles.seed_of("a", 1) == styles.seed_of("b", 1)
    generator = torch.Generator().manual_seed(styles.seed_of("a", 1))
    assert torch.equal(styles.draw("a", 1), torch.randn(256, generator=generator))


def test_styles_of_photos_are_taken_in_turn():
    encoded = torch.randn(2, 256)
    styles = Styles(vectors=encoded.numpy())
    assert torch.equal(styles.draw("a", 3), encoded[1])


@pytest.mark.parametrize("batch", [12, 4])  # 4: the styles of the layouts take two passes
def test_the_styles_of_a_layout_share_one_modulation_pass(sampler, batch):
    passes = []
    spade = sampler.generator.trunk.blocks[0].spade_1
    hook = spade.to_modulation.register_forward_hook(lambda *_: passes.append(1))
    layouts = [layout(0), layout(1)]
    z = draw(2, 4)
    made = sampler.make(layouts, z, batch)
    hook.remove()
    assert len(passes) == 1

    for i, own in enumerate(layouts):
        S = sampler.condition([own])
        for k in range(4):
            with torch.inference_mode():
                alone = sampler.generator(S, torch.from_numpy(own.label)[None], 255, z[i, k][None])
            image = ((alone.image[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
            edge = ((alone.edge[0].mean(dim=0).clamp(-1, 1) + 1) * 127.5).numpy()
            # half a level is rounding; the rest is float32 sums in another order
            np.testing.assert_allclose(made[i][k].image, image, atol=0.51)
            np.testing.assert_allclose(made[i][k].edge, edge, atol=0.51)
    assert np.ptp(made[0][0].image) > 20
    assert np.abs(made[0][0].image.astype(int) - made[0][1].image).max() > 5


def test_sampling_takes_one_thread_and_gives_the_others_back(sampler):
    seen = []
    sampler.generator.trunk.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        sampler.make([layout(0)], draw(1, 1), 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1]


def test_without_the_edge_generator_edges_are_found_in_the_image(tmp_path):
    path = make_generator(
        tmp_path / "g.safetensors",
        model={"edge_generator": False, "edge_transfer": False, "style": False},
    )
    sampler = Sampler(path, CPU)
    ((made,),) = sampler.make([layout(0)], None, 1)
    assert sampler.edge_source == "canny of the image"
    np.testing.assert_array_equal(made.edge, canny_edges(made.image))


def test_a_layout_is_resized_to_the_nearest_pixel(tmp_path, sampler):
    label = np.random.default_rng(0).integers(0, 3, (64, 128), dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "a.png")
    read = sampler.read_layout(Item("a", tmp_path / "a.png"))
    np.testing.assert_array_equal(read.label, label[1::2, 1::2])
    assert read.boundary is None


def test_boundaries_come_from_instances_or_else_from_classes(tmp_path):
    sampler = Sampler(make_generator(tmp_path / "g.safetensors", data={"instances": True}), CPU)
    label, instances = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint16)
    label[:, 32:] = 1
    instances[16:] = 40_000
    Image.fromarray(label).save(tmp_path / "label.png")
    Image.fromarray(instances).save(tmp_path / "instances.png")
    by_class = sampler.read_layout(Item("a", tmp_path / "label.png"))
    by_instance = sampler.read_layout(
        Item("a", tmp_path / "label.png", instances=tmp_path / "instances.png")
    )
    assert np.flatnonzero(by_class.boundary.all(axis=0)).tolist() == [31, 32]
    assert np.flatnonzero(by_instance.boundary.all(axis=1)).tolist() == [15, 16]
    S = sampler.condition([by_class, by_instance])
    assert S.shape == (2, 3 + 1 + 1, *SIZE)
    np.testing.assert_array_equal(S[1, -1].numpy(), by_instance.boundary)


def test_styles_are_the_means_of_photos_in_any_mode(tmp_path, sampler):
    photo = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(photo).convert("L").save(tmp_path / "b.jpg")
    styles = sampler.encode_styles([tmp_path / "a.png", tmp_path / "b.jpg"])
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        mean, _ = sampler.file.style_encoder(image)
    torch.testing.assert_close(styles[0], mean[0])
    assert not torch.equal(styles[0], styles[1])


def test_photos_need_a_style_encoder(tmp_path):
    sampler = Sampler(make_generator(tmp_path / "g.safetensors", model={"style": False}), CPU)
    with pytest.raises(UserError, match="--style-images: this run has no style encoder"):
        sampler.encode_styles([tmp_path / "a.png"])
