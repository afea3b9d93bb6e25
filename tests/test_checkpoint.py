"""Generators and training checkpoints: round trips, whole or not at all, and every refusal."""

import json
import os
import resource
import shutil
import signal
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from ecgan import checkpoint
from ecgan.checkpoint import Training
from ecgan.checkpoint.tensors import Kind, plain, refuse_misfits
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.models.style import StylePrior
from ecgan.recipe import load_recipe
from ecgan.runtime.files import sha256

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
    assert sha256(again) == sha256(run / checkpoint.GENERATOR)


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
    with pytest.raises(UserError, match=r"none.safetensors: no such file"):
        checkpoint.load_generator(tmp_path / "none.safetensors")
    foreign = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign)
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


def change(path, tensors=None, **metadata):
    """Change tensors and metadata of a generator file."""
    with safetensors.safe_open(path, framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["ecgan"])
    if tensors is not None:
        tensors(values)
    about = {k: v for k, v in (about | metadata).items() if v != "gone"}
    safetensors.torch.save_file(values, path, {"ecgan": json.dumps(about)})


def widened(about, **sections):
    recipe = json.loads(json.dumps(about))
    for section, values in sections.items():
        recipe[section] |= values
    return recipe


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("prefix", ["trunk", "style_encoder"])
def test_weights_that_are_not_finite_are_refused_by_name(saved, value, prefix):
    path = saved[0] / checkpoint.GENERATOR
    changed = []

    def spoil(tensors):
        name = next(n for n in tensors if n.startswith(prefix) and n.endswith("weight"))
        tensors[name].flatten()[0] = value
        changed.append(name)

    change(path, spoil)
    with pytest.raises(UserError, match=rf"{changed[0]}: (NaN|an infinite value)"):
        checkpoint.load_generator(path)


def test_complex_weights_and_variances_below_zero_are_refused(saved):
    pytest.importorskip("safetensors", "0.7", reason="older ones cannot write complex numbers")
    path = saved[0] / checkpoint.GENERATOR
    before = path.read_bytes()

    def negative(tensors):
        tensors[next(n for n in tensors if n.endswith("running_var"))].fill_(-1)

    def imaginary(tensors):
        name = next(n for n in tensors if n.endswith("bias"))
        tensors[name] = tensors[name].to(torch.complex64)

    change(path, negative)
    with pytest.raises(UserError, match="running_var: a variance below 0"):
        checkpoint.load_generator(path)
    path.write_bytes(before)
    change(path, imaginary)
    with pytest.raises(UserError, match="bias: C64, expected float32"):
        checkpoint.load_generator(path)


@pytest.mark.parametrize("width", [2_000, 20_000, 10**9, 10**12])
def test_a_network_that_the_file_does_not_hold_is_never_built(saved, width, monkeypatch):
    path, recipe = saved[0] / checkpoint.GENERATOR, saved[1].model_dump(mode="json")
    change(path, recipe=widened(recipe, model={"width": width}))
    monkeypatch.setattr(checkpoint.generators.files, "fill", None)  # never comes to it
    with pytest.raises(UserError, match=r"do not fit its recipe|networks that no machine holds"):
        checkpoint.load_generator(path)


