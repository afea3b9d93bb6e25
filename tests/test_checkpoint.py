"""Generators and training checkpoints: round trips, whole or not at all, and every refusal."""

import json
import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch
import yaml

from ecgan import checkpoint
from ecgan.checkpoint import Training
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.recipe import load_recipe

SPACE = LabelSpace(tuple(LabelClass(i, f"class {i}", (i, 0, 0)) for i in range(3)))
TINY = ("data.height=32", "data.width=64", "model.width=4")


def tiny_recipe(*overrides):
    return load_recipe("demo", (*TINY, *overrides))


@pytest.fixture
def saved(tmp_path):
    """A run folder with a generator in it, and the networks."""
    recipe = tiny_recipe("train.images=8")
    generator = checkpoint.build_generator(recipe, SPACE)
    style_encoder = checkpoint.build_style_encoder(recipe)
    run = tmp_path / "runs" / "tiny"
    checkpoint.save_generator(
        run / checkpoint.GENERATOR,
        generator,
        recipe,
        SPACE,
        style_encoder=style_encoder,
        seen_keys=["b", "a"],
        images_seen=8,
    )
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    return run, recipe, generator, style_encoder


def test_a_generator_is_read_back_with_recipe_classes_and_keys(saved):
    run, recipe, generator, style_encoder = saved
    loaded = checkpoint.load_generator(run / checkpoint.GENERATOR)
    assert loaded.recipe == recipe
    assert loaded.space == SPACE
    assert loaded.metadata.seen_keys == ["a", "b"]
    assert loaded.metadata.images_seen == 8
    assert not loaded.generator.training
    for ours, theirs in ((generator, loaded.generator), (style_encoder, loaded.style_encoder)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_the_same_generator_gives_the_same_bytes(saved):
    run, recipe, generator, style_encoder = saved
    again = run / "again.safetensors"
    checkpoint.save_generator(
        again, generator, recipe, SPACE,
        style_encoder=style_encoder, seen_keys=["a", "b"], images_seen=8,
    )  # fmt: skip
    assert checkpoint.sha256(again) == checkpoint.sha256(run / checkpoint.GENERATOR)


def test_heads_that_no_term_trains_are_not_built():
    assert checkpoint.build_generator(tiny_recipe(), SPACE).class_specific is not None
    assert (
        checkpoint.build_generator(tiny_recipe("losses.class_l1=0"), SPACE).class_specific is None
    )
    fused = tiny_recipe("losses.class_l1=0", "model.output=fused")
    assert checkpoint.build_generator(fused, SPACE).class_specific is not None


def test_a_truncated_generator_is_refused(saved):
    path = saved[0] / checkpoint.GENERATOR
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"generator.safetensors: not a whole safetensors file"):
        checkpoint.load_generator(path)


def test_a_pickle_is_refused_unread(tmp_path):
    path = tmp_path / "generator.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="a pickle"):
        checkpoint.load_generator(path)


