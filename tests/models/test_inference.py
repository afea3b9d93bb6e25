"""The inference form of G against G itself, and the neighbourhoods that it looks up."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecgan.models import inference, inference_layers
from ecgan.models.generator import Generator
from ecgan.models.inference import DirectGenerator, InferenceGenerator
from ecgan.models.inference_layers import Conv
from ecgan.ops import neighbourhoods as ops
from ecgan.ops.neighbourhoods import Neighbourhoods, distinct_windows, neighbourhoods
from ecgan.ops.onehot_conv import one_hot
from ecgan.runtime.device import compiled
from tests import naive

N = 3
FORMS = pytest.mark.parametrize("lookups", [True, False], ids=["lookups", "dense"])


def make_generator(size=(32, 64), *, boundary=False, unknown=True, classes=N, **parts):
    """G of width 4 in which no number is one that a mistake would leave unseen."""
    numbers = {"channels": 4, "upsamplings": 5, "height": size[0], "width_px": size[1]}
    generator = Generator(
        **{"num_classes": classes, "num_conditions": classes + unknown + boundary, **numbers}
        | parts
    )
    with torch.no_grad():
        for name, value in generator.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-1, 1)
            if name.endswith("running_var"):
                value.uniform_(0.3, 3)
        for name, value in generator.named_parameters():
            if name.endswith("bias") or ".bias_" in name:
                value.uniform_(-0.3, 0.3)
            if "style_modulations" in name:  # which start at 0
                value.uniform_(-0.05, 0.05)
    return generator.eval()


def make_labels(num, size=(32, 64), classes=N):
    """Labels with rough borders; about a sixth of the pixels are unlabelled, which is N."""
    labels = torch.randint(classes + 1, (num, size[0] // 8, size[1] // 8))
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    rough = torch.rand(labels.shape) < 0.1
    return torch.where(rough, torch.randint(classes + 1, labels.shape), labels)


def sampled(generator, labels, boundary=None, styles=None, *, unknown=True):
    """Image and edge by G itself."""
    S = one_hot(labels, generator.num_classes, generator.num_classes, unknown=unknown,
                boundary=boundary)  # fmt: skip
    return naive.sample(generator, S, labels, generator.num_classes, styles)


def compare(generator, labels, boundary=None, styles=None, *, unknown=True, lookups, expected=None):
    """The largest errors of image and edge, in the range of -1 to 1."""
    image, edge = expected or sampled(generator, labels, boundary, styles, unknown=unknown)
    own = InferenceGenerator(generator, boundary=boundary is not None, lookups=lookups)
    with torch.inference_mode():
        shared = own.prepare(labels, boundary)
        found, found_edge = own.sample(shared, styles)
        again, _ = own.sample(shared, styles)
    assert torch.equal(found, again), "what styles share was written over"
    assert found.shape == image.shape
    assert found.dtype == torch.float32
    assert image.std() > 0.02
    assert (edge is None) == (found_edge is None)
    torch.testing.assert_close(found, image, atol=2e-5, rtol=0)
    if edge is not None:
        torch.testing.assert_close(found_edge, edge, atol=2e-5, rtol=0)
    return own


STYLE, NO_EDGES = {"style": True}, {"edge_generator": False, "edge_transfer": False}
BLOCKS = STYLE | {"style_injection": "blocks"}
MODULATION = STYLE | {"style_injection": "modulation"}
PARTS = {
    "all": {},
    "all, with styles": STYLE,
    "all, with styles in every block": BLOCKS,
    "all, with styles in every block and a start of the layout": MODULATION,
    "no Ge": NO_EDGES | STYLE,
    "no Gt": {"edge_transfer": False},
    "no Gs": {"semantic_preserving": False} | STYLE,
    "no Gs, no Ge": {"semantic_preserving": False} | NO_EDGES,
    "no heads": {"class_specific": False},
    "fused": {"output": "fused"} | STYLE,
    "fused without Gs": {"output": "fused", "semantic_preserving": False},
    "spectral norm everywhere": {"spectral_norm": "all", "output": "fused"} | STYLE,
    "spectral norm everywhere, no styles": {"spectral_norm": "all"},
    "no spectral norm": {"spectral_norm": "none"} | STYLE,
    "wide": {"channels": 16},
}


@cache
def example(parts):
    """A generator, labels, styles, and what it makes of them; both forms are compared with it."""
    generator, labels = make_generator(**PARTS[parts]), make_labels(2)
    z = torch.randn(2, 3, 256) if generator.style else None
    return generator, labels, z, sampled(generator, labels, None, z)


@FORMS
@pytest.mark.parametrize("parts", PARTS)
def test_the_inference_form_is_the_generator_for_every_switch(parts, lookups):
    generator, labels, z, expected = example(parts)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    compare(generator, labels, None, z, lookups=lookups, expected=expected)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


@FORMS
def test_styles_that_part_after_the_first_block_stay_laid_out_channels_last(lookups):
    """A convolution follows its input: NCHW from there on would cost every later block."""
    generator, labels, z, _ = example("all, with styles in every block and a start of the layout")
    own = InferenceGenerator(generator, boundary=False, lookups=lookups)
    inputs = []
    for block in own.blocks:
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.inference_mode():
        own.sample(own.prepare(labels, None), z)
    assert [len(x) for x in inputs] == [2, *[6] * (len(inputs) - 1)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in inputs[1:])


@pytest.mark.parametrize("boundary", [False, True])
def test_a_generator_whose_style_is_a_map_samples_as_it_was_trained(boundary):
    generator = make_generator(boundary=boundary, style=True, style_injection="map")
    labels, z = make_labels(2), torch.randn(2, 3, 256)
    edges = (torch.rand(2, 1, 32, 64) < 0.2).float() if boundary else None
    S = one_hot(labels, N, N, unknown=True, boundary=edges)
    image, edge = naive.sample(generator, S, labels, N, z)
    own = DirectGenerator(generator, unlabelled=True, boundary=boundary)
    with torch.inference_mode():
        found, found_edge = own.sample(own.prepare(labels, edges), z)
    torch.testing.assert_close(found, image, atol=2e-5, rtol=0)
    torch.testing.assert_close(found_edge, edge, atol=2e-5, rtol=0)
    other = z.clone()
    other[..., 64:] += 1  # no part of the map
    with torch.inference_mode():
        assert torch.equal(own.sample(own.prepare(labels, edges), other)[0], found)


@FORMS
@pytest.mark.parametrize(
    ("size", "upsamplings"),
    [((32, 32), 5), ((96, 32), 5), ((64, 192), 6)],
)
def test_sizes_and_upsamplings(size, upsamplings, lookups):
    """32 x 32 starts at one pixel, where every neighbour is outside of the picture."""
    generator = make_generator(size, upsamplings=upsamplings, style=True)
    compare(generator, make_labels(1, size), None, torch.randn(1, 2, 256), lookups=lookups)


@FORMS
@pytest.mark.parametrize(("unknown", "boundary"), [(True, True), (False, True), (False, False)])
def test_conditions_of_every_kind(unknown, boundary, lookups):
    for style in (True, False):
        generator = make_generator(style=style, unknown=unknown, boundary=boundary)
        edges = (torch.rand(2, 1, 32, 64) < 0.2).to(torch.uint8) * 255 if boundary else None
        z = torch.randn(2, 1, 256) if style else None
        compare(generator, make_labels(2), edges, z, unknown=unknown, lookups=lookups)


@FORMS
@pytest.mark.parametrize("classes", [1, 70])
def test_one_class_and_many(classes, lookups):
    assert classes < inference_layers.FEW_CHANNELS or classes > inference_layers.FEW_CHANNELS + 1
    generator = make_generator(classes=classes, style=True)
    z = torch.randn(2, 2, 256)
    compare(generator, make_labels(2, classes=classes), None, z, lookups=lookups)
    empty = torch.full((2, 32, 64), classes)
    compare(generator, empty, None, z, lookups=lookups)


@pytest.mark.slow
@pytest.mark.parametrize("lookups", [True, False])
@pytest.mark.parametrize("parts", [{}, {"output": "fused"}])
def test_bfloat16_is_within_a_few_levels_of_float32(lookups, parts):
    generator = make_generator(channels=16, style=True, **parts)
    labels, z = make_labels(2), torch.randn(2, 2, 256)
    exact = InferenceGenerator(generator, boundary=False, lookups=lookups)
    coarse = InferenceGenerator(generator, boundary=False, lookups=lookups).to(torch.bfloat16)
    assert {b.dtype for b in coarse.buffers()} == {torch.bfloat16}
    with torch.inference_mode():
        image, edge = exact.sample(exact.prepare(labels, None), z)
        found, found_edge = coarse.sample(coarse.prepare(labels, None), z)
    assert found.dtype == found_edge.dtype == torch.float32
    for one, other in ((found, image), (found_edge, edge)):
        error = (one - other).abs()
        assert error.mean() < 0.01  # 1.3 of 255 levels
        assert error.max() < 0.1
        assert error.max() > 1e-4, "it ran in float32"


def test_what_only_training_looks_at_is_left_out():
    plain = make_generator(style=True, channels=16)
    own = InferenceGenerator(plain, boundary=False, lookups=False)
    assert not list(own.parameters())
    heads = sum(p.numel() for p in plain.class_specific.parameters())
    kept = sum(b.numel() for b in own.buffers())
    assert kept < sum(p.numel() for p in plain.parameters()) - heads
    with pytest.raises(AssertionError, match="call eval"):
        InferenceGenerator(plain.train(), boundary=False, lookups=False)


@pytest.mark.parametrize("lookups", [True, False])
def test_maps_are_laid_out_by_pixels_for_any_number_of_styles(lookups):
    """Channels last all the way: one other layout, and every operation behind it is slow."""
    generator = make_generator(style=True, channels=8)
    own = InferenceGenerator(generator, boundary=False, lookups=lookups)
    seen = []
    for module in own.modules():
        if isinstance(module, Conv) and module.weight.shape[1] != N + 1:
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for layouts, styles in ((1, 1), (1, 3), (2, 1), (2, 2)):
        with torch.inference_mode():
            own.sample(own.prepare(make_labels(layouts), None), torch.randn(layouts, styles, 256))
        wrong = [x for x in seen if x.shape[2] > 1 and x.stride(1) != 1]
        assert seen
        assert not wrong, wrong[0].shape
        assert all(x.shape[0] == 1 or x.stride(0) >= x[0].numel() for x in seen if x.shape[2] > 3)
        seen.clear()


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {"style": True, "edge_transfer": False}])
def test_the_dense_form_can_be_compiled_whole(parts):
    generator = make_generator(**parts)
    own = InferenceGenerator(generator, boundary=False, lookups=False)
    labels = make_labels(2)
    z = torch.randn(2, 2, 256) if generator.style else None
    share, sample = (compiled(f, backend="eager") for f in (own.prepare, own.sample))
    with torch.inference_mode():
        image, _ = own.sample(own.prepare(labels, None), z)
        assert torch.equal(sample(share(labels, None), z)[0], image)


@pytest.mark.gpu
@pytest.mark.parametrize("lookups", [True, False])
def test_on_a_gpu_bfloat16_is_within_a_few_levels_of_the_cpu(lookups):
    generator = make_generator(channels=16, style=True)
    labels, z = make_labels(2), torch.randn(2, 2, 256)
    S = one_hot(labels, N, N, unknown=True)
    image, _ = naive.sample(generator, S, labels, N, z)
    own = InferenceGenerator(generator, boundary=False, lookups=lookups).to("cuda", torch.bfloat16)
    with torch.inference_mode():
        found, _ = own.sample(own.prepare(labels.cuda(), None), z.cuda())
    error = (found.cpu() - image).abs()
    assert error.mean() < 0.01
    assert error.max() < 0.1


def test_class_heads_stay_float32_among_half_precision(monkeypatch):
    """As in training; the kernels would refuse a mixture."""
    generator = make_generator(output="fused")
    own = InferenceGenerator(generator, boundary=False, lookups=False).to(torch.bfloat16)
    seen = []

    def heads(features, labels, ignore, *weights):
        seen.extend(weight.dtype for weight in weights)
        return torch.zeros(len(labels), 3, *labels.shape[1:])

    monkeypatch.setattr(inference, "class_specific_heads", heads)
    with torch.inference_mode():
        own.sample(own.prepare(make_labels(1), None), None)
    assert seen == [torch.float32] * 4


# Neighbourhoods


def naive_windows(values, outside):
    """Window around each pixel, as a tuple, by loops."""
    _, h, w = values.shape
    found = np.empty(values.shape, object)
    for l, y, x in itertools.product(*map(range, values.shape)):
        found[l, y, x] = tuple(
            int(values[l, y + dy, x + dx]) if 0 <= y + dy < h and 0 <= x + dx < w else outside
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        )
    return found


maps = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))


@given(maps, st.integers(0, 2**31))
def test_windows_have_one_number_exactly_where_they_are_the_same(shape, seed):
    *size, codes = shape
    values = torch.randint(codes, size, generator=torch.Generator().manual_seed(seed))
    numbers, members = distinct_windows(values, codes)
    expected = naive_windows(values, codes)
    assert sorted(set(expected.flat)) == sorted(map(tuple, members.tolist()))
    for place in itertools.product(*map(range, size)):
        assert tuple(members[numbers[place]].tolist()) == expected[place]


@pytest.mark.parametrize(("count", "step"), [(5, 1), (2**22, 2**20)])
def test_numbers_are_those_of_what_several_maps_say(count, step):
    """Of the second, keys would be the same but for multiples of 2 to the power of 64."""
    parts = [torch.randint(4, (1, 9, 9)) * step for _ in range(3)]
    numbers, bound = ops.numbered(parts, count)
    said = list(zip(*(part.flatten().tolist() for part in parts), strict=True))
    ranks = {one: rank for rank, one in enumerate(sorted(set(said)))}
    assert numbers.flatten().tolist() == [ranks[one] for one in said]
    assert bound == len(ranks)


def test_a_table_and_sorting_rank_alike():
    key = torch.randint(50, (4, 30))
    by_table, by_sorting = ops.ranked(key, 51), ops.ranked(key, 10**12)
    assert torch.equal(by_table[0], by_sorting[0])
    assert by_table[1] == by_sorting[1] == len(key.unique())


@pytest.mark.parametrize(("products", "widths"), [(1, [16, 16, 8]), (10**9, [40])])
def test_two_convolutions_of_neighbourhoods_are_those_of_the_map(monkeypatch, products, widths):
    """At once, and in parts of the columns, where the products would take too much memory."""
    monkeypatch.setattr(ops, "PRODUCTS", products)
    labels = torch.randint(4, (2, 7, 9))
    first, second = torch.randn(6, 4, 3, 3).double(), torch.randn(40, 6, 3, 3).double()
    S = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).double()
    hidden = torch.nn.functional.conv2d(S, first, padding=1)
    expected = torch.nn.functional.conv2d(hidden.relu(), second, padding=1)

    squares = neighbourhoods(labels, 4)
    table = torch.cat([first.flatten(2).permute(2, 1, 0), torch.zeros(9, 1, 6).double()], dim=1)
    rows = ops.sum_over_codes(squares, table)
    torch.testing.assert_close(rows[squares.numbers].permute(0, 3, 1, 2), hidden)
    kernel = second.flatten(2).permute(1, 2, 0)
    found, sums = [], ops.F.embedding_bag
    monkeypatch.setattr(
        ops.F, "embedding_bag", lambda *a, **k: found.append(a[1].shape[1]) or sums(*a, **k)
    )
    values = ops.sum_over_windows(squares, rows.relu(), kernel)
    torch.testing.assert_close(values[squares.index].permute(0, 3, 1, 2), expected)
    assert found == widths


def test_the_inside_of_a_class_is_one_neighbourhood():
    labels = torch.zeros(1, 64, 128, dtype=torch.int64)
    labels[:, 32:] = 1
    squares = neighbourhoods(labels, 2)
    assert isinstance(squares, Neighbourhoods)
    # columns: left, inside, right; rows: top, inside, above, below, inside, bottom
    assert len(squares.codes) == 3 * 6
    # two columns and two rows at each border now
    assert len(squares.squares) == 5 * 10