@pytest.mark.slow
def test_many_classes_are_refused_without_building_their_heads(saved):
    path = saved[0] / checkpoint.GENERATOR
    classes = {"classes": [{"name": f"c{i}"} for i in range(60_000)], "ignore": None}
    change(path, classes=classes)
    with pytest.raises(UserError, match="do not fit its recipe"):
        checkpoint.load_generator(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(({key: "gone"}, f"{key}: field required") for key in ("recipe", "classes", "version")),
        ({"images_seen": "x"}, "images_seen: "),
        ({"images_seen": 10**30}, "images_seen: "),
        ({"seen_keys": {"a": 1}}, "seen_keys: "),
        ({"seen_keys": [1]}, r"seen_keys\.0: "),
        ({"inherited": "x"}, "inherited: "),
        ({"classes": {"classes": [{"name": 1}]}}, r"classes\[0\]\.name: expected a name"),
        ({"classes": {"classes": ["a"], "evaluation": {"a": 1}}}, "evaluation: expected an id"),
        ({"classes": {}}, "its classes"),
        ({"recipe": {"model": 1}}, "its recipe"),
        ({"recipe": {"name": "../x"}}, "name: a name, not a path"),
    ],
)
def test_metadata_that_do_not_fit_are_one_sentence(saved, changes, sentence):
    path = saved[0] / checkpoint.GENERATOR
    change(path, **changes)
    for read in (checkpoint.read_metadata, checkpoint.load_generator, checkpoint.inheritance):
        with pytest.raises(UserError, match=sentence):
            read(path)
    with pytest.raises(UserError, match=r"no finished run below .*unfinished"):
        checkpoint.newest_run(path.parent.parent)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_metadata_that_are_no_object_are_refused(saved, text):
    path = saved[0] / checkpoint.GENERATOR
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"ecgan": text})
    with pytest.raises(UserError, match="generator"):
        checkpoint.load_generator(path)


def test_a_style_prior_of_odd_axes_is_refused(saved):
    path = saved[0] / checkpoint.GENERATOR
    many = {"style_prior.axes": torch.zeros(300, 256), "style_prior.deviations": torch.ones(300)}
    rest = {"style_prior.mean": torch.zeros(256), "style_prior.residual": torch.ones(())}
    for axes in (torch.zeros(()), torch.zeros(300, 256), torch.zeros(0, 7)):
        change(path, lambda tensors, axes=axes: tensors.update({"style_prior.axes": axes}))
        with pytest.raises(UserError, match="style_prior"):
            checkpoint.load_generator(path)
    change(path, lambda tensors: tensors.update(many | rest))  # more than a style has values
    with pytest.raises(UserError, match=r"style_prior.axes: \(300, 256\), expected \(256, 256\)"):
        checkpoint.load_generator(path)


def test_a_style_prior_is_read_back(saved):
    run, recipe, generator, style_encoder = saved
    prior = StylePrior(3)
    prior.deviations.mul_(2)
    checkpoint.save_generator(
        run / "other.safetensors",
        generator,
        recipe,
        SPACE,
        style_encoder=style_encoder,
        style_prior=prior,
    )
    read = checkpoint.load_generator(run / "other.safetensors").style_prior
    assert read is not None
    assert torch.equal(read.axes, prior.axes)
    assert torch.equal(read.deviations, prior.deviations)


def test_another_prior_of_the_styles_is_not_what_was_written(saved):
    run, recipe, *_ = saved
    other = "photos" if recipe.sampling.style_prior == "normal" else "normal"
    assert checkpoint.is_written(run, 8, recipe)
    assert not checkpoint.is_written(run, 4, recipe)
    changed = recipe.model_copy(
        update={"sampling": recipe.sampling.model_copy(update={"style_prior": other})}
    )
    assert not checkpoint.is_written(run, 8, changed)


def test_inheritance_goes_on_from_what_a_generator_inherited(saved):
    run, recipe, generator, style_encoder = saved
    path = run / checkpoint.GENERATOR
    first = checkpoint.inheritance(path)
    assert [one.keys for one in first] == [["a", "b"]]
    assert first[0].sha256 == sha256(path)
    later = run / "later.safetensors"
    checkpoint.save_generator(
        later, generator, recipe, SPACE, style_encoder=style_encoder, inherited=first
    )
    assert [one.sha256 for one in checkpoint.inheritance(later)] == [sha256(later), sha256(path)]


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    shared = torch.ones(2, 2)
    tensors = plain({"a": shared, "b": shared, "c": shared.T})
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    shared.zero_()
    assert all(bool(x.all()) for x in tensors.values())


def test_of_many_misfits_some_are_shown():
    kinds = {f"layer{i}": Kind((1,), True, "F32") for i in range(20)}
    with pytest.raises(UserError) as raised:
        refuse_misfits({}, kinds, "x")
    assert raised.value.faults[-2:] == ("layer4: missing", "and 15 more")


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
    other = tiny_recipe("train.images=8", "train.batch=4", "data.edges=folder")
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_another_recipe(run, other)
    message = str(caught.value)
    assert "data.edges (canny, now folder)" in message
    assert "train.batch (2, now 4)" in message
    assert "--set data.edges=canny --set train.batch=2" in message


