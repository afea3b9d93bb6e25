"""Photos without label maps: found or refused, labelled once, mixed into the batches, recorded."""

import json
import os
import shutil
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ecgan import checkpoint, labels
from ecgan.data.files import images
from ecgan.data.loader import Mixture, TripleDataset, batches
from ecgan.errors import UsageError, UserError
from ecgan.generation import run as generate
from ecgan.recipe import load_recipe
from ecgan.runtime.files import sha256
from ecgan.segmentation.label_filter import KEPT, Confidence, surest
from ecgan.shards.manifest import photo_digest, read_manifest
from ecgan.training import run as train
from ecgan.training.loop import data_files, unlabelled
from tests.helpers.downstream import write_metadata
from tests.helpers.errors import message
from tests.helpers.folder_items import items_for
from tests.helpers.tiny import NAMES, write_pairs
from tests.training.test_run import LIGHT, assert_same_run, ecgan_train, sets, start

SPACE = labels.from_json(list(NAMES), "test")
SHORT = (
    *LIGHT, "train.images=4", "train.preview_every=100",
    "model.label_generator_training={channels: 8, images: 32, batch: 8}",
)  # fmt: skip


# Thresholds by class


def naive_labels(photos, kept, ignore):
    """Sorts the confidences of each class in one list."""
    of_class = {}
    for classes, confidence in photos:
        for c, value in zip(classes.ravel().tolist(), confidence.ravel().tolist(), strict=True):
            of_class.setdefault(c, []).append(int(value * 65535))
    least = {}
    for c, values in of_class.items():
        wanted = max(1, int(np.ceil(kept * len(values) - 1e-9)))
        least[c] = sorted(values, reverse=True)[wanted - 1]
    made = []
    for classes, confidence in photos:
        label = np.full(classes.shape, ignore)
        for place in np.ndindex(classes.shape):
            c = int(classes[place])
            if int(float(confidence[place]) * 65535) >= least[c]:
                label[place] = c
        made.append(label)
    return made


@pytest.mark.parametrize("kept", [KEPT, 0.5, 1.0])
def test_thresholds_are_those_of_a_naive_twin(kept):
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(3):
        classes = rng.choice(5, (9, 11), p=[0.6, 0.3, 0.09, 0.01, 0])
        confidence = rng.random((9, 11)).astype(np.float32) ** (1 / (1 + classes))
        confidence[:, :4] = np.round(confidence[:, :4], 1)  # many of one level
        photos.append((classes, confidence))
    photos[0][0][0, 0] = 3
    tally = Confidence.of(5)
    for photo in photos:
        tally.add(*photo)
    thresholds = tally.thresholds(kept)
    found = [surest(*photo, thresholds, SPACE) for photo in photos]
    expected = naive_labels(photos, kept, SPACE.ignore_index)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert any((label == 3).any() for label in found)  # a rare class keeps its surest pixel
    assert found[0].dtype == np.uint8


def test_a_rare_unsure_class_keeps_its_share_and_a_single_threshold_would_not():
    classes = np.zeros((10, 10), np.int64)
    classes[0] = 1
    confidence = np.full((10, 10), 0.99, np.float32)
    confidence[0] = np.linspace(0.3, 0.5, 10)
    tally = Confidence.of(2)
    tally.add(classes, confidence)
    found = surest(classes, confidence, tally.thresholds(0.7), SPACE)
    assert (found[0] == 1).tolist() == [False] * 3 + [True] * 7
    assert (found[1:] == 0).all()  # equal pixels stay together


