"""Label maps with a class list of their own: read by the names of its classes."""

import json

import numpy as np
import pytest
from PIL import Image

from ecgan import labels
from ecgan.data.packed import sample_sets as dataset
from ecgan.errors import UserError
from ecgan.generation import planner
from ecgan.generation import run as generate
from ecgan.generation.request import Request
from ecgan.sampling.layouts import match_names
from ecgan.shards.manifest import read_manifest
from tests.helpers.tiny import make_generator

NAMES = ["road", "sky", "car"]  # of the generator
IGNORED = 255


def write_maps(folder, table):
    """Label maps of the generator's ids and unlabelled pixels, as ``table`` writes each of them."""
    folder.mkdir(parents=True)
    for i in range(3):
        ids = np.random.default_rng(i).integers(0, 4, (4, 8))
        values = np.array([table[n] for n in (0, 1, 2, IGNORED)])[ids]
        values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
        Image.fromarray(values.repeat(8, axis=0).repeat(8, axis=1)).save(folder / f"{i}.png")
    return folder


def samples(out):
    return [(s.key, s.label.tolist(), s.image.tolist()) for s in dataset.read(out)]


@pytest.fixture(scope="module")
def expected(generator, tmp_path_factory):
    """Samples of the maps in the generator's ids."""
    root = tmp_path_factory.mktemp("expected")
    write_maps(root / "maps", {0: 0, 1: 1, 2: 2, IGNORED: IGNORED})
    options = {"labels": root / "maps", "device": "cpu", "quiet": True}
    generate.run(Request.of(generator, root / "out", **options))
    return samples(root / "out")


SAME = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
LISTS = {
    "another order": (
        {0: 1, 1: 0, 2: 2, IGNORED: 255},
        "id2label.json",
        {"0": "sky", "1": "road", "2": "car"},
    ),
    "other numbers": (
        {0: 7, 1: 1007, 2: 9, IGNORED: 0},
        "classes.json",
        {
            "classes": [
                {"ids": [7, 8], "name": "road"},
                {"id": 1007, "name": "sky"},
                {"id": 9, "name": "car"},
            ],
            "ignore": 0,
        },
    ),
    "further classes, which do not occur": (
        {0: 1, 1: 2, 2: 3, IGNORED: 255},
        "id2label.json",
        {"0": "bus", "1": "road", "2": "sky", "3": "car"},
    ),
}


@pytest.mark.parametrize(
    ("place", "kind"),
    [*(("maps", kind) for kind in LISTS), *((place, next(iter(LISTS))) for place in (".", "data"))],
)
def test_maps_are_read_by_the_names_of_their_list(
    generator, expected, tmp_path, capsys, place, kind
):
    table, name, content = LISTS[kind]
    folder = {"data": tmp_path / "data/labels/val"}.get(place, tmp_path / "maps")
    write_maps(folder, table)
    path = tmp_path / place / name
    path.write_text(json.dumps(content))
    request = Request.of(generator, tmp_path / "out", labels=folder, device="cpu")
    generate.run(request)
    assert samples(tmp_path / "out") == expected
    assert f"Reading the label maps with {path}, by the names" in capsys.readouterr().err


def test_masks_in_the_colours_of_their_list(generator, expected, tmp_path):
    table = {0: (9, 9, 9), 1: (1, 2, 3), 2: (4, 5, 6), IGNORED: (0, 0, 0)}
    folder = write_maps(tmp_path / "maps", table)
    (folder / "labelmap.txt").write_text("car:4,5,6::\nroad:9,9,9::\nsky:1,2,3::\n")
    generate.run(Request.of(generator, tmp_path / "out", labels=folder, device="cpu", quiet=True))
    assert samples(tmp_path / "out") == expected


def plan(generator, folder, out, **options):
    return planner.plan(Request.of(generator, out, labels=folder, device="cpu", **options))


def test_the_generators_own_list_changes_nothing(generator, tmp_path, capsys):
    folder = write_maps(tmp_path / "maps", {0: 0, 1: 1, 2: 2, IGNORED: 255})
    before = plan(generator, folder, tmp_path / "out").wanted.fingerprint
    (tmp_path / "classes.json").write_text(json.dumps({"classes": SAME, "ignore": 255}))
    assert plan(generator, folder, tmp_path / "out").wanted.fingerprint == before
    assert before.label_classes is None
    assert "Reading" not in capsys.readouterr().err