def test_a_map_of_classes_is_compared_as_a_whole(saved):
    changed = tiny_recipe("model.label_generator_map={0: 1, 2: 0}")
    with pytest.raises(UserError, match=r"differs in model\.label_generator_map \(.*now \{"):
        checkpoint.refuse_another_recipe(saved[0], changed)
    checkpoint.refuse_another_recipe(saved[0], changed, free={"model.label_generator_map"})


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


STATE = {"best": None, "init": "", "means": {"sums": {}, "count": 0}}


def small_training(value=1.0):
    parameter = torch.nn.Parameter(torch.full((3,), value))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return Training({"net": {"w": parameter}}, {"opt": optimizer.state_dict()}, dict(STATE))


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


def halve(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path, **changes):
    """Change fields of a JSON file; a value of None removes one."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v != "gone"}))


def flip(folder, name):
    """One bit of a file, as a failing disk does."""
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)


def elsewhere(folder, name):
    """A file that is as it was written, but elsewhere."""
    (folder / name).rename(folder.parent.parent / name)
    files = json.loads((folder / "state.json").read_text())["files"]
    files[f"../../{name}"] = files.pop(name)
    rewrite(folder / "state.json", files=files)


DAMAGE = {
    "truncated network": lambda f: halve(f, "net.safetensors"),
    "truncated optimiser": lambda f: halve(f, "opt.pt"),
    "truncated state": lambda f: halve(f, "state.json"),
    "flipped bit": lambda f: flip(f, "net.safetensors"),
    "missing network": lambda f: (f / "net.safetensors").unlink(),
    "missing optimiser": lambda f: (f / "opt.pt").unlink(),
    "missing state": lambda f: (f / "state.json").unlink(),
    "state is a list": lambda f: (f / "state.json").write_text("[]"),
    "state is nested": lambda f: (f / "state.json").write_text("[" * 100_000),
    "state of another folder": lambda f: rewrite(f / "state.json", images_seen=9),
    "no means": lambda f: rewrite(f / "state.json", means="gone"),
    "means of texts": lambda f: rewrite(f / "state.json", means={"sums": {"a": "x"}, "count": 1}),
    "means of NaN": lambda f: rewrite(
        f / "state.json", means={"sums": {"a": float("nan")}, "count": 1}
    ),
    "inherited is a text": lambda f: rewrite(f / "state.json", inherited="x"),
    "files elsewhere": lambda f: elsewhere(f, "net.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, damage):
    before = checkpoint.save_training(tmp_path, 8, small_training())
    newest = checkpoint.save_training(tmp_path, 16, small_training(2.0))
    damage(newest)
    folder, found, notes = checkpoint.newest_training(tmp_path, lambda _: None)
    assert folder == before
    assert float(found.networks["net"]["w"][0]) == pytest.approx(0.999)
    (note,) = notes
    assert note.startswith("skipped a damaged checkpoint: ")
    assert str(newest) in note
    shutil.rmtree(before)
    with pytest.raises(UserError, match="no checkpoint is whole"):
        checkpoint.newest_training(tmp_path, lambda _: None)
    assert checkpoint.newest_training(tmp_path / "other", lambda _: None) is None


def test_a_checkpoint_of_another_training_is_skipped(tmp_path):
    before = checkpoint.save_training(tmp_path, 8, small_training())
    newest = checkpoint.save_training(tmp_path, 16, small_training(2.0))

    def refuse_large(training):
        if training.networks["net"]["w"][0] > 1:
            raise UserError("weights of another network")

    folder, _, notes = checkpoint.newest_training(tmp_path, refuse_large)
    assert folder == before
    assert notes == [f"skipped a damaged checkpoint: {newest}: weights of another network"]


def test_a_cut_file_is_told_by_its_size(tmp_path):
    folder = checkpoint.save_training(tmp_path, 8, small_training())
    size = (folder / "net.safetensors").stat().st_size
    halve(folder, "net.safetensors")
    fault = rf"net\.safetensors: {size // 2:,} bytes, and {size:,} were written"
    with pytest.raises(checkpoint.DamagedError, match=fault):
        checkpoint.load_training(folder)


def test_the_same_state_may_be_written_again(tmp_path):
    checkpoint.save_training(tmp_path, 8, small_training())
    folder = checkpoint.save_training(tmp_path, 8, small_training(2.0))
    assert float(checkpoint.load_training(folder).networks["net"]["w"][0]) > 1.9
    assert [*folder.parent.iterdir()] == [folder]


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def repacked(path, compression, times=1):
    """What torch writes, packed by somebody else; each part is listed so many times."""
    torch.save({"state": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts:
            archive.writestr(name, content)
        archive.filelist *= times


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (lambda path: path.write_bytes(b""), "truncated or was not written by ecgan"),
        (lambda path: path.write_bytes(b"\x80\x02."), "truncated or was not written by ecgan"),
        (lambda path: zipped(path, data=b"\0" * 10_000_000), "compressed"),
        (lambda path: repacked(path, zipfile.ZIP_DEFLATED), "compressed"),
        (lambda path: repacked(path, zipfile.ZIP_STORED, 3), "larger than the file"),
        (lambda path: torch.save([1], path), "not an optimiser state"),
        (lambda path: torch.save({"state": print}, path), "not an optimiser state"),
        (os.mkfifo, "a pipe"),
    ],
    ids=["empty", "pickle", "bomb", "packed", "repeated", "list", "code", "pipe"],
)
def test_an_optimiser_state_that_is_none_is_damage(tmp_path, write, fault):
    folder = checkpoint.save_training(tmp_path, 8, small_training())
    rewrite(folder / "state.json", files="gone")  # as earlier versions wrote it
    assert checkpoint.load_training(folder).optimizers["opt"]["state"]
    (folder / "opt.pt").unlink()
    write(folder / "opt.pt")
    with pytest.raises(checkpoint.DamagedError, match=rf"opt\.pt: .*{fault}"):
        checkpoint.load_training(folder)


def test_files_and_folders_of_a_checkpoint_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced = set()

    def fsync(descriptor):
        synced.add(os.path.realpath(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    folder = checkpoint.save_training(tmp_path, 8, small_training())
    assert {str(tmp_path), str(tmp_path / "checkpoints")} <= synced
    for file in folder.iterdir():
        assert any(path.endswith(f".partial/{file.name}") for path in synced), file.name
    assert any(path.endswith(".partial") for path in synced)


def test_later_checkpoints_that_were_skipped_are_deleted(tmp_path):
    for images_seen in (8, 16, 24, 32):
        checkpoint.save_training(tmp_path, images_seen, small_training())
    checkpoint.prune(tmp_path, 2, best=None, images_seen=24)
    names = [folder.name for folder in checkpoint.training_checkpoints(tmp_path)]
    assert names == ["000000016", "000000024"]


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "metrics.jsonl", "checkpoints/x"])
def test_links_in_a_run_are_not_followed(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name}: a link"):
        checkpoint.refuse_links(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("checkpoints", "file"), ("segmenters", "pipe"), ("metrics.jsonl", "folder")],
)
def test_what_a_training_does_not_write_there_is_refused(tmp_path, name, kind):
    run = tmp_path / "run"
    (run / "checkpoints" / "000000008").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    checkpoint.refuse_links(run)
    path = run / name
    if name == "checkpoints":
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    {"file": Path.touch, "folder": Path.mkdir, "pipe": os.mkfifo}[kind](path)
    with pytest.raises(UserError) as raised:
        checkpoint.refuse_links(run)
    assert raised.value.faults == (f"{name}: not what a training writes there; move it away",)


def test_every_fault_of_a_run_folder_is_told_at_once(tmp_path):
    (tmp_path / "checkpoints").touch()
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError) as raised:
        checkpoint.refuse_links(tmp_path)
    assert [fault.partition(":")[0] for fault in raised.value.faults] == [
        "checkpoints",
        "metrics.jsonl",
    ]


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
