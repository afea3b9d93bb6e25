"""The terms of Eq. 10 against their definition, and what becomes of them over two ranks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ecgan import losses
from tests import naive

IGNORE = 255
seeds = st.integers(0, 2**32)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def flat(maps):
    return [m.flatten().tolist() for m in maps]


@pytest.mark.parametrize("kind", ["hinge", "log"])
@pytest.mark.parametrize(
    ("side", "function"),
    [
        ("real", losses.discriminator_real),
        ("fake", losses.discriminator_fake),
        ("generator", losses.generator_adversarial),
    ],
)
def test_adversarial_losses_match_eq_8(kind, side, function):
    scores = [3 * doubles(2, 1, 5, 6), 3 * doubles(2, 1, 3, 3)]
    expected = naive.adversarial(side, kind, flat(scores))
    assert function(kind, scores).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["hinge", "log"])
def test_the_real_image_weighs_as_much_as_all_fakes_eq_9(kind):
    """lambda = 2: real 3, I' 1, I'' 2."""
    real, coarse, refined = ([doubles(2, 1, 4, 4), doubles(2, 1, 2, 2)] for _ in range(3))
    expected = (
        3 * naive.adversarial("real", kind, flat(real))
        + naive.adversarial("fake", kind, flat(coarse))
        + 2 * naive.adversarial("fake", kind, flat(refined))
    )
    actual = losses.discriminator_loss(kind, real, [(1, coarse), (2, refined)])
    assert actual.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("side", ["real", "fake", "generator"])
def test_log_losses_are_finite_for_scores_that_saturate(side):
    function = {
        "real": losses.discriminator_real,
        "fake": losses.discriminator_fake,
        "generator": losses.generator_adversarial,
    }[side]
    scores = torch.tensor([[[[-500.0, 500.0]]]], requires_grad=True)
    loss = function("log", [scores])
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_scales_weigh_the_same_whatever_their_size():
    scores = [torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 2, 2), 3.0)]
    assert losses.generator_adversarial("hinge", scores) == -2


def test_feature_matching_matches_its_definition():
    real = [[doubles(2, 4, 5, 5), doubles(2, 8, 3, 3)], [doubles(2, 4, 2, 2), doubles(2, 8, 1, 1)]]
    fake = [[torch.randn_like(m) for m in scale] for scale in real]
    expected = naive.feature_matching([flat(s) for s in real], [flat(s) for s in fake])
    assert losses.feature_matching(real, fake).item() == pytest.approx(expected, rel=1e-9)


def test_perceptual_matches_its_definition():
    real = [doubles(2, 4, 5, 5), doubles(2, 8, 3, 3)]
    fake = [torch.randn_like(m) for m in real]
    expected = naive.perceptual(flat(real), flat(fake), [0.25, 1.0])
    assert losses.perceptual(real, fake, [0.25, 1.0]).item() == pytest.approx(expected, rel=1e-9)


def test_the_real_side_gets_no_gradient():
    real, fake = (torch.randn(1, 2, 3, 3, requires_grad=True) for _ in range(2))
    (
        losses.feature_matching([[real]], [[fake]]) + losses.perceptual([real], [fake], [1])
    ).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_kl_divergence_matches_its_definition():
    mu, log_var = doubles(3, 256), doubles(3, 256)
    expected = naive.kl_divergence(mu.tolist(), log_var.tolist())
    assert losses.kl_divergence(mu, log_var).item() == pytest.approx(expected, rel=1e-9)
    standard = torch.zeros(2, 256)
    assert losses.kl_divergence(standard, standard) == 0


# Eq. 6


NUM_CLASSES = 30  # for 40 pixels: some classes are absent, some are on one image only