# The row of positions


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six pairs, val and test of their own, and five photos of other scenes."""
    root = tmp_path_factory.mktemp("alone")
    write_pairs(root / "toy", num_train=6, num_val=3)
    for kind in ("images", "labels"):
        test = root / "toy" / kind / "test"
        test.mkdir()
        (root / "toy" / kind / "val" / "scene-02.png").rename(test / "scene-02.png")
    write_pairs(root / "other", num_train=11, num_val=0)
    (root / "photos" / "drive").mkdir(parents=True)
    for number in range(6, 11):
        path = root / "other" / "images" / "train" / f"scene-{number:02d}.png"
        shutil.copy(path, root / "photos" / "drive" / f"dusk {number}.png")
    return root


def dataset(world, count, seed=0):
    items = items_for("folder", world / "other", "train")[:count]
    return TripleDataset(items, SPACE, "folder", height=32, width=64, seed=seed, edges="none")


@pytest.mark.parametrize(("num_pairs", "num_photos"), [(4, 6), (5, 2), (6, 6), (7, 1)])
def test_a_mixture_shows_each_as_often_and_pairs_at_least_half(world, num_pairs, num_photos):
    pairs, photos = dataset(world, num_pairs), dataset(world, num_photos, seed=7)
    mixture = Mixture(pairs, photos)
    share = min(num_photos / (num_pairs + num_photos), 0.5)
    count = 60
    shown = {"pairs": [], "photos": []}
    for position in range(count):  # naive: whichever is more behind its share
        of_photos = len(shown["photos"]) + 1 <= share * (position + 1) + 1e-9
        own = "photos" if of_photos else "pairs"
        expected = (photos if of_photos else pairs).load(len(shown[own]))
        found = mixture.load(position)
        assert (found.key, found.image.tobytes()) == (expected.key, expected.image.tobytes())
        shown[own].append(found.key)
    assert len(shown["photos"]) == int(share * count + 1e-9)
    assert {*shown["pairs"]} == {*pairs.keys}
    assert mixture.share == Fraction(share).limit_denominator(100)


@pytest.mark.parametrize("batch", [4, 6])
def test_every_batch_is_half_pairs_where_they_are_few(world, batch):
    pairs, photos = dataset(world, 2), dataset(world, 11)
    first = {*pairs.keys}
    for workers in (0, 1):
        found = batches(Mixture(pairs, photos), 0, batch, workers=workers)
        for _ in range(6):
            one = next(found)
            assert sum(key in first for key in one.keys) >= batch // 2
            assert one.positions.tolist() == [*range(one.positions[0], one.positions[0] + batch)]
        found.close()


def test_ranks_share_one_row(world):
    def keys(rank, world_size):
        mixture = Mixture(dataset(world, 3), dataset(world, 8, seed=1))
        return next(batches(mixture, 8, 4, rank=rank, world=world_size)).keys

    assert keys(0, 2) + keys(1, 2) == keys(0, 1)


# A run


@pytest.fixture
def recipe(world):
    def make(*overrides, photos=None):
        root, alone = world / "toy", world / "photos" if photos is None else photos
        paths = (f"data.root={root}", f"data.unlabelled={alone}")
        return load_recipe("demo", (*SHORT, *paths, *overrides))

    return make


def run(recipe, out, **options):
    return train.run(recipe, out, device="cpu", quiet=options.pop("quiet", True), **options)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    paths = (f"data.root={world / 'toy'}", f"data.unlabelled={world / 'photos'}")
    run(load_recipe("demo", (*SHORT, *paths)), out)
    return out


def label_maps(out):
    return sorted((out / "unlabelled").glob("*/*.png"))


def digests(folder):
    return {sha256(path) for path in folder.rglob("*.png")}


@pytest.mark.slow
def test_a_run_labels_photos_and_says_so_everywhere(world, finished):
    found = [np.array(Image.open(path)) for path in label_maps(finished)]
    assert [label.shape for label in found] == [(32, 64)] * 5
    whole = np.stack(found)
    assert {*np.unique(whole)} <= {*range(len(NAMES)), 255}
    assert 0.6 < (whole != 255).mean() < 0.95  # 70 % of each class, and equal pixels with them
    about = json.loads((label_maps(finished)[0].parent / "index.json").read_text())
    assert about["labelled"] == pytest.approx((whole != 255).mean())
    assert sum(about["read_pixels"].values()) == whole.size
    listed = json.loads((finished / data_files.NAME).read_text())
    assert {*listed["unlabelled"]} == digests(world / "photos")
    assert min(listed["unlabelled"].values()) == "drive/dusk 10.png"
    metadata = checkpoint.read_metadata(finished / checkpoint.GENERATOR)
    assert {*metadata.unlabelled} == metadata.all_unlabelled == digests(world / "photos")
    assert metadata.seen_keys == [f"scene-{i:02d}" for i in range(6)]
    assert f"unlabelled: {world / 'photos'}" in (finished / "recipe.yaml").read_text()


@pytest.mark.slow
def test_a_class_list_by_numbers_and_other_sizes(world, tmp_path, recipe):
    """Label maps of photos hold ids, whatever the numbers of the data set's files are."""
    toy, photos = tmp_path / "toy", tmp_path / "photos"
    shutil.copytree(world / "toy", toy)
    numbers = [{"id": 10 * i + 1, "name": name} for i, name in enumerate(NAMES)]
    (toy / "classes.json").write_text(json.dumps({"classes": numbers, "ignore": 0}))
    for path in (toy / "labels").rglob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label * 10 + 1).astype(np.uint8)).save(path)
    photos.mkdir()
    for number, size in enumerate([(100, 70), (64, 32), (40, 90)]):
        source = world / "photos" / "drive" / f"dusk {number + 6}.png"
        Image.open(source).resize(size).save(photos / f"{number}.jpg")
    run(recipe(f"data.root={toy}", photos=photos), tmp_path / "run")
    sizes = sorted(Image.open(path).size for path in label_maps(tmp_path / "run"))
    assert sizes == [(40, 90), (64, 32), (100, 70)]


