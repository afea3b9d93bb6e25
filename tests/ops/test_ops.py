"""The heavy operations: against their definition, their invariances, their cost."""

import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ecgan.ops import tiles
from ecgan.ops.class_conv import class_specific_heads
from ecgan.ops.onehot_conv import one_hot, onehot_conv
from ecgan.ops.pair_similarity import pair_similarity
from ecgan.ops.pixel_contrast import pixel_contrast
from tests import naive

IGNORE = 255
seeds = st.integers(0, 2**32)


@pytest.fixture(params=[4, 2**18], ids=["tiles of 4 pairs", "one tile"], scope="module")
def tile_size(request):
    """Tiles far smaller and far larger than the test's classes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pair_similarity", "pixel_contrast"):
            patch.setattr(f"ecgan.ops.{module}.tile_elements", lambda device: request.param)
        yield request.param


# one_hot


@given(seeds, st.booleans(), st.booleans())
def test_one_hot_matches_its_definition(seed, unknown, with_boundary):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator).to(torch.uint8)
    labels[labels == 3] = IGNORE
    boundary = torch.randint(0, 2, (2, 1, 3, 5), generator=generator).mul(255).to(torch.uint8)
    S = one_hot(labels, 3, IGNORE, unknown=unknown, boundary=boundary if with_boundary else None)
    for image in range(2):
        expected = naive.one_hot(
            labels[image].tolist(),
            3,
            IGNORE,
            unknown,
            boundary[image, 0].tolist() if with_boundary else None,
        )
        assert S[image].tolist() == expected


def test_one_hot_takes_wide_labels_and_other_types():
    S = one_hot(
        torch.tensor([[[299, 65535]]], dtype=torch.int32),
        300,
        65535,
        unknown=True,
        dtype=torch.bfloat16,
    )
    assert S.shape == (1, 301, 1, 2)
    assert S.dtype == torch.bfloat16
    assert S.nonzero().tolist() == [[0, 299, 0, 0], [0, 300, 0, 1]]


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("with_boundary", [False, True])
def test_onehot_conv_matches_the_loops(unknown, with_boundary):
    labels = torch.tensor([[[0, 2, 2, IGNORE], [1, 0, IGNORE, 1], [2, 2, 0, 0]]])
    boundary = (torch.rand(1, 1, 3, 4) < 0.5).float() if with_boundary else None
    weight = torch.randn(2, 3 + unknown + with_boundary, 3, 3, dtype=torch.float64)
    bias = torch.randn(2, dtype=torch.float64)

    actual = onehot_conv(labels, weight, bias, 3, IGNORE, unknown=unknown, boundary=boundary)
    expected = naive.onehot_conv(
        labels[0].tolist(),
        3,
        IGNORE,
        unknown,
        None if boundary is None else boundary[0, 0].tolist(),
        weight.tolist(),
        bias.tolist(),
    )
    torch.testing.assert_close(actual[0], torch.tensor(expected, dtype=torch.float64))


def test_onehot_conv_refuses_a_weight_for_other_channels():
    weight, labels = torch.zeros(2, 4, 3, 3), torch.zeros(1, 2, 2)
    with pytest.raises(AssertionError, match="weight for 4 channels, not 5"):
        onehot_conv(labels, weight, None, 3, IGNORE, unknown=True, boundary=labels[:, None])


# Eq. 3


@st.composite
def softmax_maps(draw, dtype=torch.float64):
    """Probabilities (B, N, H, W), some of them certain, and labels with unlabelled pixels."""
    B, N, H, W = draw(st.tuples(*[st.integers(1, 4)] * 4))
    generator = torch.Generator().manual_seed(draw(seeds))
    sharpness = draw(st.sampled_from([1.0, 3.0, 100.0]))  # the last reaches the bound
    logits = sharpness * torch.randn(B, N, H, W, generator=generator, dtype=dtype)
    labels = torch.randint(0, N + 1, (B, H, W), generator=generator)
    return logits.softmax(dim=1), labels.masked_fill(labels == N, IGNORE).to(torch.uint8)


@given(maps=softmax_maps())
def test_pair_similarity_matches_eq_3_and_its_gradient(tile_size, maps):
    probabilities, labels = maps
    probabilities.requires_grad_()
    losses = pair_similarity(probabilities, labels, IGNORE)
    (gradient,) = torch.autograd.grad(losses.sum(), probabilities)
    for image, loss in enumerate(losses.tolist()):
        expected, expected_gradient = naive.similarity_loss(
            probabilities[image].flatten(1).tolist(), labels[image].flatten().tolist(), IGNORE
        )
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(
            gradient[image].flatten(1),
            torch.tensor(expected_gradient, dtype=torch.float64),
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.slow
def test_pair_similarity_passes_gradcheck(tile_size):
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 3, 4))
    labels[0, 0] = IGNORE
    assert torch.autograd.gradcheck(
        lambda x: pair_similarity(x.softmax(dim=1), labels, IGNORE), (logits,)
    )


@given(softmax_maps(), seeds)
def test_pair_similarity_knows_neither_place_nor_name_of_a_class(maps, seed):
    """Pixels may be permuted, and ids may be renamed: Eq. 3 asks only which are equal."""
    probabilities, labels = maps
    B, N, H, W = probabilities.shape
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(H * W, generator=generator)
    name = torch.randperm(N, generator=generator)
    renamed = torch.cat([name, name.new_full((IGNORE + 1 - N,), IGNORE)])[labels.long()]
    torch.testing.assert_close(
        pair_similarity(
            probabilities.flatten(2)[..., place].view(B, N, H, W)[:, name.argsort()],
            renamed.flatten(1)[:, place].view(B, H, W),
            IGNORE,
        ),
        pair_similarity(probabilities, labels, IGNORE),
    )


def test_a_confident_mistake_still_gets_a_gradient():
    """Two pixels of one class, certain of two different ones: a'' = 0, far below the bound."""
    probabilities = torch.eye(2)[None, :, None].requires_grad_()  # (1, 2, 1, 2)
    labels = torch.zeros(1, 1, 2, dtype=torch.uint8)
    pair_similarity(probabilities, labels, IGNORE).sum().backward()
    assert probabilities.grad is not None
    assert probabilities.grad[0, 1, 0, 0].item() == pytest.approx(-1e6 / 2, rel=1e-3)


def test_pair_similarity_in_float32_is_close_to_float64():
    """Sharp probabilities; 1 - a'' near the bound is what float32 has least digits for."""
    probabilities = (4 * torch.randn(1, 11, 24, 32, dtype=torch.float64)).softmax(dim=1)
    labels = torch.randint(0, 11, (1, 24, 32))
    results = []
    for p in (probabilities.requires_grad_(), probabilities.detach().float().requires_grad_()):
        loss = pair_similarity(p, labels, IGNORE)
        (gradient,) = torch.autograd.grad(loss.sum(), p)
        results.append((loss.item(), gradient.double()))
    (loss64, gradient64), (loss32, gradient32) = results
    assert loss32 == pytest.approx(loss64, rel=1e-4)
    assert (gradient32 - gradient64).norm() < 1e-3 * gradient64.norm()


# Eq. 5


@st.composite
def pixels(draw):
    """Unit embeddings (M, D) and classes (M,), with few enough classes for positives to occur."""
    num_pixels, dim, num_classes = draw(st.tuples(*[st.integers(1, 7)] * 3))
    generator = torch.Generator().manual_seed(draw(seeds))
    e = torch.randn(num_pixels, dim, generator=generator, dtype=torch.float64)
    return F.normalize(e, dim=1), torch.randint(num_classes, (num_pixels,), generator=generator)


def mean_contrast(embeddings, classes, temperature, **options):
    total, count = pixel_contrast(embeddings, classes, temperature, **options)
    return total / count.clamp(min=1)


@given(pixels=pixels(), temperature=st.sampled_from([0.001, 0.07, 2.0]))
def test_pixel_contrast_matches_eq_5(tile_size, pixels, temperature):
    embeddings, classes = pixels
    if temperature == 0.001:  # the definition's exponentials overflow: shrink what goes in
        embeddings = embeddings / 2
    expected = naive.pixel_contrastive_loss(embeddings.tolist(), classes.tolist(), temperature)
    actual = mean_contrast(embeddings, classes, temperature)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(first=pixels(), second=pixels(), start=st.integers(0, 7), stop=st.integers(0, 7))
def test_some_anchors_and_a_bank_match_eq_5(tile_size, first, second, start, stop):
    embeddings, classes = first
    bank, bank_classes = second[0][:, :1].expand(-1, embeddings.shape[1]).contiguous(), second[1]
    anchors = slice(start, stop)
    expected = naive.pixel_contrastive_loss(
        embeddings.tolist(),
        classes.tolist(),
        0.3,
        range(len(classes))[anchors],
        bank.tolist(),
        bank_classes.tolist(),
    )
    actual = mean_contrast(
        embeddings, classes, 0.3, anchors=anchors, bank=bank, bank_classes=bank_classes
    )
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.fixture(params=["shifted", "logarithms"])
def exponents(request, monkeypatch):
    """Either form of the passes: exponentials that the type holds, or not."""
    if request.param == "logarithms":
        monkeypatch.setattr("ecgan.ops.pixel_contrast.EXPONENTS", {torch.float64: 0.0})


@pytest.mark.slow
@pytest.mark.parametrize("anchors", [None, slice(3, 9)], ids=["all anchors", "some anchors"])
@pytest.mark.parametrize("with_bank", [False, True], ids=["no bank", "bank"])
def test_pixel_contrast_passes_gradcheck(tile_size, exponents, anchors, with_bank):
    embeddings = F.normalize(torch.randn(12, 2, dtype=torch.float64), dim=1).requires_grad_()
    classes = torch.tensor([0, 0, 1, 2, 2, 2, 1, 0, 2, 3, 4, 4])
    bank = F.normalize(torch.randn(6, 2, dtype=torch.float64), dim=1) if with_bank else None
    bank_classes = torch.tensor([3, 0, 5, 5, 1, 1]) if with_bank else None
    assert torch.autograd.gradcheck(
        lambda e: pixel_contrast(
            e, classes, 0.3, anchors=anchors, bank=bank, bank_classes=bank_classes
        )[0],
        (embeddings,),
    )


def test_shares_of_anchors_add_up_with_their_gradient():
    """What ranks do: each takes its own anchors among all embeddings."""
    embeddings = F.normalize(torch.randn(20, 4, dtype=torch.float64), dim=1).requires_grad_()
    classes = torch.randint(0, 4, (20,))
    whole, count = pixel_contrast(embeddings, classes, 0.07)
    shares = [
        pixel_contrast(embeddings, classes, 0.07, anchors=anchors)
        for anchors in (slice(0, 7), slice(7, 20))
    ]
    total = shares[0][0] + shares[1][0]
    torch.testing.assert_close(total, whole)
    assert count == shares[0][1] + shares[1][1]
    torch.testing.assert_close(
        torch.autograd.grad(total, embeddings), torch.autograd.grad(whole, embeddings)
    )


@given(pixels(), seeds)
def test_pixel_contrast_knows_neither_place_nor_name_of_a_class(pixels, seed):
    embeddings, classes = pixels
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(len(classes), generator=generator)
    name = torch.randperm(7, generator=generator)
    torch.testing.assert_close(
        pixel_contrast(embeddings[place], name[classes[place]], 0.07),
        pixel_contrast(embeddings, classes, 0.07),
    )


@pytest.mark.parametrize(
    "classes", [[0, 0, 0], [0, 1, 2], [0, 0, 1], []], ids=["one", "all", "some", "none"]
)
@pytest.mark.parametrize("temperature", [1e-4, 0.07])
def test_pixel_contrast_has_finite_gradients(classes, temperature):
    """A batch with no negatives, or no positives, must not turn the weights into NaN."""
    embeddings = F.normalize(torch.randn(len(classes), 4), dim=1).requires_grad_()
    total, _ = pixel_contrast(embeddings, torch.tensor(classes, dtype=torch.long), temperature)
    total.backward()
    assert total.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_the_bank_gets_no_gradient():
    embeddings = F.normalize(torch.randn(4, 3), dim=1).requires_grad_()
    bank = F.normalize(torch.randn(4, 3), dim=1).requires_grad_()
    classes = torch.tensor([0, 0, 1, 1])
    pixel_contrast(embeddings, classes, 0.07, bank=bank, bank_classes=classes)[0].backward()
    assert embeddings.grad is not None
    assert bank.grad is None


@pytest.mark.parametrize("operation", ["similarity", "contrast"])
def test_autocast_and_tf32_do_not_reach_the_sums(operation):
    x = torch.randn(1, 6, 8, 8)
    labels = torch.randint(0, 3, (1, 8, 8))

    def loss():
        if operation == "similarity":
            return pair_similarity(x.softmax(dim=1), labels, IGNORE).sum()
        e = F.normalize(x, dim=1).flatten(2)[0].T
        return pixel_contrast(e, labels.flatten(), 0.07)[0]

    expected = loss()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# Memory of Eqs. 3 and 5


MEASURE = textwrap.dedent("""
    import resource
    import torch
    import torch.nn.functional as F
    from ecgan.losses import pixel_contrastive_loss, similarity_loss

    torch.set_num_threads(1)  # as in conftest.py; several wait for each other on a busy machine

    def similarity(height, width):
        probabilities = torch.randn(1, 12, height, width).softmax(dim=1).requires_grad_()
        labels = torch.randint(0, 12, (1, height, width))
        return similarity_loss(probabilities, labels, 255), probabilities

    def contrast(M, D):
        embeddings = F.normalize(torch.randn(M, D), dim=1).requires_grad_()
        return pixel_contrastive_loss(embeddings, torch.randint(0, 12, (M,)), 0.07), embeddings

    loss, x = {small}
    loss.backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss, x = {large}
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
""")


def extra_memory(small, large):
    """Growth of a fresh process's peak, in bytes, from a small input to a large one."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(small=small, large=large)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.slow
