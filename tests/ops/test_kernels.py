"""The Triton kernels against float64: on a GPU where there is one, else in Triton's interpreter.

The interpreter rounds to float16 where the kernels do, so the tolerances are those of the kernels'
own arithmetic. (Tensor cores add in another order, at about float32's precision.)
"""

import time

import pytest
import torch
import torch.nn.functional as F

from ecgan.ops.class_conv import class_specific_heads
from ecgan.ops.onehot_conv import one_hot, onehot_conv
from ecgan.ops.pair_similarity import pair_similarity
from ecgan.ops.pixel_contrast import pixel_contrast
from tests.ops.test_ops import IGNORE, branches, heads

pytest.importorskip("triton")

# Exponentials that are masked afterwards may overflow; a GPU says nothing, numpy does.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_close(actual, expected, tolerance):
    """The norm of the error is below a part of the expected norm; zeros have to be zeros."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    error = (actual.double() - expected).norm()
    assert error <= tolerance * expected.norm(), f"{error / expected.norm():.1e} > {tolerance}"


# Eq. 3


def scene(B, N, H, W, sharpness=2.0, dtype=torch.int64, of=None):
    """Probabilities in float64, right about half of the pixels, and labels, some unlabelled."""
    labels = torch.randint(0, N, (B, H, W), device=DEVICE)
    if of is not None:  # classes that occur
        labels = torch.tensor(of, device=DEVICE)[labels % len(of)]
    logits = torch.randn(B, N, H, W, dtype=torch.float64, device=DEVICE)
    logits += F.one_hot(labels, N).permute(0, 3, 1, 2)
    labels[torch.rand(B, H, W, device=DEVICE) < 0.1] = IGNORE
    return (sharpness * logits).softmax(dim=1).requires_grad_(), labels.to(dtype)


def without_rounding(probabilities):
    """The nearest that the kernel's 11-bit numbers hold, as they hold one less them."""
    return (probabilities.detach() * 1024).round().div(1024).requires_grad_()


def compare_similarity(probabilities, labels, *, loss, gradient):
    """The kernel against plain torch in float64, at most these parts of the norms apart."""
    expected = pair_similarity(probabilities, labels, IGNORE)
    directions = torch.rand(len(labels), device=DEVICE) + 0.5
    (expected_gradient,) = torch.autograd.grad((expected * directions).sum(), probabilities)
    p = probabilities.detach().float().requires_grad_()
    actual = pair_similarity(p, labels, IGNORE)
    (actual_gradient,) = torch.autograd.grad((actual * directions).sum(), p)
    assert_close(actual, expected, loss)
    assert_close(actual_gradient, expected_gradient, gradient)
    with torch.no_grad():  # a pass of its own: no gradient is made
        assert torch.equal(pair_similarity(p, labels, IGNORE), actual)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((2, 5, 7, 9), {"dtype": torch.uint8}),  # several images, odd sizes
        ((1, 3, 4, 10), {"of": [2]}),  # one class
        ((1, 6, 6, 6), {"of": [0, 4], "dtype": torch.int32}),  # empty classes
        ((1, 1, 3, 5), {}),  # one channel: a'' is 1
        ((1, 33, 6, 9), {}),  # stored rows of two parts: 33 + 2 numbers in 32 + 16
        ((1, 4, 13, 12), {"of": [3, 1]}),  # tiles of one class, of others, and of both
    ],
)
def test_similarity_kernel_matches_float64(kernels, sizes, options):
    probabilities, labels = scene(*sizes, **options)
    compare_similarity(without_rounding(probabilities), labels, loss=1e-6, gradient=5e-4)


def test_similarity_kernel_of_one_pixel(kernels):
    p = torch.tensor([0.75, 0.25], dtype=torch.float64, device=DEVICE).view(1, 2, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.int64, device=DEVICE)
    compare_similarity(p.requires_grad_(), labels, loss=1e-6, gradient=3e-4)