@pytest.mark.slow
def test_labels_are_read_back_at_the_size_of_the_training(world, tmp_path, recipe):
    """A photo's label map is as large as the photo; resized again it is what was decided."""
    large = tmp_path / "photos"
    large.mkdir()
    source = world / "photos" / "drive" / "dusk 6.png"
    Image.open(source).resize((150, 77)).save(large / "a.png")
    job = train.check(recipe(photos=large), tmp_path / "run", device=train.torch.device("cpu"))
    decided = {}
    original = unlabelled.surest

    def remember(*arguments):
        decided["label"] = original(*arguments)
        return decided["label"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unlabelled, "surest", remember)
        found = unlabelled.labelled(job)
    assert (found.load_plain(0).label == decided["label"]).all()
    assert decided["label"].shape == (32, 64)


@pytest.mark.slow
def test_photos_change_what_is_learnt_and_join_the_style_prior(world, finished, tmp_path, recipe):
    run(recipe("data.unlabelled=null"), tmp_path / "run")
    with_, without = (
        checkpoint.load_generator(out / checkpoint.GENERATOR)
        for out in (finished, tmp_path / "run")
    )
    assert without.metadata.unlabelled == []
    assert not (tmp_path / "run" / "unlabelled").exists()
    assert "unlabelled" not in json.loads((tmp_path / "run" / data_files.NAME).read_text())
    weights = [f.generator.state_dict() for f in (with_, without)]
    key = next(name for name in weights[0] if name.endswith("weight"))
    assert not (weights[0][key] == weights[1][key]).all()
    job = train.check(recipe(), tmp_path / "other", device=train.torch.device("cpu"), quiet=True)
    averaged = train.AveragedGenerator(job.recipe, job.space, job.train_set, job.device)
    assert sum(map(len, averaged.photos(100))) == 6
    before = averaged.style_prior.mean.clone()
    averaged.photos_alone = unlabelled.labelled(job)
    averaged._style_prior = None
    assert sum(map(len, averaged.photos(100))) == 11
    assert not (averaged.style_prior.mean == before).all()
    layouts = sum(len(S) for S, _ in averaged._conditions())
    assert layouts == 6  # samples are made from clean label maps


@pytest.mark.slow
def test_a_resumed_run_does_not_label_anew_and_equals_an_unbroken_one(
    recipe, tmp_path, monkeypatch
):
    run(recipe("train.images=8"), tmp_path / "one")
    run(recipe(), tmp_path / "two")
    before = {path: path.stat().st_mtime_ns for path in label_maps(tmp_path / "two")}
    monkeypatch.setattr(unlabelled, "_write", lambda *_: pytest.fail("labelled anew"))
    monkeypatch.setattr(images, "probe_photo", lambda _: pytest.fail("decoded anew"))
    run(recipe("train.images=8"), tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in label_maps(tmp_path / "two")} == before
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_lost_label_map_is_made_again(finished, tmp_path, recipe):
    shutil.copytree(finished, tmp_path / "run")
    paths = label_maps(tmp_path / "run")
    before = [path.read_bytes() for path in paths]
    paths[0].unlink()
    run(recipe("train.images=6"), tmp_path / "run")
    assert [path.read_bytes() for path in label_maps(tmp_path / "run")] == before


