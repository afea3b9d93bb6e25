"""The feature discriminator in training, and styles of the photos' prior."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ecgan import checkpoint
from ecgan.errors import UserError
from ecgan.models.discriminators.diffaugment import draw
from ecgan.models.layers import channels_last
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.runtime.files import sha256
from ecgan.sampling.sampler import Layout, Sampler
from ecgan.training import segmentation_terms
from ecgan.training import step as steps
from ecgan.training.loop import fit
from tests.training.test_run import Setting, assert_same_run, metrics, recipe, run, scenes

__all__ = ["recipe", "scenes"]  # fixtures
FEATURES = ("model.segmentation_discriminator=features",)
STYLES = (
    "model.style_encoder=statistics", "model.style_injection=blocks", "losses.kl=0.005",
    "sampling.style_prior=photos",
)  # fmt: skip


@pytest.fixture(scope="module")
def frozen():
    return EfficientNetLite0().folded()


@pytest.fixture
def setting(recipe, frozen):
    def make(*overrides):
        made = Setting(recipe(*FEATURES, *overrides), feature_network=frozen)
        averaged = [made.inputs.image]
        critic = made.trained.segmentation_discriminator.network
        made.objective.segmentation.measure(critic, averaged)
        return made

    return make


def pair_of(setting):
    inputs, image = setting.inputs, setting.made().generated.image
    positions = inputs.positions.tolist()
    return setting.objective.segmentation.pair(inputs.image, image, inputs.labels, positions)


def test_the_frozen_network_takes_no_gradient_and_gives_one_to_the_image(setting, frozen):
    one = setting()
    image = torch.rand_like(one.inputs.image).requires_grad_()
    features = one.objective.segmentation
    seen = features.pair(one.inputs.image, image, one.inputs.labels, one.inputs.positions.tolist())
    features.generator_term(one.trained.segmentation_discriminator.network, seen).backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())


def test_photos_and_images_are_augmented_alike_and_labels_with_them(setting):
    one = setting("train.augment=diffaugment")
    inputs, features = one.inputs, one.objective.segmentation
    positions = inputs.positions.tolist()
    seen = features.pair(inputs.image, inputs.image.clone(), inputs.labels, positions)
    assert all(torch.equal(a, b) for a, b in zip(seen.real, seen.fake, strict=True))
    draws = draw(one.recipe.train.seed, positions)
    shown = (
        segmentation_terms.moved_labels(torch.ones_like(inputs.labels), draws, 0, hole=False) == 1
    )
    assert torch.equal(seen.shown, shown)
    assert not shown.all()
    assert (seen.labels[~shown] == one.space.ignore_index).all()


def test_without_augmentation_everything_is_shown(setting):
    seen = pair_of(setting("train.augment=none"))
    assert seen.shown.all()


@pytest.mark.slow
def test_d_f_learns_from_its_own_loss_alone_and_g_from_its_term(setting):
    one = setting("train.images=8")
    one.inputs = one.inputs._replace(positions=one.inputs.positions + 6)  # after the ramp
    critic, side = one.trained.segmentation_discriminator.network.eval(), one.trained.side.eval()
    steps.step(one.trained, one.objective, [one.inputs], 0.0)
    of_step = [p.grad.clone() for p in critic.parameters()]
    of_g = [p.grad.clone() for p in side.generator.parameters()]
    critic.zero_grad()
    loss, watched = one.objective.segmentation.discriminator_loss(critic, pair_of(one))
    loss.backward()
    assert set(watched) == {"segmentation_discriminator", "segmentation_accuracy", "called_made"}
    for own, parameter in zip(of_step, critic.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-3, atol=1e-6)
    without = setting("train.images=8", "losses.segmentation_adversarial=0.001")
    without.inputs = one.inputs
    without.trained.side.eval(), without.trained.segmentation_discriminator.network.eval()
    steps.step(without.trained, without.objective, [without.inputs], 0.0)
    others = [p.grad for p in without.trained.side.generator.parameters()]
    differences = [(a - b).norm() / b.norm() for a, b in zip(of_g, others, strict=True)]
    assert max(differences) > 0.01


def test_before_the_ramp_g_learns_what_it_learns_without(setting, recipe):
    """Its weight is 0 there, and no draw of another term depends on it."""
    with_it, without = setting("train.images=1000"), Setting(recipe("train.images=1000"))
    for one in (with_it, without):
        channels_last(one.trained.side)
        steps.step(one.trained, one.objective, [one.inputs], 1.0)
    pairs = zip(
        with_it.trained.side.named_parameters(), without.trained.side.named_parameters(),
        strict=True,
    )  # fmt: skip
    assert [name for (name, a), (_, b) in pairs if not torch.equal(a, b)] == []


@pytest.mark.parametrize(
    ("position", "factor"), [(0, 0), (50, 0), (99, 0.4), (101, 0.5), (150, 1), (900, 1)]
)
def test_the_weight_rises_from_5_to_15_percent_of_the_training(recipe, frozen, position, factor):
    features = Setting(
        recipe(*FEATURES, "train.images=1000", "train.batch=10"), feature_network=frozen
    ).objective.segmentation
    assert features.ramp(position) == pytest.approx(factor)


def test_a_critic_that_always_wins_does_not_learn(setting):
    one = setting()
    critic = one.trained.segmentation_discriminator.network
    critic.called_made.fill_(1.0)
    loss, watched = one.objective.segmentation.discriminator_loss(critic, pair_of(one))
    assert loss.item() == 0
    assert watched["segmentation_discriminator"] > 0


@pytest.mark.slow
def test_a_resumed_run_with_it_and_with_the_prior_equals_an_unbroken_one(recipe, tmp_path):
    settings = (*FEATURES, *STYLES, "train.accumulate=2")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(recipe(*settings), whole) == "done"
    assert_resumes(recipe, settings, halves)
    assert_same_run(whole, halves)
    logged = metrics(whole)[0]
    assert {
        "segmentation_adversarial",
        "segmentation_discriminator",
        "segmentation_accuracy",
    } <= logged.keys()
    saved = load_file(
        checkpoint.training_checkpoints(whole)[-1] / "segmentation_discriminator.safetensors"
    )
    assert saved["mean_0"].abs().sum() > 0


def assert_resumes(recipe, settings, out):
    """A run that is stopped after its first checkpoint."""
    stopped = []

    class Stop(BaseException):
        pass

    def save(state):
        original(state)
        stopped.append(state.progress.images_seen)
        raise Stop

    original = fit._save
    fit._save = save
    try:
        with pytest.raises(Stop):
            run(recipe(*settings), out)
    finally:
        fit._save = original
    assert stopped == [4]
    assert run(recipe(*settings), out) == "done"


@pytest.mark.slow
def test_the_prior_of_the_photos_is_in_the_file_and_styles_are_drawn_from_it(recipe, tmp_path):
    run(recipe(*STYLES), tmp_path / "run")
    file = checkpoint.load_generator(tmp_path / "run" / checkpoint.GENERATOR)
    assert file.style_prior is not None
    assert type(file.style_encoder).__name__ == "StatisticsEncoder"
    assert file.style_prior.mean.abs().sum() > 0


@pytest.mark.slow
def test_a_finished_run_gets_the_prior_when_it_is_asked_for(recipe, tmp_path):
    out = tmp_path / "run"
    run(recipe(), out)
    first = sha256(out / checkpoint.GENERATOR)
    run(recipe(), out)
    assert sha256(out / checkpoint.GENERATOR) == first
    run(recipe("sampling.style_prior=photos"), out)
    metadata = checkpoint.read_metadata(out / checkpoint.GENERATOR)
    assert metadata.recipe["sampling"]["style_prior"] == "photos"
    assert sha256(out / checkpoint.GENERATOR) != first
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["images"] == 8


# OASIS

TINY_OASIS = (
    "data.height=32", "data.width=64", "data.workers=0", "model.width=4",
    "evaluate.judge_training={channels: 8, images: 8}", "train.batch=2", "train.images=8",
    "train.checkpoint_every=4", "train.preview_every=4", "train.log_every=2", "train.ema_images=4",
)  # fmt: skip


@pytest.mark.slow
def test_the_recipe_oasis_trains_resumes_and_samples_many_styles(recipe, tmp_path):
    own = ("train.accumulate=1",)

    def oasis(*overrides):
        return recipe(*overrides, base="oasis", tiny=TINY_OASIS)

    assert oasis().parts().terms == {"segmentation_adversarial": 1}
    assert oasis().parts().names == ["E", "Gi", "segmentation_discriminator"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(oasis(*own), whole) == "done"
    assert_resumes(oasis, own, halves)
    assert_same_run(whole, halves)
    sampler = Sampler(whole / checkpoint.GENERATOR, torch.device("cpu"))
    layout = Layout("a", np.zeros((32, 64), np.uint8), None)
    pairs = sampler.start([layout], torch.randn(1, 3, 256), 3).result()[0]
    assert len({pair.image.tobytes() for pair in pairs}) == 3


def test_the_recipe_gaugan_is_the_trunk_with_a_style(recipe):
    made = recipe(base="gaugan", tiny=())
    assert made.parts().names == ["E", "Gi", "style_encoder", "D", "perceptual_network"]
    assert made.parts().terms.keys() == {"adversarial", "feature_matching", "perceptual", "kl"}


def test_label_mix_is_a_part_of_the_loss_of_the_u_net_alone(recipe):
    losses = []
    for weight in (0, 10):
        one = Setting(recipe(f"losses.label_mix={weight}", base="oasis", tiny=TINY_OASIS))
        critic = one.trained.segmentation_discriminator.network.eval()
        loss, _ = one.objective.segmentation.discriminator_loss(critic, pair_of(one))
        losses.append(loss.item())
    assert losses[1] > losses[0]
    masks = one.objective.segmentation._label_mask(pair_of(one))
    labels = pair_of(one).labels[:, None]
    for mask, label in zip(masks, labels, strict=True):
        for value in label.unique():
            assert len(mask[label == value].unique()) == 1


def test_the_photos_prior_needs_a_style_encoder(recipe):
    with pytest.raises(UserError, match="style_prior: photos needs"):
        recipe("sampling.style_prior=photos", base="oasis", tiny=())
