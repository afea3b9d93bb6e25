"""Evaluation from samples on the disk to report.json: agreement with theory, formats, refusals."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ecgan import checkpoint, labels
from ecgan.data import datasets
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.evaluation import measure
from ecgan.evaluation import run as evaluate
from ecgan.evaluation.report.document import load
from ecgan.evaluation.report.tables import table
from ecgan.evaluation.sources import Scene
from ecgan.generation import run as generate
from ecgan.metrics.segmentation import AGREEMENTS, agreement
from ecgan.recipe import parse_recipe
from ecgan.recipe_schema import JudgeTraining
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import (
    Normalisation,
    Provenance,
    Segmenter,
    segformer,
)
from ecgan.shards import codecs, formats, records
from ecgan.shards.manifest import SCHEMA, read_manifest
from ecgan.training.validation import validate
from ecgan_cli.main import cli
from tests.helpers.tiny import NAMES, make_generator, write_pairs

SIZE = 32, 64
TINY = {"width": 4, "upsamplings": 5, "style": True, "label_generator": "off"}


class ByColour(torch.nn.Module):
    """Reads the tiny scenes by their colour; takes the place of a network of transformers."""

    def __init__(self):
        super().__init__()
        classes = torch.arange(len(NAMES))
        colours = torch.stack([classes * 50, 255 - classes * 40, classes * 20], dim=1)
        self.register_buffer("colours", colours / 127.5 - 1)

    def forward(self, pixel_values):
        far = (pixel_values[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return type("Output", (), {"logits": -far * 9})()


def evaluated(request):
    """The content of report.json, and its folder."""
    report, out = evaluate.run(request)
    return report.to_json(), out


def judge_folder(root):
    """A SegFormer with random weights, as a path."""
    Segmenter(
        segformer(8, NAMES, 0),
        range(len(NAMES)),
        NAMES,
        normalisation=Normalisation(),
        provenance=Provenance("loaded", "random"),
        evaluation=True,
    ).save(root)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A real data set, a judge, and the validation pairs again as a plain folder of samples."""
    root = tmp_path_factory.mktemp("evaluate")
    write_pairs(root / "real", num_train=4, num_val=3)
    for path in root.glob("real/*/val/*.png"):  # names of their own: keys tell splits apart
        path.rename(path.with_name(path.name.replace("scene", "view")))
    judge_folder(root / "judge")
    for folder in ("images", "labels"):
        shutil.copytree(root / "real" / folder / "val", root / "samples" / folder)
    return root


def recipe_of(root, **sections):
    document = {"data": {"root": str(root / "real"), "height": SIZE[0], "width": SIZE[1]}}
    return parse_recipe(document | sections, "test")


def request_of(world, out, **changes):
    fields = {
        "samples": (world / "samples",),
        "out": out,
        "recipe": recipe_of(world),
        "judge": str(world / "judge"),
        "device": "cpu",
        "quiet": True,
    }
    return evaluate.Request(**fields | changes)


def encoded_photos(root, split, keys=None):
    """The photos of a split as samples in the bytes of files."""
    for item in datasets.index("folder", root / "real", split):
        if keys is not None and item.key not in keys:
            continue
        space = labels.load_label_space(root / "real" / "classes.json")
        label = datasets.read_label(item, space, "folder")
        counts = records.count_classes(label, space.num_classes)
        record = records.Record(f"{item.key}-s000", item.key, 0, 1, SIZE[1], SIZE[0], counts)
        image = codecs.encode_image(datasets.read_image(item), "png", 95)
        yield records.Encoded(
            record, image, codecs.encode_map(label), codecs.encode_map(label * 0 + 9)
        )


def write_samples(world, out, data_format, split="val"):
    formats.write_shard(
        open_store(out),
        formats.shard_name(data_format, "train", 0),
        encoded_photos(world, split),
        data_format=data_format,
        image_format="png",
        num_classes=len(NAMES),
    )
    shutil.rmtree(out / HIDDEN, ignore_errors=True)
    return out