@pytest.mark.slow
def test_changed_photos_are_refused_until_they_are_accepted(world, finished, tmp_path, recipe):
    photos, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(world / "photos", photos)
    shutil.copytree(finished, out)
    longer = "train.images=6"
    assert run(recipe(longer, photos=photos), out) == "done"  # moved, but the same
    gone = sha256(photos / "drive" / "dusk 6.png")
    (photos / "drive" / "dusk 6.png").unlink()
    Image.open(photos / "drive" / "dusk 7.png").rotate(180).save(photos / "drive" / "dusk 7.png")
    shutil.copy(world / "other" / "images" / "train" / "scene-06.png", photos / "same.png")
    Image.open(photos / "same.png").rotate(180).save(photos / "new.png")
    (photos / "same.png").unlink()
    longer = "train.images=8"
    with pytest.raises(UserError) as error:
        run(recipe(longer, photos=photos), out)
    assert (
        "1 unlabelled photo changed (drive/dusk 7.png); 1 unlabelled photo added "
        "(new.png); 1 unlabelled photo removed (drive/dusk 6.png)"
    ) in str(error.value)
    folder = label_maps(out)[0].parent
    run(recipe(longer, photos=photos), out, accept_changed_data=True)
    assert label_maps(out)[0].parent != folder  # of the old photos nothing is left
    assert len(label_maps(out)) == 5
    saw = checkpoint.read_metadata(out / checkpoint.GENERATOR).unlabelled
    assert {*saw} > digests(photos)
    assert gone in saw  # learnt from, though it is gone
    with pytest.raises(UserError, match=r"5 unlabelled photos removed"):
        run(recipe("train.images=10", "data.unlabelled=null"), out)


@pytest.mark.slow
def test_photos_beyond_memory_are_read_twice_and_labelled_alike(
    world, tmp_path, recipe, monkeypatch
):
    found = []
    for number, room in enumerate((unlabelled.CACHE_BYTES, 0)):
        monkeypatch.setattr(unlabelled, "CACHE_BYTES", room)
        job = train.check(
            recipe(), tmp_path / f"run-{number}", device=train.torch.device("cpu"), quiet=True
        )
        unlabelled.labelled(job)
        found.append([path.read_bytes() for path in label_maps(job.out)])
    assert found[0] == found[1]


# Refusals