def test_classes_that_the_generator_lacks_are_refused_where_they_occur(generator, tmp_path):
    folder = write_maps(tmp_path / "maps", {0: 0, 1: 1, 2: 2, IGNORED: 3})
    (folder / "labels.txt").write_text("bus\nsky\ncar\nroad\nbike\n")
    with pytest.raises(UserError) as error:
        plan(generator, folder, tmp_path / "out")
    assert "labels.txt: the generator does not have these classes" in str(error.value)
    assert error.value.faults == ("bus is in 3 label maps",)
    (folder / "classes.json").write_text("[")
    with pytest.raises(UserError, match=r"classes\.json: not a JSON file"):
        plan(generator, folder, tmp_path / "out")


def test_a_data_set_is_not_resumed_under_another_list(generator, tmp_path):
    folder = write_maps(tmp_path / "maps", {0: 0, 1: 1, 2: 2, IGNORED: 255})
    request = Request.of(generator, tmp_path / "out", labels=folder, device="cpu", quiet=True)
    generate.run(request)
    (folder / "labels.txt").write_text("sky\nroad\ncar\n")
    with pytest.raises(UserError, match=r"class list of --labels"):
        generate.run(request)


def test_the_recipe_overrules_a_list_beside_its_own_data(tmp_path):
    folder = write_maps(tmp_path / "data/labels/train", {0: 0, 1: 1, 2: 2, IGNORED: 255})
    (tmp_path / "data/labels.txt").write_text("sky\nroad\ncar\n")
    path = make_generator(tmp_path / "g.safetensors", data={"root": str(tmp_path / "data")})
    assert plan(path, folder, tmp_path / "out").reading is None
    other = write_maps(tmp_path / "other/labels/train", {0: 0, 1: 1, 2: 2, IGNORED: 255})
    (tmp_path / "other/labels.txt").write_text("sky\nroad\ncar\n")
    assert plan(path, other, tmp_path / "out").reading is not None


# Sizes


def test_layouts_of_another_aspect_ratio_are_named(generator, tmp_path, capsys):
    folder = write_maps(tmp_path / "maps", {0: 0, 1: 1, 2: 2, IGNORED: 255})  # 64 x 32, as it
    plan(generator, folder, tmp_path / "out")
    assert "stretched" not in capsys.readouterr().err
    Image.new("L", (69, 32)).save(folder / "8.png")  # by less than a tenth
    Image.new("L", (32, 32)).save(folder / "9.png")
    plan(generator, folder, tmp_path / "out")
    expected = (
        f"1 label map of 5 stretched to the generator's 64 x 32 pixels (first: {folder}/9.png"
    )
    assert expected in capsys.readouterr().err
    plan(generator, folder, tmp_path / "out", quiet=True)
    assert not capsys.readouterr().err


FITS = {
    "crop": "cut to the middle part of the aspect ratio of the generator's 64 x 32 pixels (first: ",
    "letterbox": "set between unlabelled borders in the generator's 64 x 32 pixels (first: ",
}