def test_similarity_kernel_takes_images_in_parts(kernels, monkeypatch):
    """As many at once as memory allows: the same numbers."""
    from ecgan.ops.triton import similarity as triton_similarity

    probabilities, labels = scene(3, 4, 5, 6)
    p = probabilities.detach().float().requires_grad_()
    found = []
    for limit in (1e9, 1.0):
        monkeypatch.setattr(triton_similarity, "BYTES_AT_ONCE", limit)
        losses = pair_similarity(p, labels, IGNORE)
        found.append((losses, *torch.autograd.grad(losses.sum(), p)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_similarity_kernel_takes_what_does_not_sum_to_one(kernels):
    """As float32 leaves it, and far from it: 1 - a'' is not p_i (1 - p_j) alone."""
    probabilities, labels = scene(1, 5, 6, 9)
    wrong = probabilities.detach() * torch.linspace(0.5, 1.1, 9, device=DEVICE)
    compare_similarity(without_rounding(wrong), labels, loss=1e-6, gradient=5e-4)


@pytest.mark.parametrize("N", [5, 35])
def test_similarity_kernels_rounding_does_not_add_up(kernels, N):
    """The same p everywhere: rounded to the nearest, every pair would err in the same direction."""
    labels = torch.randint(0, N, (1, 10, 16), device=DEVICE)
    p = torch.full((1, N, 10, 16), 1 / N, dtype=torch.float64, device=DEVICE)
    expected = pair_similarity(p, labels, IGNORE)
    assert_close(pair_similarity(p.float(), labels, IGNORE), expected, 1e-4)


def test_similarity_kernel_of_sharp_probabilities_matches_float64(kernels):
    """Confident mistakes: 1 - a'' near the bound, of which float32 has few digits."""
    compare_similarity(*scene(1, 5, 9, 13, sharpness=8.0), loss=1e-4, gradient=3e-3)


def test_similarity_kernel_bounds_as_the_definition_does(kernels):
    """a'' and 1 - a'' that are 0: the value is bounded, the gradient passes."""
    labels = torch.randint(0, 4, (1, 6, 7), device=DEVICE)
    guess = torch.randint(0, 4, (1, 6, 7), device=DEVICE)
    certain = F.one_hot(guess, 4).permute(0, 3, 1, 2).double().requires_grad_()
    compare_similarity(certain, labels, loss=1e-6, gradient=5e-4)


def test_similarity_kernel_leaves_out_unlabelled_pixels_and_absent_channels(kernels):
    probabilities, labels = scene(2, 4, 5, 6)
    labels[1] = IGNORE  # a whole image
    wide = without_rounding(F.pad(probabilities, (0, 0, 0, 0, 1, 2)))  # 3 empty channels
    compare_similarity(wide, labels, loss=1e-6, gradient=5e-4)
    p = wide.detach().float().requires_grad_()
    losses = pair_similarity(p, labels, IGNORE)
    losses.sum().backward()
    assert p.grad is not None
    assert losses[1] == 0
    assert not p.grad.permute(0, 2, 3, 1)[labels == IGNORE].any()


def test_similarity_kernel_takes_maps_in_any_layout(kernels):
    probabilities, labels = scene(2, 4, 5, 6)
    p = probabilities.detach().float()
    expected = pair_similarity(p, labels, IGNORE)
    last = p.contiguous(memory_format=torch.channels_last)
    part = p.repeat(1, 1, 1, 2)[:, :, :, :6]
    assert torch.equal(pair_similarity(last, labels, IGNORE), expected)
    assert torch.equal(pair_similarity(part, labels, IGNORE), expected)


def test_products_of_split_vectors_have_float32s_precision(kernels):
    """One product of 11-bit numbers has not: it is why vectors are split."""
    from ecgan.ops.triton import pairs

    for n in (3, 19, 64):
        x = torch.randn(40, n, device=DEVICE).softmax(dim=1)
        order = torch.randperm(40, device=DEVICE)
        count = torch.tensor(37, dtype=torch.int32, device=DEVICE)
        keys = pairs.split(x, order, count, x.stride(), n).double() / pairs.SCALE
        assert keys.shape == (128, sum(pairs.widths(n)[:2]))
        hi, lo = keys[:, :n], keys[:, n : 2 * n]
        assert torch.equal(keys[:, 2 * n : 3 * n], hi)
        assert not keys[:, 3 * n :].any()
        assert not keys[37:].any()
        x = x[order[:37]].double()
        exact, hi, lo = x @ x.T, hi[:37], lo[:37]
        split = hi @ hi.T + hi @ lo.T + lo @ hi.T
        assert (split - exact).abs().max() < 2**-22 * exact.max()
        assert (hi @ hi.T - exact).abs().max() > 2**-16 * exact.max()


# Eq. 5


def compare_contrast(embeddings, classes, temperature, *, total, gradient, bank=None, **options):
    """The kernels against plain torch in float64, at most these parts of the norms apart."""
    embeddings = embeddings.requires_grad_()
    expected, count = pixel_contrast(embeddings, classes, temperature, bank=bank, **options)
    (expected_gradient,) = torch.autograd.grad(3 * expected, embeddings)
    e = embeddings.detach().float().requires_grad_()
    bank = None if bank is None else bank.float()
    actual, actual_count = pixel_contrast(e, classes, temperature, bank=bank, **options)
    (actual_gradient,) = torch.autograd.grad(3 * actual, e)
    assert actual_count == count
    assert_close(actual, expected, total)
    assert_close(actual_gradient, expected_gradient, gradient)
    with torch.no_grad():
        alone, _ = pixel_contrast(e, classes, temperature, bank=bank, **options)
    assert torch.equal(alone, actual)


def unit(M, D, classes=None):
    """Unit vectors in float64, near their class's centre."""
    e = torch.randn(M, D, dtype=torch.float64, device=DEVICE)
    if classes is not None:
        e += torch.randn(10, D, dtype=torch.float64, device=DEVICE)[classes]
    return F.normalize(e, dim=1)


@pytest.mark.parametrize(
    ("temperature", "anchors", "with_bank"),
    [
        (0.07, None, False),
        (0.07, slice(10, 40), True),
        (1e-3, None, True),  # exponentials that float32 does not hold
        (1e-3, slice(10, 40), False),
    ],
)
def test_contrast_kernels_match_float64(kernels, temperature, anchors, with_bank):
    classes = torch.randint(0, 4, (70,), device=DEVICE)
    classes[classes == 2] = 3  # a class that does not occur
    options = {}
    if with_bank:
        options["bank_classes"] = torch.randint(0, 6, (20,), device=DEVICE)  # and two of its own
        options["bank"] = unit(20, 5, options["bank_classes"])
    compare_contrast(
        unit(70, 5, classes), classes, temperature, anchors=anchors, total=1e-5, gradient=1e-3,
        **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("with_bank", [False, True])
def test_contrast_kernels_leave_out_what_takes_no_part(kernels, with_bank):
    """As plain torch does, and as if it were not there."""
    classes = torch.randint(0, 3, (150,), device=DEVICE)
    classes[torch.rand(150, device=DEVICE) < 0.4] = IGNORE
    e, options = unit(150, 5), {}
    if with_bank:
        options["bank_classes"] = torch.tensor([0, IGNORE, 1, 5] * 5, device=DEVICE)
        options["bank"] = unit(20, 5)
    limits = {"total": 1e-5, "gradient": 1e-3}
    compare_contrast(e, classes, 0.07, anchors=slice(30, 120), ignore=IGNORE, **options, **limits)

    there = classes != IGNORE
    first, last = (int(there[:at].sum()) for at in (30, 120))
    whole = e.detach().float().requires_grad_()
    total, count = pixel_contrast(
        whole, classes, 0.07, anchors=slice(30, 120), ignore=IGNORE,
        **{name: x.float() if name == "bank" else x for name, x in options.items()},
    )  # fmt: skip
    if with_bank:
        kept = options["bank_classes"] != IGNORE
        options = {
            "bank_classes": options["bank_classes"][kept],
            "bank": options["bank"][kept].float(),
        }
    part = whole.detach()[there].requires_grad_()
    expected, number = pixel_contrast(
        part, classes[there], 0.07, anchors=slice(first, last), **options
    )
    assert count == number
    assert torch.allclose(total, expected)
    gradient, own = torch.autograd.grad(total, whole)[0], torch.autograd.grad(expected, part)[0]
    assert_close(gradient[there], own, 1e-6)
    assert not gradient[~there].any()


@pytest.mark.parametrize(
    "classes",
    [[0] * 20, range(20), [0, 0, 1], [7], [], [5] * 33 + [2] * 7],
    ids=["no negatives", "no positives", "one anchor without", "one", "none", "two classes"],
)
def test_contrast_kernels_are_finite_whatever_the_classes(kernels, classes):
    classes = torch.tensor(list(classes), dtype=torch.int64, device=DEVICE)
    compare_contrast(unit(len(classes), 5), classes, 0.07, total=1e-5, gradient=1e-3)


@pytest.mark.slow
def test_contrast_kernels_take_vectors_of_many_numbers(kernels):
    """Stored rows of two parts, three times 64 numbers; classes in whole tiles and in pieces."""
    classes = torch.arange(3, device=DEVICE).repeat_interleave(
        torch.tensor([16, 60, 19]).to(DEVICE)
    )
    compare_contrast(unit(95, 64, classes), classes, 0.07, total=1e-6, gradient=1e-3)


def test_the_bank_gets_no_gradient_from_the_kernels(kernels):
    e, bank = unit(6, 3).float().requires_grad_(), unit(6, 3).float().requires_grad_()
    classes = torch.tensor([0, 0, 0, 1, 1, 1], device=DEVICE)
    pixel_contrast(e, classes, 0.07, bank=bank, bank_classes=classes)[0].backward()
    assert e.grad is not None
    assert e.grad.any(dim=1).all()
    assert bank.grad is None


# Eqs. 6-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "channels", "of"),
    [
        ((2, 3, 5), 4, [0, 1, 3, 4]),
        ((1, 4, 9), 20, [1, 4]),  # empty classes; several blocks and pieces of one
        ((1, 1, 3), 3, [0, 3]),
        pytest.param(
            (1, 6, 6),
            70,
            [3],
            marks=pytest.mark.slow,  # more channels than are multiplied at once
        ),
        ((1, 2, 3), 3, [IGNORE]),
    ],
)
def test_class_head_kernels_match_one_branch_a_class(kernels, sizes, channels, of):
    coarse = torch.tensor(list(of))[torch.randint(0, len(of), sizes)]
    labels = coarse.repeat_interleave(2, dim=2)[:, :, : sizes[2]].to(DEVICE)
    unlabelled = (torch.rand(sizes, device=DEVICE) < 0.1) | (labels == IGNORE)
    weights = [w.detach().to(DEVICE).requires_grad_() for w in heads(5, channels)]
    features = torch.randn(
        sizes[0], channels, *sizes[1:], dtype=torch.float64, device=DEVICE, requires_grad=True
    )
    direction = torch.randn(sizes[0], 3, *sizes[1:], device=DEVICE)
    inputs = [features, *weights]
    expected = branches(features, labels.masked_fill(unlabelled, IGNORE), *weights)
    gradients = torch.autograd.grad((expected * direction).sum(), inputs)
    single = [x.detach().float().requires_grad_() for x in inputs]
    labels = labels.to(torch.uint8).masked_fill(unlabelled, 2)  # a number that could be a class
    actual = class_specific_heads(single[0], labels, 2, *single[1:])
    assert_close(actual, expected, 1e-5)
    actual_gradients = torch.autograd.grad((actual * direction).sum(), single)
    for one, other in zip(actual_gradients, gradients, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.slow
def test_class_heads_take_half_precision_and_stay_float32(implementation):
    labels = torch.randint(0, 3, (1, 2, 6), device=DEVICE)
    weights = [w.detach().float().to(DEVICE).requires_grad_() for w in heads(3, 4)]
    features = torch.randn(1, 4, 2, 6, device=DEVICE).bfloat16().requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        image = class_specific_heads(features, labels, IGNORE, *weights)
    expected = branches(features.double(), labels, *[w.double() for w in weights])
    assert image.dtype == torch.float32
    assert_close(image, expected, 1e-5)
    image.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16


# One-hot convolution


@pytest.mark.parametrize(
    ("sizes", "N", "unknown", "with_boundary"),
    [
        ((2, 3, 5), 4, True, True),
        ((1, 4, 3), 2, False, True),
        ((1, 1, 2), 3, True, False),
        ((1, 3, 1), 3, False, False),
    ],
)
def test_onehot_conv_is_the_convolution_of_the_one_hot_map(
    implementation, sizes, N, unknown, with_boundary
):
    O = 4 * sizes[2]
    labels = torch.randint(0, N, sizes, device=DEVICE)
    labels[torch.rand(sizes, device=DEVICE) < 0.2] = IGNORE
    boundary = torch.randint(0, 2, (sizes[0], 1, *sizes[1:]), device=DEVICE) * 255
    options = {"unknown": unknown, "boundary": boundary if with_boundary else None}
    weight = torch.randn(O, N + unknown + with_boundary, 3, 3, dtype=torch.float64, device=DEVICE)
    bias = torch.randn(O, dtype=torch.float64, device=DEVICE)
    S = one_hot(labels, N, IGNORE, dtype=torch.float64, **options)
    expected = F.conv2d(S, weight, bias, padding=1)
    single = weight.float(), bias.float()
    actual = onehot_conv(labels.to(torch.uint8), *single, N, IGNORE, **options)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_close(actual, expected, 1e-6)


def test_onehot_conv_takes_half_precision(implementation):
    labels = torch.randint(0, 3, (1, 4, 5), device=DEVICE)
    weight = torch.randn(2, 3, 3, 3, device=DEVICE).bfloat16()
    S = one_hot(labels, 3, IGNORE, unknown=False)
    expected = F.conv2d(S.double(), weight.double(), padding=1)
    actual = onehot_conv(labels, weight, None, 3, IGNORE, unknown=False)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, expected, 2**-8)


# On a GPU


def on_gpu(f):
    """What f adds to the memory in use at its peak, in bytes, and its time, in seconds."""
    f()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    f()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, time.perf_counter() - start


@pytest.fixture
def gpu(monkeypatch):
    """Kernels in their own sizes; an error if one cannot run."""
    monkeypatch.setenv("ECGAN_KERNELS", "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("N", [12, 19, 35, 182])
def test_similarity_kernel_on_a_gpu(gpu, N):
    compare_similarity(*scene(2, N, 61, 83), loss=3e-4, gradient=1e-3)
    compare_similarity(*scene(1, N, 61, 83, sharpness=8.0), loss=3e-4, gradient=1e-2)


@pytest.mark.gpu
def test_similarity_of_a_256x512_map_fits_into_100_mb(gpu):
    probabilities, labels = scene(1, 35, 256, 512)
    p = probabilities.detach().float().requires_grad_()
    results = []

    def run():
        results[:] = torch.autograd.grad(pair_similarity(p, labels, IGNORE).sum(), p)

    memory, _ = on_gpu(run)
    assert memory < 100e6
    first = results[0]
    run()
    assert torch.equal(first, results[0])  # the same bits


@pytest.mark.gpu
def test_contrast_kernels_on_a_gpu(gpu):
    classes = torch.randint(0, 10, (5001,), device=DEVICE)
    bank_classes = torch.randint(0, 10, (700,), device=DEVICE)
    options = {"bank": unit(700, 64, bank_classes), "bank_classes": bank_classes}
    for more in ({}, options, {"anchors": slice(100, 3000), **options}):
        compare_contrast(unit(5001, 64, classes), classes, 0.07, total=1e-5, gradient=1e-3, **more)


@pytest.mark.gpu
def test_contrast_of_65536_embeddings_fits_into_100_mb(gpu):
    classes = torch.randint(0, 10, (65536,), device=DEVICE)
    e = unit(65536, 64, classes).float().requires_grad_()
    results = []

    def run():
        results[:] = torch.autograd.grad(pixel_contrast(e, classes, 0.07)[0], e)

    memory, _ = on_gpu(run)
    assert memory < 100e6
    first = results[0]
    run()
    assert torch.equal(first, results[0])


@pytest.mark.gpu
def test_class_heads_take_the_same_time_for_182_classes_as_for_12(gpu):
    times = []
    for N in (12, 182):
        weights = [w.detach().float().to(DEVICE).requires_grad_() for w in heads(N, 64)]
        features = torch.randn(4, 64, 256, 256, device=DEVICE, requires_grad=True)
        labels = torch.randint(0, N, (4, 16, 16), device=DEVICE)
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)

        def run(features=features, labels=labels, weights=weights):
            image = class_specific_heads(features, labels, IGNORE, *weights)
            torch.autograd.grad(image.sum(), [features, *weights])

        times.append(min(on_gpu(run)[1] for _ in range(5)))
    assert times[1] < 1.3 * times[0]