def test_folders_without_photos_are_refused_before_files_are_read(tmp_path, recipe):
    with pytest.raises(UsageError, match=r"data\.unlabelled nowhere: no such folder"):
        run(recipe(photos="nowhere"), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: no photos below it"):
        run(recipe(photos=tmp_path / "empty"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_tested_photos_are_refused_by_content(world, tmp_path, recipe, split):
    shutil.copytree(world / "photos", tmp_path / "photos")
    source = min((world / "toy" / "images" / split).iterdir())
    shutil.copy(source, tmp_path / "photos" / "innocent.png")
    text = message(lambda: run(recipe(photos=tmp_path / "photos"), tmp_path / "run"))
    assert f"1 photo (first: innocent.png) of the split {split}, on which generators" in text


def test_a_held_out_tenth_is_tested_on_too(world, tmp_path, recipe):
    toy = tmp_path / "toy"
    shutil.copytree(world / "toy", toy)
    for kind in ("images", "labels"):
        shutil.rmtree(toy / kind / "val")
    text = message(
        lambda: run(recipe(f"data.root={toy}", photos=toy / "images" / "train"), tmp_path / "run")
    )
    assert "1 photo (first: scene-" in text
    assert "of the split val" in text


def test_photos_of_pairs_are_left_out_with_a_note(world, tmp_path, recipe, capsys):
    """As where a part of the training split is used with its label maps, and the rest without."""
    few = recipe("data.pairs=2", photos=world / "toy" / "images" / "train")
    job = train.check(few, tmp_path / "run", device=train.torch.device("cpu"))
    assert len(job.unlabelled) == 4
    used = {sha256(item.image) for item in job.train_set.items}
    assert not used & {*job.unlabelled}
    assert "data.unlabelled: 2 photos of 6 left out" in capsys.readouterr().err
    whole = recipe(photos=world / "toy" / "images" / "train")
    assert "every photo is that of a training pair" in message(lambda: run(whole, tmp_path / "run"))


def test_equal_photos_count_once(world, tmp_path, recipe):
    shutil.copytree(world / "photos", tmp_path / "photos")
    shutil.copy(tmp_path / "photos" / "drive" / "dusk 6.png", tmp_path / "photos" / "again.png")
    job = train.check(
        recipe(photos=tmp_path / "photos"), tmp_path / "run", device=train.torch.device("cpu"),
        quiet=True,
    )  # fmt: skip
    assert len(job.unlabelled) == 5


def test_photos_that_cannot_be_read_are_named_at_once(world, tmp_path, recipe):
    shutil.copytree(world / "photos", tmp_path / "photos")
    content = (tmp_path / "photos" / "drive" / "dusk 6.png").read_bytes()
    (tmp_path / "photos" / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "photos" / "none.jpg").write_bytes(b"")
    text = message(lambda: run(recipe(photos=tmp_path / "photos"), tmp_path / "run"))
    assert "half.png" in text
    assert "none.jpg" in text
    assert not (tmp_path / "run").exists()


def test_what_photos_alone_cannot_give_is_refused(world, tmp_path, recipe):
    toy = tmp_path / "toy"
    shutil.copytree(world / "toy", toy)
    listed = {"classes": [*NAMES, "void"], "ignore": None}
    (toy / "classes.json").write_text(json.dumps(listed))
    text = message(lambda: run(recipe(f"data.root={toy}", "data.ignore=null"), tmp_path / "run"))
    assert "every pixel has a class (ignore: null)" in text
    for key, what in (("instances=true", "instance maps"), ("edges=folder", "edge maps")):
        with pytest.raises(UserError, match=f"photos alone have no {what}"):
            recipe(f"data.{key}")


# What is told


@pytest.mark.slow
def test_the_command_tells_of_them(world, tmp_path):
    arguments = (
        "--recipe", "demo", "--data", str(world / "toy"), "--out", str(tmp_path / "run"),
        *sets((*SHORT, f"data.unlabelled={world / 'photos'}")),
    )  # fmt: skip
    result = ecgan_train(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    assert (
        "data:       train 6 images, validation 2 images, without label maps 5 images"
        in result.stdout
    )
    assert (
        "2 of 2 images (2 at a time on a rank), 0.4 epochs of the pairs"
        in result.stdout.replace("steps:      ", "")
    )
    assert not (tmp_path / "run").exists()
    result = ecgan_train(*arguments, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "training the segmenter that labels the photos of data.unlabelled" in result.output
    assert "5 photos labelled: " in result.output
    assert "and 5 photos without label maps, 45 % of the images: " in result.output


def test_a_data_set_names_them(finished, world, tmp_path):
    request = generate.Request.of(
        finished / checkpoint.GENERATOR, tmp_path / "set", labels=world / "toy" / "labels" / "val",
        n_styles=1, device="cpu", quiet=True,
    )  # fmt: skip
    generate.run(request)
    expected = {photo_digest(digest) for digest in digests(world / "photos")}
    assert {*read_manifest(tmp_path / "set").unlabelled} == expected
    card = (tmp_path / "set" / "README.md").read_text()
    assert "also learnt from 5 photos without label maps" in card


@pytest.mark.slow
def test_a_generator_that_starts_from_such_a_one_inherits_them(finished, recipe, tmp_path):
    source = finished / checkpoint.GENERATOR
    run(recipe("data.unlabelled=null"), tmp_path / "run", init=source)
    metadata = checkpoint.read_metadata(tmp_path / "run" / checkpoint.GENERATOR)
    assert metadata.unlabelled == []
    assert metadata.all_unlabelled == {*checkpoint.read_metadata(source).unlabelled}
    write_metadata(source, tmp_path / "old.safetensors", unlabelled=[])
    assert checkpoint.read_metadata(tmp_path / "old.safetensors").all_unlabelled == set()


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(world, tmp_path):
    saw = {}
    for ranks in (1, 2):
        out = tmp_path / f"run-{ranks}"
        more = ("--nproc-per-node", str(ranks)) if ranks > 1 else ()
        process = start(
            "--recipe", "demo", "--data", str(world / "toy"), "--out", str(out), "--device", "cpu",
            *more, *sets((*SHORT, f"data.unlabelled={world / 'photos'}")),
        )  # fmt: skip
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert output.count("photos labelled") == 1, output
        saw[ranks] = {os.path.relpath(path, out): path.read_bytes() for path in label_maps(out)}
    assert saw[1] == saw[2]