def test_eq_3_of_a_whole_256x512_map_fits_into_memory():
    """Its M x M map would be 64 GiB; 20 s of one core."""
    assert extra_memory("similarity(8, 8)", "similarity(256, 512)") < 200 * 2**20


@pytest.mark.slow
def test_eq_5_of_65536_embeddings_fits_into_memory():
    """Its M x M map would be 16 GiB; 25 s of one core."""
    assert extra_memory("contrast(64, 64)", "contrast(65536, 64)") < 400 * 2**20


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 40))
def test_tiles_hold_every_pair_once(counts, elements):
    bounds = tiles.class_bounds(counts)
    M = bounds[-1]
    seen = torch.zeros(M, M, dtype=torch.long)
    for start, stop in pairwise(bounds):
        for tile in (
            *tiles.same_class_tiles(start, stop, elements),
            *tiles.rectangle_tiles(slice(start, stop), slice(stop, M), elements),
        ):
            assert seen[tile.rows, tile.columns].numel() <= elements
            seen[tile.rows, tile.columns] += 1
            if not tile.diagonal:
                seen[tile.columns, tile.rows] += 1
    assert torch.equal(seen, torch.ones_like(seen))


# Eqs. 6-7


def heads(N, C, dtype=torch.float64):
    """Weights of N heads on C channels."""
    shapes = [(N, 16, C, 3, 3), (N, 16), (N, 3, 16, 3, 3), (N, 3)]
    return [(0.3 * torch.randn(shape, dtype=dtype)).requires_grad_() for shape in shapes]


