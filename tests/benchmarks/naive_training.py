"""The straightforward training step: baseline of :mod:`tests.benchmarks.bench_training`."""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

from ecgan import losses
from ecgan.models import class_specific
from ecgan.ops.class_conv import SLOPE
from ecgan.ops.pair_similarity import BOUND
from ecgan.training import step as steps


def naive_similarity(probabilities, labels, ignore):
    """Eq. 3 from the M x M matrices; the gradient passes straight through the bound."""
    total = torch.zeros((), device=labels.device)
    for p, y in zip(probabilities.float().flatten(2), labels.flatten(1), strict=True):
        labelled = y != ignore
        classes, A = y[labelled], p[:, labelled].T @ p[:, labelled]
        A = torch.where(classes[:, None] == classes, A, 1 - A)
        A = A + (A.clamp(min=BOUND) - A).detach()
        total = total - A.log().sum() / max(1, len(classes) ** 2)
    return total / len(labels)


def naive_contrast(embeddings, classes, temperature, *, ignore=None, **unused):
    """Eq. 5 from the M x M matrices."""
    if ignore is not None:
        embeddings, classes = embeddings[classes != ignore], classes[classes != ignore]
    s = embeddings @ embeddings.T / temperature
    same = classes[:, None] == classes
    positive = same & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    l = s.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    loss = (torch.logaddexp(s, l) - s).masked_fill(~positive, 0).sum(dim=1)
    counts = positive.sum(dim=1)
    return (loss / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def naive_heads(features, labels, ignore, w1, b1, w2, b2):
    """Eqs. 6 and 7, a branch for each class, on the full map."""
    image = torch.zeros_like(features[:, :3])
    for c in range(len(w1)):
        mask = (labels == c)[:, None]
        hidden = F.leaky_relu(F.conv2d(features * mask, w1[c], b1[c], padding=1), SLOPE)
        image = image + F.conv2d(hidden * mask, w2[c], b2[c], padding=1).tanh() * mask
    return image


@contextmanager
def naive_losses():
    with ExitStack() as stack:
        for place, name, f in (
            (losses, "similarity_loss", naive_similarity),
            (losses, "pixel_contrastive_loss", naive_contrast),
            (class_specific, "class_specific_heads", naive_heads),
        ):
            stack.enter_context(mock.patch.object(place, name, f))
        yield


def naive_step(both, objective, parts, factor):
    """D's turn, then G's, each with its own pass of G."""
    (inputs,) = parts
    generator, opponent = both.generator, both.discriminator
    D = opponent.network
    noise = objective.noise(inputs.positions)
    with naive_losses():
        opponent.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            made = generator.network(inputs.S, inputs.labels, inputs.image, noise)
        loss, _ = objective.discriminator_loss(D, inputs, made)
        loss.backward()
        opponent.move(factor)

        D.requires_grad_(False)
        generator.optimizer.zero_grad(set_to_none=True)
        made = generator.network(inputs.S, inputs.labels, inputs.image, noise)
        real = objective._real(inputs)
        with torch.no_grad():
            real_maps = dict(
                zip(real, objective._discriminate(D, inputs, [*real.items()]), strict=True)
            )
        values = objective.generator_terms(D, inputs, made, real_maps)
        objective.weighted(values, inputs.positions).backward()
        generator.move(factor)
        D.requires_grad_(True)
    return {"discriminator": loss.detach()} | {n: v.detach() for n, v in values.items()}


def make_plain(both, objective):
    """As torch lays out weights and makes Adam, unless it is told otherwise."""
    for network in (objective.label_generator, objective.perceptual_network):
        if network is not None:
            contiguous(network)
    for player in (both.generator, both.discriminator):
        contiguous(player.network)
        player.optimizer = torch.optim.Adam(player.network.parameters(), player.rate, steps.BETAS)


def contiguous(network):
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()


def naive_bytes(case, recipe):
    """What the matrices of Eqs. 3 and 5 take at most: those kept for gradients, and three more."""
    losses_ = recipe.losses
    pixels = case.size[0] * case.size[1]
    M = pixels // losses_.similarity_stride**2 if "similarity" in recipe.parts().terms else 0
    K = case.batch * pixels // losses_.contrastive_stride**2
    return M * M * (2 * case.batch * 5 + 16) + K * K * 24