def test_real_photos_as_samples_score_as_themselves(world, tmp_path):
    document, out = evaluated(request_of(world, tmp_path / "out"))
    for name in AGREEMENTS:
        metric = document["metrics"][name]
        assert metric["value"] == metric["real"]
        assert metric["n"] == 3
    distance = document["metrics"]["fd_efficientnet_lite0"]
    assert distance["value"] == pytest.approx(0, abs=1e-6 * distance["real"])
    assert distance["low"] == 0  # its interval does not reach below
    assert distance["real"] > 1  # other photos
    for one in document["per_class"].values():
        assert one["iou"] == one["real"]
        assert one["share"] == pytest.approx(one["real_share"])
    assert set(document["skipped"]) == {
        "precision_efficientnet_lite0",  # too few photos
        "recall_efficientnet_lite0",
    }
    assert document == load(out).to_json()
    assert document["protocol"]["split"] == "val"
    page = (out / "report.html").read_text()
    assert page.count('alt="real photo of view-') >= 3


@pytest.mark.parametrize("data_format", ["webdataset", "parquet"])
def test_format_changes_nothing(world, tmp_path, data_format):
    samples = write_samples(world, tmp_path / "shards", data_format)
    document, _ = evaluated(request_of(world, tmp_path / "a", samples=(samples,)))
    plain, _ = evaluated(request_of(world, tmp_path / "b"))
    assert document["metrics"].pop("edge_recall")["value"] == 0  # a folder has no edge maps
    assert document["metrics"] == plain["metrics"]
    assert document["per_class"] == plain["per_class"]


def test_sets_side_by_side_have_the_numbers_of_each_alone(world, tmp_path):
    shards_of_train = write_samples(world, tmp_path / "train", "webdataset", "train")
    both, out = evaluated(
        request_of(world, tmp_path / "both", samples=(world / "samples", shards_of_train))
    )
    alone, _ = evaluated(request_of(world, tmp_path / "alone", samples=(shards_of_train,)))
    assert [one["samples"] for one in both["compared"]] == [str(shards_of_train)]
    assert both["compared"][0]["metrics"] == alone["metrics"]
    assert 'id="set-2"' in (out / "report.html").read_text()


def test_samples_of_train_layouts_are_marked(world, tmp_path):
    samples = write_samples(world, tmp_path / "train", "webdataset", "train")
    recipe = recipe_of(world, evaluate={"judge_training": {"images": 8, "channels": 8}})
    document, _ = evaluated(
        request_of(world, tmp_path / "out", samples=(samples,), recipe=recipe, judge="train")
    )
    assert any("4 of 4 layouts" in mark and "judge's own" in mark for mark in document["warnings"])
    assert any("no layout of these samples is in the reference" in n for n in document["notes"])
    assert "all photos of split val" in document["protocol"]["real"]
    assert "trained by ecgan, 8 images seen" in document["protocol"]["judge"]


def test_real_score_is_that_of_the_same_layouts(world, tmp_path):
    samples = tmp_path / "one"
    for folder in ("images", "labels"):
        (samples / folder).mkdir(parents=True)
        shutil.copy(world / "samples" / folder / "view-01.png", samples / folder)
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    for name in AGREEMENTS:
        metric = document["metrics"][name]
        assert metric["value"] == pytest.approx(metric["real"], rel=1e-6)
        assert document["metrics"][name]["low"] is None  # one layout has no interval
    assert "at least 2 images" in document["skipped"]["fd_efficientnet_lite0"]


def test_num_images_takes_the_first(world, tmp_path):
    recipe = recipe_of(world, evaluate={"num_images": 2, "features": []})
    document, _ = evaluated(request_of(world, tmp_path / "out", recipe=recipe))
    assert document["metrics"]["miou"]["n"] == 2
    assert "fd_efficientnet_lite0" not in document["metrics"]


def other_samples(world, out, change):
    """The samples with one file changed by ``change(image, label)``."""
    shutil.copytree(world / "samples", out)
    paths = [out / folder / "view-01.png" for folder in ("images", "labels")]
    arrays = change(*(np.array(Image.open(path)) for path in paths))
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i, m: (i[:16], m[:16]), "view-01 is 16 x 64 with a label of 16 x 64"),
        (lambda i, m: (i, m[:, :32]), "view-01 is 32 x 64 with a label of 32 x 32"),
        (lambda i, m: (i, m * 0 + 77), "view-01 has the label 77, the class list has 0-4 and 255"),
    ],
)
def test_samples_that_do_not_fit_are_named(world, tmp_path, change, sentence):
    samples = other_samples(world, tmp_path / "samples", change)
    with pytest.raises(UserError, match=re.escape(sentence)):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))