def branches(features, labels, w1, b1, w2, b2):
    """The definition, one branch a class, by torch's convolutions."""
    image = torch.zeros_like(features[:, :3])
    for c in range(len(w1)):
        mask = (labels == c)[:, None]
        hidden = F.leaky_relu(F.conv2d(features * mask, w1[c], b1[c], padding=1), 0.2)
        image = image + F.conv2d(hidden * mask, w2[c], b2[c], padding=1).tanh() * mask
    return image


def test_class_heads_match_the_loops():
    features = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    labels = torch.tensor(
        [[[0, 0, 2, 2, 2], [0, 0, 0, 2, 2], [2, 0, 0, 255, 2], [2, 2, 0, 0, 255]]]
    )
    weights = heads(4, 3)
    image = class_specific_heads(features, labels, IGNORE, *weights)
    expected = naive.class_specific_heads(
        features[0].tolist(), labels[0].tolist(), IGNORE, *[w.tolist() for w in weights]
    )
    torch.testing.assert_close(
        image[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds)
def test_class_heads_match_one_branch_a_class_with_all_gradients(dtype, seed):
    torch.manual_seed(seed)
    N = 5
    features = torch.randn(2, 4, 6, 7, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, N + 1, (2, 3, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels = labels[:, :6, :7].masked_fill(labels[:, :6, :7] == seed % N, IGNORE).to(torch.int32)
    labels = labels.masked_fill(labels == N, IGNORE)
    weights = heads(N, 4, dtype)
    inputs = [features, *weights]
    direction = torch.randn(2, 3, 6, 7, dtype=dtype)
    actual = class_specific_heads(features, labels, IGNORE, *weights)
    expected = branches(features, labels, *weights)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad((actual * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        **tolerance,
    )


def test_class_heads_pass_gradcheck():
    labels = torch.tensor([[[0, 0, 2], [IGNORE, 0, 2]]])
    features = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: class_specific_heads(inputs[0], labels, IGNORE, *inputs[1:]),
        (features, *heads(3, 2)),
        fast_mode=True,
    )


def test_class_heads_give_0_and_zero_gradients_where_nothing_is_labelled():
    weights = heads(3, 2)
    labels = torch.full((1, 2, 2), IGNORE)
    image = class_specific_heads(
        torch.randn(1, 2, 2, 2, dtype=torch.float64), labels, IGNORE, *weights
    )
    assert torch.equal(image, torch.zeros(1, 3, 2, 2, dtype=torch.float64))
    gradients = torch.autograd.grad(image.sum(), weights)
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.slow
def test_class_heads_cost_the_same_for_12_classes_as_for_182():
    def flops(N):
        weights = heads(N, 8, torch.float32)
        features = torch.randn(1, 8, 16, 16, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            labels = torch.randint(0, N, (1, 16, 16))
            class_specific_heads(features, labels, IGNORE, *weights).sum().backward()
        return counter.get_total_flops()

    assert flops(182) == flops(12)
    # Forward: a pixel's 9 taps once in each of two layers; backward: twice that.
    assert flops(12) == 3 * 2 * 256 * 9 * (8 * 16 + 16 * 3)