def images_and_labels(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    generated, real = (
        torch.randn(batch, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    labels = torch.randint(0, 40, (batch, 4, 5), generator=generator)
    return generated, real, labels.masked_fill(labels >= NUM_CLASSES, IGNORE).to(torch.uint8)


@pytest.mark.parametrize("mean", ["class", "pixels"])
@given(seed=seeds)
def test_class_specific_l1_matches_eq_6(mean, seed):
    generated, real, labels = images_and_labels(seed)
    expected = naive.class_specific_l1(
        generated.permute(0, 2, 3, 1).flatten(0, 2).tolist(),
        real.permute(0, 2, 3, 1).flatten(0, 2).tolist(),
        labels.flatten().tolist(),
        IGNORE,
        mean,
    )
    actual = losses.class_specific_l1(generated, real, labels, NUM_CLASSES, IGNORE, mean=mean)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mean", ["class", "pixels"])
def test_class_specific_l1_is_0_where_nothing_is_labelled(mean):
    generated = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 2, 2), IGNORE, dtype=torch.uint8)
    loss = losses.class_specific_l1(
        generated, torch.zeros(1, 3, 2, 2), labels, 5, IGNORE, mean=mean
    )
    loss.backward()
    assert loss == 0
    assert generated.grad is not None
    assert not generated.grad.any()


@pytest.mark.parametrize("mean", ["class", "pixels"])
def test_two_ranks_sums_give_the_loss_of_the_whole_batch(mean):
    """Rank 1's sums are a constant here, added by ``reduce_sums``; the gradient is rank 0's."""
    generated, real, labels = images_and_labels(0)
    generated.requires_grad_()

    def loss(images, reduce_sums=None):
        return losses.class_specific_l1(
            generated[images],
            real[images],
            labels[images],
            NUM_CLASSES,
            IGNORE,
            mean=mean,
            reduce_sums=reduce_sums,
        )

    sums = []
    loss(slice(1, 2), lambda own: sums.append(own.detach()) or own)
    together = loss(slice(0, 1), lambda own: own + sums[0])
    whole = loss(slice(0, 2))
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(
        torch.autograd.grad(together, generated)[0][0], torch.autograd.grad(whole, generated)[0][0]
    )


# Eqs. 3 and 5: tests/test_ops.py has the definitions


def test_similarity_is_the_mean_over_the_images_of_a_batch():
    probabilities = doubles(3, 4, 4, 5).softmax(dim=1)
    labels = torch.randint(0, 4, (3, 4, 5))
    labels[1] = IGNORE  # counts as 0
    values = [
        naive.similarity_loss(p.flatten(1).tolist(), y.flatten().tolist(), IGNORE)[0]
        for p, y in zip(probabilities, labels, strict=True)
        if (y != IGNORE).any()
    ]
    actual = losses.similarity_loss(probabilities, labels, IGNORE)
    assert actual.item() == pytest.approx(sum(values) / 3, rel=1e-9)


def test_similarity_is_0_with_a_zero_gradient_where_nothing_is_labelled():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = losses.similarity_loss(logits.softmax(dim=1), torch.full((2, 2, 2), IGNORE), IGNORE)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_similarity_of_a_perfect_segmentation_is_almost_0():
    labels = torch.randint(0, 3, (1, 4, 4))
    certain = F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert losses.similarity_loss(certain, labels, IGNORE).abs() < 1e-6


def test_with_one_positive_eq_5_is_info_nce_eq_4():
    """Two pixels of one class and many of others: softmax over one positive and all negatives."""
    embeddings = F.normalize(doubles(6, 3), dim=1)
    logits = embeddings @ embeddings.T / 0.5
    info_nce = [
        F.cross_entropy(logits[anchor, [positive, 2, 3, 4, 5]][None], torch.tensor([0]))
        for anchor, positive in [(0, 1), (1, 0)]
    ]
    actual = losses.pixel_contrastive_loss(embeddings, torch.tensor([0, 0, 1, 2, 3, 4]), 0.5)
    torch.testing.assert_close(actual, torch.stack(info_nce).mean())


def test_two_ranks_anchors_give_the_contrast_of_the_whole_batch():
    embeddings = F.normalize(doubles(20, 4), dim=1).requires_grad_()
    classes = torch.randint(0, 6, (20,))
    whole = losses.pixel_contrastive_loss(embeddings, classes, 0.07)

    def of_anchors(anchors, reduce_sums):
        return losses.pixel_contrastive_loss(
            embeddings, classes, 0.07, anchors=anchors, reduce_sums=reduce_sums
        )

    sums = []
    of_anchors(slice(8, 20), lambda own: sums.append(own) or own)
    together = of_anchors(slice(0, 8), lambda own: own + sums[0])
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(
        torch.autograd.grad(together, embeddings), torch.autograd.grad(whole, embeddings)
    )


def test_contrast_without_a_positive_is_0():
    embeddings = torch.eye(3).requires_grad_()
    loss = losses.pixel_contrastive_loss(embeddings, torch.arange(3), 0.07)
    loss.backward()
    assert loss == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: losses.similarity_loss(x.softmax(dim=1), y, IGNORE),
        lambda x, y: losses.pixel_contrastive_loss(F.normalize(x[:, :, 0, 0]), y[:, 0, 0], 0.07),
        lambda x, y: losses.class_specific_l1(x, -x, y, 3, IGNORE),
        lambda x, y: losses.discriminator_loss("log", [x], [(1, [x])]),
        lambda x, y: losses.generator_adversarial("hinge", [x]),
        lambda x, y: losses.feature_matching([[x]], [[-x]]),
        lambda x, y: losses.perceptual([x], [-x], [1]),
        lambda x, y: losses.kl_divergence(x.flatten(1), x.flatten(1)),
    ],
    ids=["similarity", "contrast", "l1", "d", "g", "matching", "perceptual", "kl"],
)
@pytest.mark.parametrize(
    ("given_in", "computed_in"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_every_loss_is_float32_or_float64(loss, given_in, computed_in):
    x = torch.randn(4, 3, 2, 2).to(given_in)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(x, torch.randint(0, 3, (4, 2, 2))).dtype == computed_in


# Discriminators of N + 1 classes


def labelled(shape, num_classes):
    """Labels with unlabelled pixels among them and one class that is not there."""
    labels = torch.randint(num_classes - 1, shape)
    return labels.masked_fill(torch.rand(shape) < 0.2, IGNORE)


@pytest.mark.parametrize("limits", [(0.0, 1e9), (0.5, 2.0)])
def test_class_balance_matches_its_definition(limits):
    labels = labelled((2, 5, 7), 4)
    labels[0, 0, 0] = 0
    expected = naive.class_balance(labels.flatten().tolist(), 4, IGNORE, limits)
    actual = losses.class_balance(labels, 4, IGNORE, limits=limits)
    assert actual.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_labelled_pixels_matches_its_definition(smoothing):
    logits, labels = 2 * doubles(2, 5, 4, 6), labelled((2, 4, 6), 4)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    expected = naive.segmentation_real(
        logits.permute(0, 2, 3, 1).flatten(0, 2).tolist(),
        labels.flatten().tolist(), weights.tolist(), IGNORE, smoothing,
    )  # fmt: skip
    actual = losses.segmentation_real(logits, labels, weights, IGNORE, smoothing=smoothing)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_the_loss_of_generated_pixels_matches_its_definition():
    logits, shown = 2 * doubles(2, 5, 4, 6), torch.rand(2, 4, 6) < 0.7
    expected = naive.segmentation_made(
        logits.permute(0, 2, 3, 1).flatten(0, 2).tolist(), shown.flatten().tolist()
    )
    assert losses.segmentation_made(logits, shown).item() == pytest.approx(expected, rel=1e-9)


def test_label_mix_matches_its_definition():
    mixed, real, fake = (doubles(2, 4, 3, 5) for _ in range(3))
    mask = torch.rand(2, 1, 3, 5) < 0.5
    pixels = [x.permute(0, 2, 3, 1).flatten(0, 2).tolist() for x in (mixed, real, fake)]
    expected = naive.label_mix(*pixels, mask.flatten().tolist())
    assert losses.label_mix(mixed, real, fake, mask).item() == pytest.approx(expected, rel=1e-9)


def test_pixels_without_a_label_or_outside_of_the_picture_weigh_nothing():
    logits = doubles(1, 4, 3, 3).requires_grad_()
    labels = torch.full((1, 3, 3), IGNORE)
    labels[0, 1, 1] = 2
    loss = losses.segmentation_real(logits, labels, torch.ones(3), IGNORE)
    loss = loss + losses.segmentation_made(logits, labels == 2)
    loss.backward()
    assert logits.grad[0, :, 1, 1].abs().min() > 0
    logits.grad[0, :, 1, 1] = 0
    assert not logits.grad.any()
    nothing = losses.segmentation_real(logits, labels.fill_(IGNORE), torch.ones(3), IGNORE)
    assert nothing.item() == 0


@pytest.mark.parametrize("name", ["class_balance", "segmentation_real", "segmentation_made"])
def test_over_two_ranks_the_losses_of_n_plus_1_classes_are_those_of_the_whole_batch(name):
    """A sum over ranks is played by adding the other half's sums."""
    logits, labels = doubles(2, 5, 4, 6), labelled((2, 4, 6), 4)

    def compute(part, reduce_sums=None):
        if name == "class_balance":
            return losses.class_balance(
                labels[part], 4, IGNORE, limits=(0, 1e9), reduce_sums=reduce_sums
            )
        if name == "segmentation_real":
            weights = torch.ones(4, dtype=torch.float64)
            return losses.segmentation_real(
                logits[part], labels[part], weights, IGNORE, reduce_sums=reduce_sums
            )
        return losses.segmentation_made(logits[part], labels[part] == 1, reduce_sums=reduce_sums)

    sums = []
    for part in (slice(0, 1), slice(1, 2)):
        compute(part, lambda x: sums.append(x) or x)
    whole = compute(slice(0, 2))
    of_rank = compute(slice(0, 1), lambda x: x + sums[1])
    torch.testing.assert_close(of_rank, whole)


def test_where_nothing_is_labelled_the_gradient_is_0_and_not_nan():
    logits = doubles(1, 5, 4, 6).requires_grad_()
    labels = torch.full((1, 4, 6), IGNORE)
    weights = losses.class_balance(labels, 4, IGNORE, limits=(0.0, float("inf")))
    losses.segmentation_real(logits, labels, weights, IGNORE).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()
