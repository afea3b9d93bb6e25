"""Seeds, styles, and the pass that makes the styles of a layout together."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from ecgan.data.datasets import Item
from ecgan.data.transforms import canny_edges
from ecgan.errors import UserError
from ecgan.generation import planner
from ecgan.generation.plan import Plan
from ecgan.generation.request import Request
from ecgan.generation.state import DatasetState
from ecgan.models.layers import condition
from ecgan.models.style import StylePrior
from ecgan.runtime.storage import open_store
from ecgan.sampling import sampler as sampling
from ecgan.sampling.sampler import COMPILED_FROM, Layout, Sampler, compiles, is_full
from ecgan.sampling.styles import Styles
from ecgan.seeds import sample_seed
from tests.helpers import tiny
from tests.helpers.tiny import SIZE, make_generator

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
    block = sampler.generator.blocks[0]
    hook = block.hidden.register_forward_hook(lambda *_: passes.append(1))
    layouts = [layout(0), layout(1)]
    z = draw(2, 4)
    made = sampler.start(layouts, z, batch).result()
    hook.remove()
    assert len(passes) == 1

    for i, own in enumerate(layouts):
        labels = torch.from_numpy(own.label)[None]
        S = condition(labels, None, sampler.space)
        for k in range(4):
            with torch.inference_mode():
                alone = sampler.file.generator(S, labels, 255, z[i, k][None])
            image = ((alone.image[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
            edge = ((alone.edge[0].mean(dim=0).clamp(-1, 1) + 1) * 127.5).numpy()
            # half a level is rounding; the rest is float32 sums in another order
            np.testing.assert_allclose(made[i][k].image, image, atol=0.51)
            np.testing.assert_allclose(made[i][k].edge, edge, atol=0.51)
    assert np.ptp(made[0][0].image) > 20
    assert np.abs(made[0][0].image.astype(int) - made[0][1].image).max() > 5


def test_sampling_takes_one_thread_and_gives_the_others_back(sampler):
    seen = []
    sampler.generator.blocks[0].register_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    torch.set_num_threads(2)
    try:
        sampler.start([layout(0)], draw(1, 1), 1).result()
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
    ((made,),) = sampler.start([layout(0)], None, 1).result()
    np.testing.assert_array_equal(made.edge, canny_edges(made.image))


def test_a_layout_is_resized_to_the_nearest_pixel(tmp_path, sampler):
    label = np.random.default_rng(0).integers(0, 3, (64, 128), dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "a.png")
    read = sampler.layout("a", *sampler.read_maps(Item("a", tmp_path / "a.png")))
    np.testing.assert_array_equal(read.label, label[1::2, 1::2])
    assert read.boundary is None


def test_boundaries_come_from_instances_or_else_from_classes(tmp_path):
    sampler = Sampler(make_generator(tmp_path / "g.safetensors", data={"instances": True}), CPU)
    label, instances = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint16)
    label[:, 32:] = 1
    instances[16:] = 40_000
    Image.fromarray(label).save(tmp_path / "label.png")
    Image.fromarray(instances).save(tmp_path / "instances.png")
    read = lambda item: sampler.layout(item.key, *sampler.read_maps(item))  # noqa: E731
    by_class = read(Item("a", tmp_path / "label.png"))
    by_instance = read(Item("a", tmp_path / "label.png", instances=tmp_path / "instances.png"))
    assert np.flatnonzero(by_class.boundary.all(axis=0)).tolist() == [31, 32]
    assert np.flatnonzero(by_instance.boundary.all(axis=1)).tolist() == [15, 16]
    labels, boundary = sampler.maps([by_class, by_instance])
    np.testing.assert_array_equal(labels[0].numpy(), label)
    np.testing.assert_array_equal(boundary[1, 0].numpy(), by_instance.boundary)
    made = sampler.start([by_class, by_instance], draw(2, 1), 8).result()
    assert (made[0][0].image != made[1][0].image).any(), "boundaries are a condition"


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


# Passes


def test_pixels_are_rounded_and_cut_off():
    levels = torch.tensor([-1.7, -1.0, -0.5, 0.0, 0.5 / 127.5, 0.99, 1.0, 1.7])
    expected = [0, 0, 64, 128, 128, 254, 255, 255]  # halves go to the even number
    assert sampling.to_bytes(levels).tolist() == expected
    assert sampling.to_bytes(torch.rand(2, 3, 4).permute(2, 0, 1)).is_contiguous()


def test_a_pass_is_begun_before_the_one_before_it_is_waited_for(sampler):
    z = draw(3, 1)
    alone = [sampler.start([layout(i)], z[i : i + 1], 1).result()[0][0] for i in range(3)]
    begun = [sampler.start([layout(i)], z[i : i + 1], 1) for i in range(3)]
    for pending, expected in reversed(list(zip(begun, alone, strict=True))):
        ((made,),) = pending.result()
        np.testing.assert_array_equal(made.image, expected.image)
        np.testing.assert_array_equal(made.edge, expected.edge)


@pytest.mark.parametrize(
    ("layouts", "styles", "batch", "full"),
    [(8, 1, 8, True), (7, 1, 8, False), (1, 5, 8, True), (2, 3, 8, True), (1, 3, 8, False),
     (1, 8, 8, True), (1, 20, 8, True), (2, 4, 8, True)],
)  # fmt: skip
def test_a_full_pass_is_told_by_its_shape_alone(layouts, styles, batch, full):
    assert is_full(layouts, styles, batch) is full


def wish(wanted, output):
    return SimpleNamespace(
        sampling=SimpleNamespace(compile=wanted), model=SimpleNamespace(output=output)
    )


@pytest.mark.parametrize(
    ("wanted", "output", "num_samples", "on_cuda", "expected"),
    [
        ("auto", "refined", COMPILED_FROM, True, True),
        ("auto", "refined", COMPILED_FROM - 1, True, False),
        ("auto", "refined", COMPILED_FROM, False, False),
        ("auto", "fused", COMPILED_FROM, True, False),
        (True, "refined", 1, True, True),
        (False, "refined", COMPILED_FROM, True, False),
        (True, "refined", 1, False, "compiled for CUDA, and this device is none"),
        (True, "fused", 1, True, "which model.output=fused needs"),
    ],
)
def test_when_the_network_is_compiled(wanted, output, num_samples, on_cuda, expected):
    recipe = wish(wanted, output)
    if isinstance(expected, bool):
        assert compiles(recipe, num_samples, on_cuda=on_cuda) is expected
        return
    with pytest.raises(UserError, match=expected):
        compiles(recipe, num_samples, on_cuda=on_cuda)


def test_the_order_of_sums_and_compiling_are_part_of_the_plan(tmp_path, monkeypatch):
    path = make_generator(tmp_path / "g.safetensors")
    Image.fromarray(layout(0).label).save(tmp_path / "a.png")
    request = Request.of(
        path, tmp_path / "out", labels=tmp_path, device="cpu", quiet=True, n_styles=1
    )
    wanted = planner.plan(request).wanted
    state = DatasetState(open_store(request.out))
    state.record_stage(Plan((wanted.stage,)), wanted)
    state.resolve(planner.plan(request).wanted, extend=False)
    monkeypatch.setattr(planner, "ARITHMETIC", sampling.ARITHMETIC + 1)
    monkeypatch.setattr(planner, "compiles", lambda *_, **__: True)
    other = planner.plan(request)
    assert other.settings.compiled
    with pytest.raises(
        UserError, match=r"differ in order of sums \(2, now 3\), sampling.compile \(False, now True"
    ):
        state.resolve(other.wanted, extend=False)


def test_a_network_that_cannot_be_compiled_is_told_with_the_way_out(sampler, monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(sampler, "compiled", True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(sampling, "RecordedPass", fail)
    with pytest.raises(UserError, match=r"\(Failed to find C compiler\.\).*compile=false"):
        sampler.start([layout(0)], draw(1, 1), 1).result()


def test_on_a_gpu_neither_speed_nor_free_memory_chooses_an_algorithm(sampler, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(sampler, "device", torch.device("cuda"))
    with sampler.same_sums():
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


def test_a_pass_that_is_too_large_is_told_with_the_way_out(sampler, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sampler, "draw", fail)
    with pytest.raises(UserError, match=r"for 8 samples at once \(CUDA.*add --batch 4, and"):
        sampler.start([layout(0)], draw(1, 1), 8).result()


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("layouts", "styles", "batch"), [(2, 4, 8), (1, 11, 4), (3, 1, 8)])
def test_on_a_gpu_samples_are_the_same_in_every_run(tmp_path, layouts, styles, batch, compiled):
    path = make_generator(tmp_path / "g.safetensors")
    own, z = [layout(i) for i in range(layouts)], draw(layouts, styles)
    exact = Sampler(path, CPU).start(own, z, batch).result()
    runs = []
    for _ in range(2):
        sampler = Sampler(path, torch.device("cuda"), compiled=compiled)
        sampler.start(own[::-1], z.flip(0), batch).result()  # what came before leaves no trace
        begun = [sampler.start(own, z, batch) for _ in range(2)]
        runs += [pending.result() for pending in begun]
    assert bool(sampler._recorded) == (compiled and is_full(layouts, min(styles, batch), batch))
    for of_layout, exactly, *others in zip(runs[0], exact, *runs[1:], strict=True):
        for one, cpu, *again in zip(of_layout, exactly, *others, strict=True):
            assert np.abs(one.image.astype(int) - cpu.image).mean() < 2.5
            assert np.abs(one.edge.astype(int) - cpu.edge).mean() < 2.5
            for other in again:
                np.testing.assert_array_equal(one.image, other.image)
                np.testing.assert_array_equal(one.edge, other.edge)


def test_styles_of_the_prior_are_those_of_the_same_noise():
    means, log_variances = torch.randn(40, 256), torch.zeros(40, 256)
    prior = StylePrior.fitted([(means, log_variances)])
    noise = Styles(seed=5).draw("a", 1)
    drawn = Styles(seed=5, prior=prior, temperature=0.5).draw("a", 1)
    torch.testing.assert_close(drawn, prior.float()(noise, 0.5), atol=1e-5, rtol=0)
    assert drawn.dtype == torch.float32
    photos = Styles(vectors=means.numpy(), prior=prior)
    assert torch.equal(photos.draw("a", 3), means[3])


def test_pictures_of_one_color_whatever_the_labels_are_refused(tmp_path):
    path = tiny.make_generator(tmp_path / "generator.safetensors")
    sampler = Sampler(path, torch.device("cpu"))
    with torch.no_grad():
        for parameter in [*sampler.generator.parameters(), *sampler.generator.buffers()]:
            parameter.zero_()
    label = np.arange(32 * 64, dtype=np.uint8).reshape(32, 64) % 3
    z = torch.zeros(1, 1, 256)
    layout = sampler.layout("a", label, None)
    with pytest.raises(UserError, match="nothing but the colour"):
        sampler.start([layout], z, 1).result()
    flat = sampler.layout("b", np.zeros_like(label), None)
    assert sampler.start([flat], z, 1).result()  # of one class it may be right
    with pytest.raises(UserError, match="NaN or infinity"):
        sampler.start([layout], z * float("nan"), 1).result()


def test_a_sample_that_no_machine_holds_is_refused_before_it_is_begun(tmp_path):
    path = tiny.make_generator(tmp_path / "generator.safetensors", model={"style": False})
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["ecgan"])
    about["recipe"]["data"] |= {"height": 2**30, "width": 2**30, "resize_height": None}
    safetensors.torch.save_file(tensors, path, {"ecgan": json.dumps(about)})
    with pytest.raises(UserError, match="a sample of 1073741824 x 1073741824 takes at least"):
        Sampler(path, torch.device("cpu"))