def test_sets_of_two_sizes_are_refused(world, tmp_path):
    small = tmp_path / "small"
    for folder in ("images", "labels"):
        (small / folder).mkdir(parents=True)
        with Image.open(world / "samples" / folder / "view-00.png") as image:
            image.crop((0, 0, 32, 32)).save(small / folder / "a.png")
    both = (world / "samples", small)
    with pytest.raises(UserError, match="sets of different size"):
        evaluated(request_of(world, tmp_path / "out", samples=both))


def test_labels_without_a_scored_pixel_are_refused(world, tmp_path):
    samples = tmp_path / "samples"
    shutil.copytree(world / "samples", samples)
    for path in (samples / "labels").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(path)
    with pytest.raises(UserError, match="no pixel of its labels has a class"):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))


def test_damaged_shard_is_named(world, tmp_path):
    samples = write_samples(world, tmp_path / "shards", "webdataset")
    (tar,) = (samples / "data").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train-000000\.tar"):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": ("nowhere",)}, "--samples nowhere: no such folder"),
        ({"recipe": None}, "has no manifest.json of ecgan"),
        ({"reference": "nowhere"}, "nowhere: no such folder; give the real data set"),
        ({"split": "hidden"}, "hidden"),
        ({"judge": "no/judge"}, "no/judge"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_requests_are_refused(world, tmp_path, changes, sentence):
    from pathlib import Path

    paths = {k: Path(v) for k, v in changes.items() if k == "reference"}
    paths |= {k: tuple(map(Path, v)) for k, v in changes.items() if k == "samples"}
    with pytest.raises(UserError, match=re.escape(sentence)):
        evaluated(request_of(world, tmp_path / "out", **changes | paths))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_take_the_report_is_refused_first(world, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine.txt").write_text("mine")
    for out, sentence in (
        ("file", "a file; give a folder"),
        ("file/below", "cannot write"),
        ("foreign", "not empty, and not a report of ecgan"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluated(request_of(world, tmp_path / out))
    for place in ("file", "file/below"):  # before a judge is trained
        request = request_of(world, tmp_path / "out", save_statistics=tmp_path / place)
        with pytest.raises(UserError, match=r"(--save-npz .*a file; give a folder)|(cannot write)"):
            evaluated(request)
        assert not (tmp_path / "out").exists()


def test_missing_inception_weights_are_named(world, tmp_path):
    recipe = recipe_of(world, evaluate={"features": ["inception"]})
    document, _ = evaluated(request_of(world, tmp_path / "out", recipe=recipe))
    assert "evaluate.inception_weights is not set" in document["skipped"]["fid"]
    recipe = recipe_of(
        world, evaluate={"features": ["inception"], "inception_weights": str(tmp_path / "no.pth")}
    )
    with pytest.raises(UserError, match=r"no\.pth: no such file"):
        evaluated(request_of(world, tmp_path / "out", recipe=recipe))


def test_samples_in_an_object_store(world, tmp_path):
    place = "memory://evaluate/samples"
    formats.write_shard(
        open_store(place),
        formats.shard_name("webdataset", "train", 0),
        encoded_photos(world, "val"),
        data_format="webdataset",
        image_format="png",
        num_classes=len(NAMES),
    )
    document, _ = evaluated(request_of(world, tmp_path / "a", samples=(place,)))
    plain, _ = evaluated(request_of(world, tmp_path / "b"))
    assert document["samples"] == place
    for name in ("miou", "fd_efficientnet_lite0"):
        assert document["metrics"][name] == plain["metrics"][name]


# Marks, caches, workers


def shards_of(world, out, **changes):
    """Samples with a manifest as ours, as far as evaluate reads it."""
    write_samples(world, out, "webdataset")
    recipe = recipe_of(world, model=TINY)
    space = labels.load_label_space(world / "real" / "classes.json")
    (tar,) = (out / "data").glob("*.tar")
    shard = {"name": f"data/{tar.name}", "samples": 3, "bytes": 0, "sha256": "", "md5": ""}
    about = {
        "schema": SCHEMA,
        "samples": 3,
        "layouts": 3,
        "label_space": "input",
        "recipe": recipe.model_dump(mode="json"),
        "classes": space.to_json(),
        "fingerprint": {},
        "shards": [shard],
    }
    (out / "manifest.json").write_text(json.dumps(about | changes))
    return out


def test_the_generators_own_label_generator_is_refused_or_marked(world, tmp_path):
    space = labels.load_label_space(world / "real" / "classes.json")
    judge = load_segmenter(world / "judge", space, evaluation=True)
    samples = shards_of(world, tmp_path / "s", label_generator={"hash": judge.hash, "data": ""})
    with pytest.raises(UserError, match="it would find what it taught"):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    assert not (tmp_path / "out").exists()
    document, out = evaluated(
        request_of(world, tmp_path / "out", samples=(samples,), force_judge=True)
    )
    (mark,) = document["warnings"]
    assert "label generator" in mark
    assert mark[1:] in (out / "report.html").read_text()
    assert mark in table(load(out))


def test_layouts_that_the_generator_saw_are_marked(world, tmp_path):
    samples = shards_of(world, tmp_path / "s", seen_layouts=2)
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    assert any("trained on 2 of these 3 layouts" in mark for mark in document["warnings"])


def test_a_judge_that_saw_the_layouts_is_marked(world, tmp_path):
    recipe = recipe_of(world, evaluate={"judge_training": {"images": 8, "channels": 8}})
    train = tmp_path / "train"
    for folder in ("images", "labels"):
        shutil.copytree(world / "real" / folder / "train", train / folder)
    request = request_of(world, tmp_path / "out", samples=(train,), recipe=recipe, judge="train")
    document, _ = evaluated(request)
    assert any("4 of 4 layouts" in mark for mark in document["warnings"])
    assert "on the reference's split train, seed 1" in document["protocol"]["judge"]
    document, _ = evaluated(request_of(world, tmp_path / "b", recipe=recipe, judge="train"))
    assert document["warnings"] == []


def test_what_was_looked_at_is_not_looked_at_again(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    first, _ = evaluated(request_of(world, tmp_path / "a"))
    seen = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "looks").glob("*.npz")}
    assert len(seen) == 3  # samples, reference, train photos

    def refuse(*_):
        raise AssertionError("looked again")

    monkeypatch.setattr(measure.MeasureWorker, "measure", refuse)
    again, _ = evaluated(request_of(world, tmp_path / "b"))
    assert again == first
    assert seen == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "looks").glob("*.npz")}
    # Other pixels, another judge: looked at again
    other = tmp_path / "other"
    shutil.copytree(world / "samples", other)
    path = other / "images" / "view-00.png"
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    with pytest.raises(UserError, match="looked again"):
        evaluated(request_of(world, tmp_path / "c", samples=(other,)))


def test_a_damaged_cache_is_named(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    evaluated(request_of(world, tmp_path / "a"))
    for path in (tmp_path / "cache" / "looks").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"\.npz: damaged .*remove it"):
        evaluated(request_of(world, tmp_path / "a"))


def test_parts_add_up(world, tmp_path, monkeypatch):
    whole, _ = evaluated(request_of(world, tmp_path / "a"))
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "CHUNK", 2)
    parts, _ = evaluated(request_of(world, tmp_path / "b"))
    for name in AGREEMENTS:
        assert parts["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-6)
    assert parts["confusion"] == whole["confusion"]
    name = "fd_efficientnet_lite0"
    assert parts["metrics"][name]["real"] == pytest.approx(whole["metrics"][name]["real"], rel=1e-6)


@pytest.mark.slow
def test_workers_find_what_one_finds(world, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "CHUNK", 2)
    alone, _ = evaluated(request_of(world, tmp_path / "a"))
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    request = request_of(world, tmp_path / "b", workers=2)
    together, _ = evaluated(request)
    for name, metric in alone["metrics"].items():
        for part, value in metric.items():
            assert together["metrics"][name][part] == pytest.approx(value, rel=1e-5), (name, part)
    assert together["confusion"] == alone["confusion"]


def test_statistics_are_kept_as_pytorch_fid_reads_them(world, tmp_path):
    evaluated(request_of(world, tmp_path / "out", save_statistics=tmp_path / "npz"))
    assert {path.name for path in (tmp_path / "npz").iterdir()} == {
        "samples-efficientnet_lite0.npz",
        "reference-val-efficientnet_lite0.npz",
    }
    with np.load(tmp_path / "npz" / "samples-efficientnet_lite0.npz") as file:
        assert file["mu"].shape == (1280,)
        assert file["sigma"].shape == (1280, 1280)


def test_given_statistics_need_inception(world, tmp_path):
    request = request_of(world, tmp_path / "out", reference_statistics=tmp_path / "a.npz")
    with pytest.raises(UserError, match="statistics of Inception, which is not measured"):
        evaluated(request)


def test_two_styles_of_a_layout_are_compared_with_each_other_and_with_their_edges(world, tmp_path):
    samples = tmp_path / "styles"
    for style in range(2):
        write = formats.write_shard(
            open_store(samples),
            formats.shard_name("webdataset", "train", style),
            (
                one._replace(record=replace(one.record, key=f"{one.record.key}{style}"))
                for one in encoded_photos(world, "val")
            ),
            data_format="webdataset",
            image_format="png",
            num_classes=len(NAMES),
        )
        assert write.samples == 3
    shutil.rmtree(samples / HIDDEN)
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    diversity = document["metrics"]["diversity_efficientnet_lite0"]
    assert diversity["value"] == pytest.approx(0, abs=1e-6)  # the same photo twice
    assert diversity["real"] > 0.01
    assert diversity["n"] == 3
    # The edge maps are nearly black, so there is no edge to be found right
    assert "edge_precision" not in document["metrics"]
    assert document["metrics"]["edge_recall"]["value"] == 0


def command(world, *arguments):
    (world / "recipe.yaml").write_text(recipe_of(world).to_yaml())
    line = ["evaluate", "--samples", world / "samples", "--recipe", world / "recipe.yaml"]
    line += ["--judge", world / "judge", "--device", "cpu", "-q", *arguments]
    return CliRunner().invoke(cli, [str(part) for part in line])


def test_command_prints_the_table_and_json(world, tmp_path):
    result = command(world, "--out", tmp_path, "--set", "evaluate.num_images=2")
    assert result.exit_code == 0, result.output
    assert table(load(tmp_path)) in result.output
    assert load(tmp_path).to_json()["metrics"]["miou"]["n"] == 2
    result = command(world, "--out", tmp_path, "--json")
    assert json.loads(result.stdout) == load(tmp_path).to_json()


def test_fail_below(world, tmp_path):
    assert command(world, "--out", tmp_path, "--fail-below", "accuracy=0").exit_code == 0
    result = command(world, "--out", tmp_path, "--fail-below", "miou=0.99")
    assert result.exit_code == 4
    assert "below 0.99" in result.output
    for text, sentence in (
        ("fid=10", "better when it is low"),
        ("beauty=1", "no such metric"),
        ("miou", "expected NAME=X"),
    ):
        result = command(world, "--fail-below", text)
        assert result.exit_code == 2
        assert sentence in result.output


def test_newest_samples(tmp_path):
    with pytest.raises(UserError, match="no data set of samples below"):
        evaluate.newest_samples(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "unfinished").mkdir()
    old = (tmp_path / "old" / "manifest.json").stat().st_mtime
    import os

    os.utime(tmp_path / "new" / "manifest.json", (old + 9, old + 9))
    assert evaluate.newest_samples(tmp_path) == tmp_path / "new"


def generator_of(world):
    recipe = recipe_of(world, model=TINY, losses={"similarity": 0, "perceptual_network": "none"})
    space = labels.load_label_space(world / "real" / "classes.json")
    return checkpoint.build_generator(recipe, space), recipe, space


def test_validate_scores_a_generator(world):
    generator, _, space = generator_of(world)
    items = datasets.index("folder", world / "real", "val")
    data = TripleDataset(items, space, "folder", height=32, width=64, train=False, edges="none")
    judge = Segmenter(
        ByColour(),
        range(len(NAMES)),
        NAMES,
        normalisation=Normalisation(),
        provenance=Provenance("loaded", "by colour"),
        evaluation=True,
    )
    generator.train()
    scores = validate(generator, data, judge, features=["efficientnet_lite0"], batch=2)
    assert set(scores) == {"miou", "accuracy", "fd_efficientnet_lite0"}
    assert generator.training
    assert validate(generator, data, judge, batch=2) == pytest.approx(
        {name: scores[name] for name in ("miou", "accuracy")}
    )
    assert validate(generator, data, judge, batch=3)["accuracy"] == pytest.approx(
        scores["accuracy"], abs=1e-3
    )
    assert validate(generator, data, None) == {}
    # The judge is right about what the scenes show, so a perfect generator would score 1.
    scenes = [
        Scene(item.key, item.key, datasets.read_image(item), label)
        for item in items
        if (label := datasets.read_label(item, space, "folder")) is not None
    ]
    found = measure.measured(scenes, judge, {}, len(NAMES), torch.device("cpu"))
    assert agreement(found.confusion).overall["accuracy"].value > 0.99


@pytest.mark.slow
def test_evaluate_without_arguments_after_augment(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator, recipe, space = generator_of(world)
    recipe = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(
                update={"judge_training": JudgeTraining(channels=32, images=16)}
            )
        }
    )
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    checkpoint.save_generator(
        run / checkpoint.GENERATOR,
        generator,
        recipe,
        space,
        style_encoder=checkpoint.build_style_encoder(recipe),
    )
    lines = [{"images": n, "discriminator": 1 / n} for n in (1, 2, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate.run(
        generate.Request(
            generator=run / checkpoint.GENERATOR,
            out=tmp_path / "datasets" / "made",
            labels=world / "real" / "labels" / "val",
            n_styles=2,
            device="cpu",
            quiet=True,
        )
    )
    result = CliRunner().invoke(cli, ["evaluate", "--device", "cpu", "-q"])
    assert result.exit_code == 0, result.output
    document = load(tmp_path / "reports" / "made").to_json()
    assert document["metrics"]["miou"]["n"] == 6
    assert document["protocol"]["layouts"] == 3
    assert "photos of the samples' own layouts" in document["protocol"]["real"]
    page = (tmp_path / "reports" / "made" / "report.html").read_text()
    assert "Training of the generator" in page
    assert "discriminator" in page
    # A run makes samples of the split's layouts by itself
    arguments = ["evaluate", "--samples", "runs/tiny", "--n-styles", "2", "--device", "cpu", "-q"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    of_run = load(tmp_path / "reports" / "tiny-val-2-styles").to_json()
    assert of_run["samples"] == "datasets/tiny-val-2-styles"
    assert of_run["metrics"]["miou"]["n"] == 6
    assert of_run["metrics"]["diversity_efficientnet_lite0"]["n"] == 3
    made = read_manifest(tmp_path / "datasets" / "tiny-val-2-styles")
    assert made is not None
    assert made.seen_layouts == 0


def test_a_set_may_have_any_name(world, tmp_path, monkeypatch):
    """The photos are not told apart from it by a word."""
    monkeypatch.chdir(tmp_path)
    for name in ("reference", "train photos"):
        shutil.copytree(world / "real" / "images" / "train", tmp_path / name / "images")
        shutil.copytree(world / "real" / "labels" / "train", tmp_path / name / "labels")
        for path in (tmp_path / name).glob("*/*.png"):
            path.rename(path.with_name(f"x{path.name}"))
        document, _ = evaluated(
            request_of(world, tmp_path / f"out {name}", samples=(name,), device="cpu")
        )
        own, _ = evaluated(request_of(world, tmp_path / f"own {name}"))
        assert document["metrics"]["miou"]["n"] == 4
        assert document["metrics"]["miou"]["real"] == own["metrics"]["miou"]["real"]


def test_photos_are_looked_at_again_when_their_classes_change(world):
    space = labels.load_label_space(world / "real" / "classes.json")
    recoloured = replace(space.classes[0], color=(1, 2, 3))
    prints = []
    for own in (space, space, replace(space, classes=(recoloured, *space.classes[1:]))):
        items = datasets.index("folder", world / "real", "val")
        height, width = SIZE
        dataset = TripleDataset(items, own, "folder", height=height, width=width, edges="none")
        prints.append(measure.Photos(dataset, range(3)).fingerprint(0, 3))
    assert prints[0] == prints[1] != prints[2]


def test_a_varied_layout_is_no_style_of_the_one_that_it_was(world, tmp_path):
    root = world / "real"
    make = {
        "data": {"root": str(root), "height": SIZE[0], "width": SIZE[1],
                 "classes": str(root / "classes.json")},
    }  # fmt: skip
    make_generator(tmp_path / "run" / checkpoint.GENERATOR, **make)
    found = {}
    for name, options in {
        "styles": {"n_styles": 2},
        "varied": {"changes": ("flip",), "n_variants": 1, "n_styles": 1},
    }.items():
        generate.run(
            generate.Request(
                tmp_path / "run" / checkpoint.GENERATOR, tmp_path / name,
                labels=root / "labels" / "val", device="cpu", quiet=True, **options,
            )
        )  # fmt: skip
        document, _ = evaluated(
            request_of(world, tmp_path / f"{name}-out", samples=(tmp_path / name,))
        )
        found[name] = document["metrics"].get("diversity_efficientnet_lite0")
    assert found["styles"]["n"] == 3
    assert found["varied"] is None
    path = tmp_path / "styles" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"filter": {"kept_fraction": 0.25}}))
    document, _ = evaluated(
        request_of(world, tmp_path / "filtered", samples=(tmp_path / "styles",))
    )
    assert any("left out 75.0% of the labelled pixels" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fail-below", "miou=nan"], "--fail-below miou=nan: expected NAME=X"),
        (["--samples", "one.tar"], "one.tar: is a file; give the folder that holds it"),
        (["--samples", "unfinished"], "unfinished: a run without generator.safetensors"),
    ],
)
def test_what_cannot_be_evaluated_is_said_at_once(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.tar").write_bytes(b"")
    (tmp_path / "unfinished").mkdir()
    for name in ("recipe.yaml", "classes.json"):
        (tmp_path / "unfinished" / name).write_text("{}")
    result = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output


def test_statistics_of_sets_of_one_name_do_not_replace_each_other(world, tmp_path):
    for folder in "ab":
        shutil.copytree(world / "samples", tmp_path / folder / "x")
    request = request_of(
        world, tmp_path / "out", samples=(tmp_path / "a" / "x", tmp_path / "b" / "x"),
        save_statistics=tmp_path / "npz",
    )  # fmt: skip
    evaluated(request)
    assert {path.name for path in (tmp_path / "npz").iterdir()} == {
        "0-x-efficientnet_lite0.npz",
        "1-x-efficientnet_lite0.npz",
        "reference-val-efficientnet_lite0.npz",
    }


def test_splits_that_share_names_are_told_apart_by_their_label_maps(tmp_path):
    """scene-00 of train is not the photo of scene-00 of val."""
    root = tmp_path / "real"
    write_pairs(root, num_train=4, num_val=3)
    keys = {path.stem for path in (root / "labels" / "train").glob("*.png")}
    assert {path.stem for path in (root / "labels" / "val").glob("*.png")} < keys
    judge_folder(tmp_path / "judge")
    data = {
        "height": SIZE[0], "width": SIZE[1], "root": str(root),
        "classes": str(root / "classes.json"),
    }  # fmt: skip
    make_generator(tmp_path / "run" / checkpoint.GENERATOR, data=data)
    found = {}
    for split in ("train", "val"):
        generate.run(
            generate.Request(
                tmp_path / "run" / checkpoint.GENERATOR, tmp_path / split,
                labels=root / "labels" / split, device="cpu", quiet=True,
            )
        )  # fmt: skip
        request = request_of(
            tmp_path, tmp_path / f"{split}-out", samples=(tmp_path / split,),
            recipe=recipe_of(tmp_path), judge=str(tmp_path / "judge"),
        )  # fmt: skip
        found[split], _ = evaluated(request)
    assert "photos of the samples' own layouts" in found["val"]["protocol"]["real"]
    assert "all photos of split val" in found["train"]["protocol"]["real"]
    assert any("no layout of these samples" in note for note in found["train"]["notes"])