def with_fit(generator, folder, out, fit, **options):
    overrides = (f"sampling.layout_fit={fit}", "sampling.image_format=png")
    return Request.of(
        generator, out, labels=folder, device="cpu", overrides=overrides, n_styles=1, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(("fit", "said"), FITS.items())
def test_square_layouts_are_cut_or_set_between_borders(generator, tmp_path, capsys, fit, said):
    """The label map that is written is the one that the image was made of."""
    label = np.random.default_rng(0).integers(0, 3, (8, 8), np.uint8).repeat(8, 0).repeat(8, 1)
    (tmp_path / "maps").mkdir()
    Image.fromarray(label).save(tmp_path / "maps/square.png")
    expected = np.full((32, 64), IGNORED)
    if fit == "crop":
        expected = label[16:48]
    else:
        expected[:, 16:48] = label[1::2, 1::2]
    generate.run(with_fit(generator, tmp_path / "maps", tmp_path / "out", fit))
    assert f"1 label map of 1 {said}" in capsys.readouterr().err
    (sample,) = dataset.read(tmp_path / "out")
    assert np.array_equal(sample.label, expected)
    # As it is written, it gives the same image
    (tmp_path / "again").mkdir()
    Image.fromarray(sample.label.astype(np.uint8)).save(tmp_path / "again/square.png")
    generate.run(with_fit(generator, tmp_path / "again", tmp_path / "second", "stretch"))
    (again,) = dataset.read(tmp_path / "second")
    assert np.array_equal(again.image, sample.image)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("listed", [False, True])
def test_balance_counts_what_is_used_of_a_layout(generator, tmp_path, fit, listed):
    """Cars of the first map are all above the middle part; those of the second are in it."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for index, rows in enumerate([slice(0, 16), slice(16, 48)]):
        label = np.full((64, 64), listed, np.uint8)
        label[rows] = 2
        Image.fromarray(label).save(folder / f"{index}.png")
    Image.fromarray(np.ones((32, 64), np.uint8)).save(folder / "fits.png")
    if listed:
        (folder / "id2label.json").write_text('{"0": "sky", "1": "road", "2": "car"}')
    options = {"spread": "target", "targets": ("car=0.5",), "quiet": True}
    request = with_fit(generator, folder, tmp_path / "out", fit, **options)
    even, planned = planner.plan(request).shares
    used = {"crop": [0, 64 * 32, 0], "letterbox": [8 * 32, 16 * 32, 0]}[fit]
    labelled = [2048, 2048, 2048] if fit == "crop" else [1024, 1024, 2048]
    assert even[2] == pytest.approx(sum(used) / sum(labelled))
    outcome = generate.run(request)
    pixels = np.array(read_manifest(tmp_path / "out").class_pixels)
    assert outcome.num_samples == 3
    assert planned == pytest.approx(pixels / pixels.sum())


def test_a_data_set_is_not_resumed_with_another_fit(generator, tmp_path):
    folder = write_maps(tmp_path / "maps", {0: 0, 1: 1, 2: 2, IGNORED: 255})
    generate.run(with_fit(generator, folder, tmp_path / "out", "stretch", quiet=True))
    with pytest.raises(UserError, match=r"sampling\.layout_fit"):
        generate.run(with_fit(generator, folder, tmp_path / "out", "crop", quiet=True))


def test_borders_need_a_value_of_unlabelled_pixels(tmp_path):
    path = make_generator(tmp_path / "g.safetensors", data={"ignore": None})
    folder = write_maps(tmp_path / "maps", {0: 0, 1: 1, 2: 2, IGNORED: 0})
    with pytest.raises(UserError, match=r"layout_fit=letterbox: its borders are unlabelled"):
        planner.plan(with_fit(path, folder, tmp_path / "out", "letterbox"))


# Matching


def matched(own, space=None, *, from_one=False):
    space = labels.from_json(NAMES, "x") if space is None else space
    return match_names("x", space, labels.from_json(own, "x"), from_one=from_one)


def test_data_sets_of_ours_are_no_raw_labels_of_ade20k():
    space = labels.builtin("ade20k")
    ids = {"classes": [{"id": i, "name": n} for i, n in enumerate(space.names)], "ignore": 255}
    reading = matched(ids, space, from_one=True).reading
    assert reading is not None
    assert reading.file_ids == tuple((i, i) for i in range(150))
    raw = {"classes": [{"id": i + 1, "name": n} for i, n in enumerate(space.names)], "ignore": 0}
    assert matched(raw, space, from_one=True).reading is None


def test_maps_of_a_generator_without_unlabelled_pixels_may_have_none():
    space = labels.from_json({"classes": NAMES, "ignore": None}, "x")
    assert matched(SAME, space).reading is None
    reading = matched(["sky", "road", "car"], space).reading
    assert reading is not None
    assert reading.ignored == ()


def test_colours_are_the_lists_own_where_it_gives_any():
    own = [{"name": "road", "color": [1, 2, 3]}, "sky", "car"]
    reading = matched(own).reading
    assert reading is not None
    assert reading.colors_given == (True, False, False)
    assert reading.classes[0].color == (1, 2, 3)
    space = labels.from_json(own, "x")
    assert matched(SAME, space).reading is None


def test_the_values_of_unlabelled_pixels_of_both_lists_hold():
    space = labels.from_json({"classes": NAMES, "ignore": 11}, "x")
    reading = matched({"classes": NAMES, "ignore": 254}, space).reading
    assert reading is not None
    assert reading.ignored == (254, 11)