def test_a_missing_file_and_a_foreign_one_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none.safetensors: cannot read: No such file"):
        checkpoint.load_generator(tmp_path / "none.safetensors")
    foreign = tmp_path / "model.safetensors"
    checkpoint.write_whole(foreign, checkpoint.safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(UserError, match="not a generator of this version"):
        checkpoint.load_generator(foreign)


def test_weights_that_do_not_fit_their_recipe_are_named(saved, tmp_path):
    _, recipe, _, style_encoder = saved
    narrow = LabelSpace(SPACE.classes[:2])
    path = tmp_path / "odd.safetensors"
    generator = checkpoint.build_generator(recipe, narrow)
    checkpoint.save_generator(path, generator, recipe, SPACE, style_encoder=style_encoder)
    with pytest.raises(UserError, match=r"do not fit its recipe") as caught:
        checkpoint.load_generator(path)
    assert "expected" in str(caught.value)


def test_the_newest_finished_run_is_found(saved):
    run, recipe, generator, style_encoder = saved
    runs = run.parent
    for name, images_seen, age in (("older", 8, 100), ("unfinished", 4, -100)):
        path = runs / name / checkpoint.GENERATOR
        checkpoint.save_generator(
            path, generator, recipe, SPACE, style_encoder=style_encoder, images_seen=images_seen
        )
        written = (run / checkpoint.GENERATOR).stat().st_mtime
        os.utime(path, (written - age, written - age))
    assert checkpoint.newest_run(runs) == run


def test_without_a_finished_run_the_unfinished_are_named(saved):
    run, recipe, generator, style_encoder = saved
    checkpoint.save_generator(
        run / checkpoint.GENERATOR, generator, recipe, SPACE, style_encoder=style_encoder
    )
    with pytest.raises(UserError, match=r"no finished run below .*unfinished: .*tiny"):
        checkpoint.newest_run(run.parent)


def test_run_and_checkpoint_name_one_file(saved, tmp_path, monkeypatch):
    run = saved[0]
    path = run / checkpoint.GENERATOR
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve_generator(run, None) == path
    assert checkpoint.resolve_generator(None, path) == path
    assert checkpoint.resolve_generator(None, None).resolve() == path
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((run, path), "give one of them"),
        ((None, run), "a run is given with --run"),
        ((None, run / "no"), "no such file"),
        ((run / "no", None), "no such folder"),
        ((tmp_path / "empty", None), "not a run of ecgan train"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.resolve_generator(*arguments)
    path.unlink()
    with pytest.raises(UserError, match="not come to its first checkpoint"):
        checkpoint.resolve_generator(run, None)


def test_another_recipe_is_refused_with_every_difference(saved):
    run = saved[0]
    other = tiny_recipe("train.images=8", "train.batch=2", "data.edges=folder")
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_another_recipe(run, other)
    message = str(caught.value)
    assert "data.edges (canny, now folder)" in message
    assert "train.batch (4, now 2)" in message
    assert "--set data.edges=canny --set train.batch=4" in message


def test_length_places_and_cadences_may_change(saved):
    checkpoint.refuse_another_recipe(
        saved[0],
        tiny_recipe(
            "train.images=80", "train.keep=5", "train.log_every=7", "data.root=elsewhere",
            "data.workers=3", "sampling.quality=80", "evaluate.judge_training.images=5",
        ),
    )  # fmt: skip


def test_a_run_of_version_0_1_goes_on(saved):
    path = saved[0] / "recipe.yaml"
    document = yaml.safe_load(path.read_text())
    training = document["model"].pop("label_generator_training")
    document["model"]["label_generator_images"] = training["images"]
    document["model"]["label_generator_width"] = training["channels"]
    document["evaluate"] = {"seed": 1, "judge_width": 8, "student_batch": 4}
    path.write_text(yaml.safe_dump(document))
    checkpoint.refuse_another_recipe(saved[0], tiny_recipe())
    with pytest.raises(UserError, match=r"label_generator_training\.channels \("):
        checkpoint.refuse_another_recipe(saved[0], tiny_recipe("model.label_generator_width=64"))


def small_training(value=1.0):
    parameter = torch.nn.Parameter(torch.full((3,), value))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return Training({"net": {"w": parameter}}, {"opt": optimizer.state_dict()}, {"best": None})


def test_a_training_checkpoint_is_read_back(tmp_path):
    written = small_training()
    folder = checkpoint.save_training(tmp_path, 1234, written)
    assert folder == tmp_path / "checkpoints" / "000001234"
    read = checkpoint.load_training(folder)
    assert torch.equal(read.networks["net"]["w"], written.networks["net"]["w"])
    ours, theirs = read.optimizers["opt"]["state"][0], written.optimizers["opt"]["state"][0]
    assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])
    assert read.state["best"] is None
    assert read.state["images_seen"] == 1234


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    for images_seen in (8, 16, 24, 32):
        checkpoint.save_training(tmp_path, images_seen, small_training())
    (tmp_path / "checkpoints" / ".000000040.1.partial").mkdir()  # of a process that died
    checkpoint.prune(tmp_path, 2, best=8)
    names = [folder.name for folder in checkpoint.training_checkpoints(tmp_path)]
    assert names == ["000000008", "000000024", "000000032"]


@pytest.mark.parametrize("name", ["net.safetensors", "opt.pt", "state.json"])
def test_a_damaged_checkpoint_says_what_to_delete(tmp_path, name):
    folder = checkpoint.save_training(tmp_path, 8, small_training())
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"safetensors file|damaged .*delete .*000000008"):
        checkpoint.load_training(folder)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    folder = checkpoint.save_training(tmp_path, 8, small_training())
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(UserError, match="written by another version"):
        checkpoint.load_training(folder)


@contextmanager
def no_file_above(num_bytes):
    """What a full disk looks like: writing fails in the middle of a file."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_what_was_there(saved, tmp_path):
    run, recipe, generator, style_encoder = saved
    path = run / checkpoint.GENERATOR
    before = path.read_bytes()
    with (
        no_file_above(10_000),
        pytest.raises(UserError, match=r"cannot write: .*Make room, then run the same command"),
    ):
        checkpoint.save_generator(path, generator, recipe, SPACE, style_encoder=style_encoder)
    assert path.read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == [checkpoint.GENERATOR, "recipe.yaml"]


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path):
    folder = checkpoint.save_training(tmp_path, 8, small_training())
    with no_file_above(100), pytest.raises(UserError, match="cannot write"):
        checkpoint.save_training(tmp_path, 16, small_training())
    assert list((tmp_path / "checkpoints").iterdir()) == [folder]
