"""Training: terms, resumption, signals, refusals, and what a run leaves in its folder."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.exc import TorchDynamoException

from ecgan import checkpoint, losses
from ecgan.data.loader import batches, to_images
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.models.contrastive import MemoryBank
from ecgan.models.layers import condition
from ecgan.recipe import label_space, load_recipe
from ecgan.runtime import files
from ecgan.runtime.files import sha256
from ecgan.training import ema, networks
from ecgan.training import run as train
from ecgan.training import step as steps
from ecgan.training.log import Means, RunLogger
from ecgan.training.loop.banner import epochs, time_left
from ecgan.training.networks import warm_start
from ecgan.training.objective import Inputs, Objective
from ecgan.training.step import NonFiniteError
from ecgan_cli.main import cli
from tests.helpers.segmenters import overflow, save_segmenter
from tests.helpers.tiny import write_pairs

CPU = torch.device("cpu")
TINY = (
    "model.label_generator=train", "data.height=32", "data.width=64", "model.width=4",
    "model.label_generator_training={channels: 8, images: 8}",
    "evaluate.judge_training={channels: 8, images: 8}",
    "train.batch=2", "train.images=8", "train.checkpoint_every=4", "train.preview_every=4",
    "train.log_every=2", "train.ema_images=4",
)  # fmt: skip
LIGHT = (
    *TINY, "losses.perceptual_network=none", "model.label_generator=off",
    "model.segmentation_discriminator=off", "sampling.style_prior=normal",
)  # fmt: skip


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("train") / "toy"
    write_pairs(root)
    return root


@pytest.fixture
def recipe(scenes):
    def make(*overrides, base="demo", tiny=LIGHT):
        return load_recipe(base, (*tiny, f"data.root={scenes}", *overrides))

    return make


@pytest.fixture(scope="session")
def plain_values(scenes):
    return Setting(load_recipe("demo", (*LIGHT, f"data.root={scenes}"))).values()


def run(recipe, out, **options):
    return train.run(recipe, out, device="cpu", quiet=True, **options)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_state(out):
    """Everything in the newest training checkpoint, by name."""
    saved = checkpoint.load_training(checkpoint.training_checkpoints(out)[-1])
    state = {f"{n}.{k}": v for n, tensors in saved.networks.items() for k, v in tensors.items()}
    for name, optimizer in saved.optimizers.items():
        for index, values in optimizer["state"].items():
            state |= {f"{name}.{index}.{k}": v for k, v in values.items()}
    return state, saved.state


def assert_same_run(one, other):
    (ours, our_state), (theirs, their_state) = final_state(one), final_state(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert our_state == their_state
    hashes = {sha256(run / checkpoint.GENERATOR) for run in (one, other)}
    assert len(hashes) == 1
    timed = {"images_per_second"}
    of_one, of_other = (
        [{k: v for k, v in line.items() if k not in timed} for line in metrics(run)]
        for run in (one, other)
    )
    assert of_one == of_other


# Eq. 10

BASE = ["E", "Gi"]
BASE_TERMS = {"adversarial": 1, "feature_matching": 10, "perceptual": 10}


@pytest.mark.parametrize(
    ("row", "parts", "extra_terms"),
    [
        (1, [], {}),
        (2, ["Ge"], {}),
        (3, ["Ge", "Gt"], {}),
        (4, ["Ge", "Gt", "Gs"], {}),
        (5, ["Ge", "Gt", "Gs", "Gl"], {"similarity": 1}),
        (6, ["Ge", "Gt", "Gs", "Gl", "Gc", "class_specific"],
         {"similarity": 1, "contrastive": 1, "class_l1": 1}),
    ],
)  # fmt: skip
def test_a_row_of_table_3_has_its_parts_and_terms(row, parts, extra_terms):
    recipe = load_recipe(f"ablation-{row}")
    common = ["style_encoder"] * recipe.model.style + ["D", "perceptual_network"]
    assert sorted(recipe.parts().names) == sorted([*BASE, *parts, *common])
    kl = {"kl": 0.05} if recipe.model.style else {}
    assert recipe.parts().terms == BASE_TERMS | extra_terms | kl
    expected = {"edge": 1, "coarse": 1, "image": 2}
    absent = [] if "Gs" in parts else ["image"]
    absent += [] if "Ge" in parts else ["edge"]
    assert recipe.parts().pictures == {k: v for k, v in expected.items() if k not in absent}


@pytest.mark.parametrize(
    ("override", "part", "term"),
    [
        ("losses.similarity=0", "Gl", "similarity"),
        ("losses.contrastive=0", "Gc", "contrastive"),
        ("losses.class_l1=0", "class_specific", "class_l1"),
        ("losses.perceptual=0", "perceptual_network", "perceptual"),
        ("losses.kl=0", None, "kl"),
        ("model.label_generator=off", "Gl", "similarity"),
        ("model.contrastive=false", "Gc", "contrastive"),
        ("model.class_specific=false", "class_specific", "class_l1"),
        ("losses.perceptual_network=none", "perceptual_network", "perceptual"),
    ],
)
def test_a_weight_of_zero_leaves_out_the_term_and_what_only_it_needs(override, part, term):
    whole = "model.label_generator=train"
    full, less = load_recipe("demo", [whole]), load_recipe("demo", [whole, override])
    assert set(full.parts().terms) - set(less.parts().terms) == {term}
    assert set(full.parts().names) - set(less.parts().names) == ({part} if part else set())


class Setting:
    """Networks and one batch of a recipe, for looking at single terms."""

    def __init__(self, recipe, **networks):
        self.recipe, self.space = recipe, label_space(recipe.data)
        self.train_set, _ = train.build_sets(recipe, self.space)
        self.objective = Objective(recipe, self.space, CPU, **networks)
        self.trained = steps.build(recipe, self.space, CPU)
        batch = next(batches(self.train_set, 0, recipe.train.batch))
        self.inputs = Inputs(
            batch.keys, batch.positions, batch.labels.long(),
            condition(batch.labels, batch.boundary, self.space), to_images(batch.images),
            None if batch.edges is None else to_images(batch.edges).expand(-1, 3, -1, -1),
        )  # fmt: skip

    def made(self):
        noise = self.objective.noise(self.inputs.positions)
        side = self.trained.side.eval()
        return side(self.inputs.S, self.inputs.labels, self.inputs.image, noise)

    def values(self):
        """D's loss and G's terms, nothing moved; power iterations stand still."""
        discriminator = self.trained.discriminator
        network = None if discriminator is None else discriminator.network.eval()
        made, maps, values = self.made(), {}, {}
        if network is not None:
            loss, maps = self.objective.discriminator_loss(network, self.inputs, made)
            values["discriminator"] = loss
        values |= self.objective.generator_terms(network, self.inputs, made, maps)
        return {name: value.item() for name, value in values.items()}


def test_the_image_weighs_lambda_and_the_real_image_all_of_its_fakes(recipe):
    """Every judged term is linear in lambda: edge and coarse once, the image lambda times."""
    at = {
        weight: Setting(recipe(f"losses.refined={weight}", "train.augment=none")).values()
        for weight in (0, 1, 3)
    }
    for name in ("discriminator", "adversarial", "feature_matching"):
        step = at[1][name] - at[0][name]
        assert step != 0, name
        assert at[3][name] == pytest.approx(at[0][name] + 3 * step, rel=1e-5), name
    for name in ("contrastive", "class_l1", "kl"):
        assert at[3][name] == at[0][name]


def test_without_gs_the_coarse_image_is_all_there_is(recipe):
    setting = Setting(recipe("model.semantic_preserving=false"))
    assert setting.recipe.parts().pictures == {"edge": 1, "coarse": 1}
    made = setting.made()
    assert made.generated.image is made.generated.coarse
    assert "adversarial" in setting.values()


def test_without_ge_nobody_sees_edges(recipe):
    setting = Setting(recipe("model.edge_generator=false", "model.edge_transfer=false"))
    assert setting.inputs.edge is None
    assert setting.recipe.parts().pictures == {"coarse": 1, "image": 2}
    assert setting.values().keys() >= {"adversarial", "feature_matching"}


def test_the_fused_image_takes_the_terms_of_lambda(recipe):
    setting = Setting(recipe("model.output=fused", "model.semantic_preserving=false"))
    assert setting.recipe.parts().pictures == {"edge": 1, "coarse": 1, "image": 2}
    assert "fusion" in setting.recipe.parts().names


@pytest.mark.slow
def test_without_terms_for_it_there_is_no_discriminator(recipe, tmp_path):
    lonely = recipe("losses.adversarial=0", "losses.feature_matching=0", "train.images=2")
    assert "D" not in lonely.parts().names
    run(lonely, tmp_path / "run")
    assert set(lonely.parts().terms) < set(metrics(tmp_path / "run")[0])
    assert "discriminator" not in metrics(tmp_path / "run")[0]


@pytest.mark.parametrize(
    "override",
    [
        "losses.adversarial_kind=log",
        "losses.class_l1_mean=pixels",
        "losses.temperature=0.5",
        "losses.contrastive_stride=8",
        "losses.contrastive_taps=[0,1]",
        "train.augment=none",
        "train.seed=3",
        "model.spectral_norm=none",
        "data.edges=hed",
    ],
)
def test_a_setting_changes_what_is_computed(recipe, plain_values, override):
    if override == "data.edges=hed":
        setting = Setting(recipe(override, "data.hed_weights=there.h5"))
        assert setting.inputs.edge is None  # found on the device, from the crop
        return
    assert Setting(recipe(override)).values() != plain_values


def test_every_part_of_g_is_reached_by_a_term(recipe):
    setting = Setting(recipe())
    steps.step(setting.trained, setting.objective, [setting.inputs], 1.0)
    side = setting.trained.side
    assert [name for name, p in side.named_parameters() if p.grad is None] == []


def test_d_learns_from_its_own_loss_alone(recipe):
    setting = Setting(recipe())
    network = setting.trained.discriminator.network.eval()
    setting.trained.side.eval()
    steps.step(setting.trained, setting.objective, [setting.inputs], 0.0)
    after_step = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    loss, _ = setting.objective.discriminator_loss(network, setting.inputs, setting.made())
    loss.backward()
    for own, parameter in zip(after_step, network.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_batch_in_parts_takes_one_step_of_their_mean(recipe):
    """In evaluation mode no part of the networks looks at the whole batch."""
    plain = ("train.batch=4", "losses.contrastive=0", "losses.class_l1_mean=pixels")
    gradients = []
    for num_parts in (1, 2):
        setting = Setting(recipe(*plain, "losses.class_l1=0"))
        setting.trained.side.eval()
        setting.trained.discriminator.network.eval()
        size = 4 // num_parts
        parts = [
            Inputs(*(value[i : i + size] for value in setting.inputs)) for i in range(0, 4, size)
        ]
        steps.step(setting.trained, setting.objective, parts, 0.0)
        networks = (setting.trained.side, setting.trained.discriminator.network)
        gradients.append([p.grad for n in networks for p in n.parameters() if p.grad is not None])
    for whole, added in zip(*gradients, strict=True):
        assert (added - whole).norm() <= 1e-2 * whole.norm() + 1e-4


def test_rates_are_constant_then_fall_to_zero():
    recipe = load_recipe("demo", ["train.images=100", "train.lr_decay=0.5"])
    factors = [steps.rate_factor(recipe, seen) for seen in (0, 50, 75, 100, 104)]
    assert factors == [1, 1, 0.5, 0, 0]
    constant = load_recipe("demo", ["train.lr_decay=0"])
    assert steps.rate_factor(constant, constant.train.images) == 1


def test_draws_are_keyed_by_position_alone(recipe):
    terms_ = Objective(recipe(), label_space(recipe().data), CPU)
    both, one = terms_.noise(torch.tensor([5, 6])), terms_.noise(torch.tensor([6]))
    assert torch.equal(both[1:], one)
    assert not torch.equal(both[0], both[1])


def test_the_bank_is_a_ring_of_one_embedding_of_each_class_an_image():
    bank = MemoryBank(num_taps=1, num_classes=3, size=2, dim=4, seed=0)
    labels = torch.tensor([[[0, 0], [1, 9]]])  # 9: unlabelled
    for position in range(3):
        embeddings = torch.full((1, 4, 2, 2), float(position))
        bank.add(0, embeddings, labels, torch.tensor([position]))
    embeddings, classes = bank.read(0, empty=9)
    assert classes.tolist() == [0, 0, 1, 1, 9, 9]
    assert embeddings[:4, 0].tolist() == [2, 1, 2, 1]  # 0 was the oldest
    assert bank.count.tolist() == [[3, 3, 0]]


def test_the_bank_draws_its_pixels_by_position():
    drawn = []
    for group in ([[4, 5]], [[4], [5]], [[5], [4]]):
        bank = MemoryBank(num_taps=1, num_classes=1, size=4, dim=2, seed=0)
        for positions in group:
            values = torch.stack([torch.arange(128.0).view(2, 8, 8) + 1000 * p for p in positions])
            labels = torch.zeros(len(positions), 8, 8, dtype=torch.int64)
            bank.add(0, values, labels, torch.tensor(positions))
        embeddings, classes = bank.read(0, empty=9)
        drawn.append(embeddings[classes == 0])
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2].flip(0))
    assert drawn[0][0, 0] - 4000 != drawn[0][1, 0] - 5000


# Runs

BANKED = ("losses.contrastive_bank=2", "train.accumulate=2")


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(recipe, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(recipe(*BANKED), whole) == "done"
    # the same recipe, cut off by what a scheduler sends
    stopper = threading.Thread(target=_interrupt_after, args=(halves / "metrics.jsonl",))
    stopper.start()
    assert run(recipe(*BANKED), halves) == "interrupted"
    stopper.join()
    seen = final_state(halves)[1]["images_seen"]
    assert 0 < seen < 8
    assert run(recipe(*BANKED), halves) == "done"
    assert_same_run(whole, halves)


def _interrupt_after(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_training_says_what_it_does(recipe, scenes, tmp_path, capsys):
    train.run(recipe("train.images=2"), tmp_path / "run", device="cpu")
    told = capsys.readouterr().err
    assert f"training demo on cpu, into {tmp_path / 'run'}\n" in told
    assert f"data: {scenes}, " in told
    assert "pairs of train" in told
    assert "; 32 x 64 pixels\n" in told
    assert "M parameters; 2 images in steps of 2, " in told


@pytest.mark.slow
def test_a_training_says_once_what_it_measured(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ecgan.training.log.RATE_STEPS", 2)
    train.run(recipe(), tmp_path / "run", device="cpu")
    lines = [line for line in capsys.readouterr().err.splitlines() if "measured" in line]
    assert len(lines) == 1
    assert re.fullmatch(r"measured: [\d.e+]+ images/s, about \d+ s for the 4 images left", lines[0])


def test_the_time_left_names_what_is_not_in_it(recipe):
    images = "train.images=1000"
    assert time_left(recipe(images), 400, 2.0) == (
        "measured: 2 images/s, about 5 min 0 s for the 600 images left"
    )
    scored = recipe(images, "train.evaluate_every=100", "evaluate.judge=train")
    assert time_left(scored, 400, 2.0).endswith(
        "; without the time of 6 scores, and of the judge on 8 images"
    )


def test_the_rate_is_measured_without_the_first_step(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for steps_of, seconds, expected in ((20, 1.0, 4.0), (3, 31.0, 4 / 31)):
        with RunLogger(tmp_path, 0, 1000, quiet=True) as log:
            found = []
            for step in range(steps_of):
                now[0] += 500.0 if step == 0 else seconds
                log.advance(4, Means())
                found.append(log.first_rate())
            assert found[:-1] == [None] * (steps_of - 1)
            assert found[-1] == pytest.approx(expected)
            assert log.first_rate() is None


def events(folder):
    """What TensorBoard reads: values and pictures by tag and step."""
    found = EventAccumulator(str(folder))
    found.Reload()
    scalars = {
        tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    return scalars, {tag: [e.step for e in found.Images(tag)] for tag in found.Tags()["images"]}


def test_tensorboard_reads_the_log_and_an_interrupted_run_drops_what_is_done_again(tmp_path):
    picture = Image.new("RGB", (64, 32), (9, 8, 7))
    for seen, value in ((0, 1.0), (4, 2.0)):
        with RunLogger(tmp_path, seen, 8, quiet=True) as log:
            for images in range(seen + 2, 9, 2):
                log.log(images, {"adversarial": value, "miou": float("nan")})
            log.preview(8, picture)
    scalars, images = events(tmp_path / "tensorboard")
    assert scalars["adversarial"] == [(2, 1.0), (4, 1.0), (6, 2.0), (8, 2.0)]
    assert len(scalars["miou"]) == 4
    assert images == {"samples": [8]}
    assert [line["images"] for line in metrics(tmp_path)] == [2, 4, 6, 8]


def test_a_full_disk_ends_tensorboards_log_with_one_note(tmp_path, monkeypatch, capsys):
    with RunLogger(tmp_path, 0, 8, quiet=False) as log:
        log.log(2, {"adversarial": 1.0})
        (path,) = (tmp_path / "tensorboard").iterdir()
        full = Path("/dev/full").open("wb")  # noqa: SIM115  the logger closes it
        monkeypatch.setattr(log._board, "_file", full)
        for images in (4, 6, 8):
            log.log(images, {"adversarial": 1.0, "miou": 0.5})
    said = capsys.readouterr().err
    assert said.count(f"{path}: cannot write: No space left on device") == 1
    assert "Traceback" not in said
    assert full.closed
    assert [line["images"] for line in metrics(tmp_path)] == [2, 4, 6, 8]
    assert events(tmp_path / "tensorboard")[0] == {"adversarial": [(2, 1.0)]}


def test_thousands_of_epochs_are_remarked_upon():
    assert epochs(100, 8) == "12.5 epochs"
    assert epochs(8000, 8).startswith("1,000.0 epochs: each pair is seen so often")


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(recipe, tmp_path):
    out = tmp_path / "run"
    run(recipe("train.images=4"), out)
    before = sha256(out / checkpoint.GENERATOR)
    run(recipe("train.images=4"), out)
    assert sha256(out / checkpoint.GENERATOR) == before
    run(recipe("train.images=6"), out)
    assert [line["images"] for line in metrics(out)] == [2, 4, 6]
    assert checkpoint.load_generator(out / checkpoint.GENERATOR).metadata.images_seen == 6


@pytest.mark.slow
def test_a_run_folder_has_all_that_others_need(recipe, tmp_path):
    out = tmp_path / "run"
    run(recipe("losses.contrastive_bank=1"), out)
    # with what auto means on this device
    saved = recipe("losses.contrastive_bank=1", "train.precision=float32")
    assert load_recipe(str(out / "recipe.yaml")) == saved
    expected = {"images", "discriminator", "lr_generator", "lr_discriminator", "images_per_second"}
    lines = metrics(out)
    assert [line["images"] for line in lines] == [2, 4, 6, 8]
    assert all(set(line) == expected | set(recipe().parts().terms) for line in lines)
    assert lines[-1]["lr_generator"] == pytest.approx(recipe().train.lr_generator / 2)
    names = {path.name for path in out.iterdir()}
    assert {"samples-000000004.png", "samples-000000008.png", "tensorboard"} <= names
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"000000004", "000000008"}
    assert {p.name for p in (out / "checkpoints" / "000000008").iterdir()} == {
        "generator.safetensors", "discriminator.safetensors", "averaged.safetensors",
        "bank.safetensors", "generator_optimizer.pt", "discriminator_optimizer.pt", "state.json",
    }  # fmt: skip
    file = checkpoint.load_generator(out / checkpoint.GENERATOR)
    assert file.metadata.images_seen == 8
    assert file.style_encoder is not None
    assert len(file.metadata.seen_keys) > 5
    # the file holds the average, with statistics of its own, not the training's weights
    trained = load_file(out / "checkpoints" / "000000008" / "generator.safetensors")
    kept = file.generator.state_dict()
    weight = "branches.image_branch.to_picture.weight"
    assert not torch.equal(kept[weight], trained[f"generator.{weight}"])
    mean = "trunk.blocks.0.spade_1.norm.running_mean"
    assert not torch.equal(kept[mean], trained[f"generator.{mean}"])


def test_another_recipe_or_folder_is_refused_before_anything_is_written(recipe, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text(recipe().to_yaml())
    with pytest.raises(UserError, match=r"differs in model.width \(4, now 8\)"):
        run(recipe("model.width=8"), out)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").touch()
    with pytest.raises(UserError, match="not empty, and not a run of ecgan train"):
        run(recipe(), foreign)
    with pytest.raises(UserError, match="a file; give a folder"):
        run(recipe(), foreign / "holiday.jpg")
    with pytest.raises(UserError, match=r"train.batch \(6\) must divide by ranks x accumulate"):
        train.check(recipe("train.batch=6", "train.accumulate=2"), tmp_path / "new", device=CPU,
                    num_processes=2)  # fmt: skip
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_keeps_its_class_list(recipe, scenes, tmp_path):
    out = tmp_path / "run"
    run(recipe("train.images=2"), out)
    other = tmp_path / "other"
    write_pairs(other)
    document = json.loads((other / "classes.json").read_text())
    document["classes"][0]["name"] = "lane"
    (other / "classes.json").write_text(json.dumps(document))
    before = (out / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"was trained on other classes \(5: road, .*now 5: lane"):
        run(recipe("train.images=4", f"data.root={other}"), out)
    assert (out / "recipe.yaml").read_text() == before


def test_a_recipe_without_terms_is_refused(recipe, tmp_path):
    weights = [f"losses.{n}=0" for n in ("adversarial", "feature_matching", "kl", "contrastive")]
    with pytest.raises(UserError, match="sums no term"):
        run(recipe(*weights, "losses.class_l1=0"), tmp_path / "run")


def test_gradients_that_are_not_finite_are_seen(recipe):
    setting = Setting(recipe())
    side = setting.trained.side
    side.generator.branches.image_branch.to_picture.weight.register_hook(lambda g: g * torch.inf)
    values = steps.step(setting.trained, setting.objective, [setting.inputs], 1.0)
    with pytest.raises(NonFiniteError, match="gradient of G"):
        values.read()


@pytest.mark.slow
def test_a_term_that_is_not_finite_ends_the_run_and_nothing_later_is_written(
    recipe, tmp_path, monkeypatch
):
    """It is read after the next step was launched, or before anything is written."""
    honest, calls = losses.kl_divergence, []

    def at_third(mu, log_var):
        calls.append(None)
        return honest(mu, log_var) * (torch.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(losses, "kl_divergence", at_third)
    changed = recipe("train.images=24", "train.checkpoint_every=2", "train.keep=9")
    with pytest.raises(UserError, match=r"the term kl is nan at step 2 \(after 4 images\), on \w+"):
        run(changed, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [int(re.sub(r"\D", "", name)) for name in names] == [2, 4]


def test_auto_is_saved_as_what_it_means(recipe):
    auto = recipe("losses.similarity_stride=auto")
    on_cpu, on_cuda = (auto.resolved(kind) for kind in ("cpu", "cuda"))
    assert (on_cpu.losses.similarity_stride, on_cpu.train.precision) == (4, "float32")
    assert (on_cuda.losses.similarity_stride, on_cuda.train.precision) == (1, "bfloat16")
    assert recipe("losses.similarity_stride=2").resolved("cpu").losses.similarity_stride == 2


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_is_refused(recipe, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with (
        files.held_lock(out / ".lock", str(out)),
        pytest.raises(UserError, match="is being written by"),
    ):
        run(recipe(), out)
    assert list(out.iterdir()) == []
    run(recipe("train.images=2"), out)
    assert not (out / ".lock").exists()


def test_labels_out_of_range_stop_a_run_before_it_starts(recipe, scenes, tmp_path):
    few = recipe("data.classes=[road, sky, building]")
    with pytest.raises(UserError, match=r"label \d+ found in"):
        run(few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_term_step_and_keys(recipe, tmp_path):
    out = tmp_path / "run"
    wild = recipe("train.lr_generator=1e30", "train.checkpoint_every=1000")
    with pytest.raises(UserError) as caught:
        run(wild, out)
    message = str(caught.value)
    assert "the term " in message
    assert any(f" {name} is " in message for name in ("discriminator", *wild.parts().terms))
    assert "at step 1 (after 2 images), on scene-" in message
    assert checkpoint.training_checkpoints(out) == []


@pytest.mark.slow
def test_the_best_generator_is_kept(recipe, tmp_path):
    out = tmp_path / "run"
    run(recipe("train.evaluate_every=4", "train.keep=1"), out)
    scored = [line for line in metrics(out) if "miou" in line]
    assert [line["images"] for line in scored] == [4, 8]
    best = max(scored, key=lambda line: line["miou"])["images"]
    assert checkpoint.load_generator(out / checkpoint.BEST).metadata.images_seen == best
    assert f"{best:09d}" in {p.name for p in (out / "checkpoints").iterdir()}


# --init


def classes(*names):
    return LabelSpace(tuple(LabelClass(i, name, (i, i, i)) for i, name in enumerate(names)))


@pytest.mark.slow
def test_another_generator_of_other_classes_gives_what_fits(recipe, tmp_path):
    theirs, ours = classes("road", "sky", "tree"), classes("tree", "car", "road", "lamp")
    same = recipe()
    source_network = checkpoint.build_generator(same, theirs)
    path = tmp_path / "generator.safetensors"
    checkpoint.save_generator(
        path, source_network, same, theirs, style_encoder=checkpoint.build_style_encoder(same)
    )
    source = checkpoint.load_generator(path)
    target = checkpoint.build_generator(same, ours)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    taken = warm_start(target, None, same, ours, source)
    after, given = target.state_dict(), source.generator.state_dict()

    assert taken.classes == ("tree", "road")
    assert taken.new_classes == ("car", "lamp")
    # heads of a class: first axis
    assert torch.equal(after["class_specific.weight_1"][0], given["class_specific.weight_1"][2])
    assert torch.equal(after["class_specific.weight_1"][2], given["class_specific.weight_1"][0])
    assert torch.equal(after["class_specific.weight_1"][1], before["class_specific.weight_1"][1])
    # a condition of SPADE: second axis, with unlabelled pixels after the classes
    spade = "trunk.blocks.3.spade_1.hidden.weight"
    assert torch.equal(after[spade][:, [0, 2, 4]], given[spade][:, [2, 0, 3]])
    assert torch.equal(after[spade][:, [1, 3]], before[spade][:, [1, 3]])
    # Gs: classes, and S after F, I' and I'_e
    to_classes = "semantic_preserving.to_classes.weight"
    first = given[to_classes].shape[1] - 4
    assert torch.equal(after[to_classes][0, :first], given[to_classes][2, :first])
    assert torch.equal(after[to_classes][2, first], given[to_classes][0, first + 2])
    assert torch.equal(after[to_classes][1], before[to_classes][1])
    # what knows no classes is taken whole
    plain = "branches.edge_branch.to_picture.weight"
    assert torch.equal(after[plain], given[plain])


@pytest.mark.slow
def test_a_generator_of_another_width_is_named_as_not_fitting(recipe, tmp_path):
    space = classes("road", "sky")
    wide = recipe("model.width=8", "model.style=false")
    path = tmp_path / "generator.safetensors"
    checkpoint.save_generator(path, checkpoint.build_generator(wide, space), wide, space)
    narrow = recipe()
    encoder = checkpoint.build_style_encoder(narrow)
    taken = warm_start(
        checkpoint.build_generator(narrow, space), encoder, narrow, space,
        checkpoint.load_generator(path),
    )  # fmt: skip
    text = "\n".join(taken.lines())
    assert "in the file, (" in text
    assert any("not in the file" in reason for reason in taken.left)


@pytest.mark.slow
def test_a_run_starts_from_another_and_remembers_it(recipe, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(recipe("train.images=4"), first)
    longer = recipe("train.images=2", "train.lr_generator=1e-9", "train.ema_images=0")
    run(longer, second, init=first / checkpoint.GENERATOR)
    given = checkpoint.load_generator(first / checkpoint.GENERATOR).generator.state_dict()
    got = checkpoint.load_generator(second / checkpoint.GENERATOR).generator.state_dict()
    name = "branches.image_branch.to_picture.weight"
    torch.testing.assert_close(got[name], given[name], rtol=0, atol=1e-6)
    run(longer, second, init=first / checkpoint.GENERATOR)  # the same command again
    with pytest.raises(UserError, match="did not start from --init"):
        run(longer, second, init=second / checkpoint.GENERATOR)


# The command


def ecgan_train(*arguments):
    return CliRunner().invoke(cli, ["train", *arguments])


def sets(overrides):
    return [word for override in overrides for word in ("--set", override)]


@pytest.mark.slow
def test_a_dry_run_tells_and_writes_nothing(scenes, tmp_path):
    out = tmp_path / "run"
    result = ecgan_train(
        "--recipe", "demo", "--data", str(scenes), "--out", str(out), "--dry-run", *sets(TINY)
    )
    assert result.exit_code == 0, result.output
    for text in ("4 of 2 images", "G 0.", "GiB", "validation 2 images", "10 feature_matching"):
        assert text in result.output, result.output
    assert not out.exists()


@pytest.mark.parametrize("role", ["label generator", "judge"])
@pytest.mark.parametrize("options", [("--dry-run",), ()])
def test_named_segmenters_are_read_before_the_first_step(scenes, tmp_path, role, options):
    folder = tmp_path / "segmenter"
    save_segmenter(folder)
    key = {"label generator": "model.label_generator", "judge": "evaluate.judge"}[role]
    words = [
        *("--recipe", "demo", "--data", str(scenes), "--out", str(tmp_path / "run"), "-q"),
        *("--device", "cpu", *options),
        *sets((*LIGHT, f"{key}={folder}", "train.evaluate_every=8")),
    ]

    def refused(text):
        result = ecgan_train(*words)
        assert result.exit_code == 1, result.output
        assert f"{folder}" in result.output
        assert text in result.output
        assert not list(tmp_path.glob("run/metrics.jsonl"))

    overflow(folder)
    refused(f"{role} {folder}: its predictions are NaN or infinite")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    refused("not a whole safetensors file")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [(), ("--nproc-per-node", "2"), ("--batch", "4", "-q"), ("--init",), ("--profile", "1")],
)
def test_a_dry_run_writes_nothing_beside_any_option(scenes, recipe, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    if options == ("--init",):
        options = ("--init", str(untrained_generator(recipe(), tmp_path / "old")))
    before = sorted(tmp_path.rglob("*"))
    result = ecgan_train(
        *("--recipe", "demo", "--data", str(scenes), "--dry-run", "--device", "cpu"),
        *options, *sets((*TINY, "model.label_generator=train")),
    )  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before
    if "--profile" in options:
        assert result.exit_code == 2
        assert "give one of them" in result.output
        return
    assert result.exit_code == 0, result.output
    if "--init" in options:
        assert re.search(r"init: +.*\n.* of .* weights taken, 5 classes matched", result.output)
    if "--nproc-per-node" in options:
        assert "(1 at a time on a rank)" in result.output


def untrained_generator(recipe, folder):
    """A generator file as a run writes it."""
    space, path = label_space(recipe.data), folder / checkpoint.GENERATOR
    style_encoder = checkpoint.build_style_encoder(recipe)
    checkpoint.save_generator(
        path, checkpoint.build_generator(recipe, space), recipe, space, style_encoder=style_encoder
    )
    return path


@pytest.mark.parametrize("ranks", ["option", "torchrun"])
def test_a_profile_of_several_ranks_is_refused(scenes, monkeypatch, ranks):
    options = ("--nproc-per-node", "2") if ranks == "option" else ()
    if ranks == "torchrun":
        monkeypatch.setenv("WORLD_SIZE", "2")
    result = ecgan_train(
        *("--recipe", "demo", "--data", str(scenes), "--profile", "1", *options), *sets(LIGHT)
    )
    assert result.exit_code == 2
    assert "--profile measures one process, got 2" in result.output
    assert "elapsed" not in result.output


@pytest.mark.slow
def test_a_profile_starts_from_the_generator_of_init(scenes, recipe, tmp_path, monkeypatch):
    init = untrained_generator(recipe("model.width=8"), tmp_path)
    started = []
    monkeypatch.setattr(
        networks, "warm_start", lambda *args: started.append(args[-1].sha256) or warm_start(*args)
    )
    result = ecgan_train(
        *("--recipe", "demo", "--data", str(scenes), "--profile", "1", "--device", "cpu"),
        *("--init", str(init.parent), *sets(LIGHT)),
    )
    assert result.exit_code == 0, result.output
    assert started == [sha256(init)]


def test_the_command_refuses_what_is_not_there(scenes, tmp_path):
    for arguments, message in (
        (("--recipe", "no"), "no recipe 'no'"),
        (("--recipe", "demo", "--init", "no.safetensors"), "--init no.safetensors: no such file"),
        (("--recipe", "demo", "--init", str(tmp_path)), f"{tmp_path}/generator.safetensors: no"),
        (("--recipe", "demo", "--data", "no"), "no"),
        (("--recipe", "demo", "--data", str(scenes), "--device", "tpu"), "expected auto, cpu"),
    ):
        result = ecgan_train(*arguments, "--out", str(tmp_path / "run"))
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "Traceback" not in result.output
    assert ecgan_train("--out", "x").exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        (
            (), torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            r"2 images at once \(CUDA out of memory. Tried\).*--set train.checkpointing=3 takes",
        ),
        (
            ("train.compile=true",), torch.OutOfMemoryError("full"),
            "--set train.compile=false --set train.checkpointing=3 takes less",
        ),
        (
            ("train.compile=true",), TorchDynamoException("no C compiler"),
            "cannot be compiled here .*no C compiler.*add --set train.compile=false",
        ),
    ],
)  # fmt: skip
def test_what_a_step_fails_of_is_told_with_the_way_out(
    recipe, tmp_path, monkeypatch, overrides, error, sentence
):
    def fail(*_):
        raise error

    monkeypatch.setattr(steps, "step", fail)
    with pytest.raises(UserError, match=sentence):
        run(recipe("train.batch=2", *overrides), tmp_path / "run")


@pytest.mark.slow
def test_statistics_are_estimated_over_few_layouts_at_once(recipe, tmp_path, monkeypatch):
    """One rank does it, in float32, and the batch is that of all ranks."""
    sizes = []
    monkeypatch.setattr(ema, "LAYOUTS_AT_ONCE", 1)
    measured = ema.reestimate_statistics
    monkeypatch.setattr(
        ema,
        "reestimate_statistics",
        lambda generator, batches: measured(
            generator, (sizes.append(len(S)) or (S, z) for S, z in batches)
        ),
    )
    assert run(recipe("train.images=4"), tmp_path / "run") == "done"
    assert set(sizes) == {1}


@pytest.mark.slow
def test_checkpointing_may_change_on_the_way(recipe, tmp_path):
    """It changes no number."""
    assert run(recipe("train.images=4"), tmp_path / "run") == "done"
    longer = recipe("train.images=8", "train.checkpointing=2")
    assert run(longer, tmp_path / "run") == "done"


def start(*arguments, inside=()):
    """A training in a process of its own, which ``inside``, the beginning of a command, may be."""
    command = [*inside, sys.executable, "-m", "ecgan_cli", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.mark.slow
def test_with_everything_on_a_resumed_run_equals_an_unbroken_one(recipe, tmp_path):
    overrides = ("train.evaluate_every=4", "train.images=12", "data.workers=1", *BANKED)
    full = recipe(*overrides, tiny=TINY)
    assert "perceptual" in full.parts().terms
    assert run(full, tmp_path / "whole") == "done"
    halves = tmp_path / "halves"
    stopper = threading.Thread(target=_interrupt_after, args=(halves / "metrics.jsonl",))
    stopper.start()
    assert run(full, halves) == "interrupted"
    stopper.join()
    assert run(full, halves) == "done"
    assert_same_run(tmp_path / "whole", halves)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_to_the_command_leaves_a_checkpoint_and_exit_code_130(
    scenes, tmp_path, ranks, number
):
    out = tmp_path / "run"
    arguments = [
        "--recipe", "demo", "--data", str(scenes), "--out", str(out), "--device", "cpu",
        *sets((*LIGHT, "train.images=100000", "train.checkpoint_every=100000",
               "train.preview_every=100000")),
    ]  # fmt: skip
    if ranks > 1:
        arguments += ["--nproc-per-node", str(ranks)]
    process = start(*arguments)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert len(checkpoint.training_checkpoints(out)) == 1, output


@pytest.mark.slow
def test_the_command_starts_two_ranks_that_leave_one_run(scenes, tmp_path):
    out = tmp_path / "run"
    process = start(
        "--recipe", "demo", "--data", str(scenes), "--out", str(out), "--device", "cpu",
        "--nproc-per-node", "2", *sets((*TINY, "losses.contrastive_bank=2")),
    )  # fmt: skip
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert [line["images"] for line in metrics(out)] == [2, 4, 6, 8]
    assert checkpoint.load_generator(out / checkpoint.GENERATOR).metadata.images_seen == 8


def test_a_checkpoint_of_an_unfused_adam_goes_on_as_the_fused_one(recipe):
    one, other = (Setting(recipe()).trained.generator for _ in range(2))
    plain = torch.optim.Adam(one.network.parameters(), 1e-4, steps.BETAS)
    for parameter in one.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    plain.step()
    other.load_optimizer(plain.state_dict())
    assert other.optimizer.param_groups[0]["fused"]
    for own, saved in zip(other.network.parameters(), one.network.parameters(), strict=True):
        own.data.copy_(saved.data)
        own.grad = torch.ones_like(own)
    other.move(1e-4 / other.rate)
    plain.step()
    for own, expected in zip(other.network.parameters(), one.network.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_a_generator_says_what_those_saw_that_it_started_from(recipe, tmp_path):
    """Over two starts, and over a resumption without the option."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    run(recipe("train.images=4"), first)
    generator = first / checkpoint.GENERATOR
    run(recipe("train.images=4"), second, init=generator)
    run(recipe("train.images=8"), second)
    run(recipe("train.images=4"), third, init=second / checkpoint.GENERATOR)
    about = [checkpoint.read_metadata(x / checkpoint.GENERATOR) for x in (first, second, third)]
    assert about[0].inherited == []
    (one,) = about[1].inherited
    assert one.sha256 == sha256(generator)
    assert sorted(one.keys) == about[0].seen_keys != []
    assert one.classes == about[0].class_names
    assert [len(one.keys) for one in about[2].inherited] == [len(about[0].seen_keys)] * 2
    assert about[2].inherited[1] == one
