"""The user study: pages that give nothing away, answers that are counted, statistics."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ecgan.errors import UserError
from ecgan.evaluation.report import study
from ecgan.labels import default_color, from_json
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.shards import codecs, formats, manifest, records
from ecgan.shards.files import names
from ecgan_cli.main import cli
from tests.helpers import trees

SIZE = (12, 20)
CLASSES = {"classes": [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}], "ignore": 255}


def write_set(
    out, layouts, brightness, *, size=SIZE, classes=CLASSES, with_manifest=True, label=None, **about
):
    """Two styles of each layout, the later first; style 0 is ``brightness`` everywhere.

    Before them stands a varied form of each layout, which is none of the layout's own.
    """

    def samples():
        for layout in layouts:
            for style, variation in ((0, "flip"), (1, ""), (0, "")):
                labels = np.full(size, len(layout) % 2 if label is None else label, np.uint8)
                labels = 1 - labels if variation else labels
                shade = brightness + style * 50 + 20 * bool(variation)
                image = np.full((*size, 3), shade, np.uint8)
                counts = records.count_classes(labels, 2)
                record = records.Record(
                    f"{layout}-{variation}s{style:03d}", layout, style, 1, size[1], size[0],
                    counts, variation=variation,
                )  # fmt: skip
                png = codecs.encode_image(image, "png", 95)
                yield records.Encoded(
                    record, png, codecs.encode_map(labels), codecs.encode_map(labels * 0)
                )

    name = names.shard_name("webdataset", "train", 0)
    shard = formats.write_shard(
        open_store(out), name, samples(), data_format="webdataset", image_format="png",
        num_classes=2,
    )  # fmt: skip
    listed = {
        "name": name,
        "samples": shard.samples,
        "bytes": 0,
        "sha256": "0" * 64,
        "md5": "0" * 32,
    }
    space = from_json(classes, "x")
    is_evaluation = about.get("label_space") == "evaluation"
    written = space.names_for_evaluation if is_evaluation else space.names
    about = {
        "schema": manifest.SCHEMA,
        "label_space": "input",
        "recipe": {"data": {"root": None}},
        "classes": space.to_json(),
        "names": written,
        "ignore_index": space.ignore_index,
        "class_pixels": [0] * len(written),
        "shards": [listed],
    } | about
    shutil.rmtree(out / HIDDEN, ignore_errors=True)
    if with_manifest:
        (out / "manifest.json").write_text(json.dumps(about))
    return out


@pytest.fixture
def two(tmp_path):
    return (
        write_set(tmp_path / "sunny-set", ["a", "bb", "c", "dd"], 180),
        write_set(tmp_path / "night-set", ["a", "bb", "c", "only"], 40),
    )


def page_data(folder):
    text = (folder / "study.html").read_text()
    return json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', text)[1])


def decoded(source):
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert not {"exif", "xmp", "comment"} & image.info.keys()
        return np.asarray(image)


def brightness(source):
    return round(float(decoded(source).mean()))


def test_the_page_shows_shared_layouts_and_gives_nothing_away(two, tmp_path):
    assert study.write(*two, tmp_path / "out", seed=3) == 3
    text = (tmp_path / "out" / "study.html").read_text()
    assert not re.search(r"https?://|sunny|night|url\(|-s000", text)
    assert "default-src 'none'" in text  # and the browser sees to it
    known = json.loads((tmp_path / "out" / "assignment.json").read_text())
    data = page_data(tmp_path / "out")
    assert data["study"] == known["study"]
    assert {t["id"] for t in data["trials"]} == set(known["trials"])
    assert {t["source"] for t in known["trials"].values()} == {"a", "bb", "c"}
    for trial in data["trials"]:
        first, second = map(brightness, trial["images"])
        a_first = known["trials"][trial["id"]]["first"] == "a"
        assert (first, second) == ((180, 40) if a_first else (40, 180))  # the first styles


def test_sides_are_drawn_by_the_seed(tmp_path):
    layouts = [f"layout-{i:03d}" for i in range(60)]
    a, b = write_set(tmp_path / "a", layouts, 10), write_set(tmp_path / "b", layouts, 90)

    def sides(seed, out):
        study.write(a, b, tmp_path / out, num=60, seed=seed)
        known = json.loads((tmp_path / out / "assignment.json").read_text())["trials"]
        return [(t["source"], t["first"]) for t in known.values()]

    one, again, other = sides(0, "x"), sides(0, "y"), sides(1, "z")
    assert one == again != other
    assert 18 < sum(first == "a" for _, first in one) < 42
    assert [source for source, _ in one] != sorted(layouts)
    assert study.write(a, b, tmp_path / "few", num=5) == 5


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"layouts": ["x"]}, "no layout in common"),
        ({"size": (10, 20)}, "12 x 20 in one and 10 x 20 in the other"),
        (
            {"classes": {"classes": [{"id": 0, "name": "road"}, {"id": 1, "name": "car"}]}},
            "have other classes",
        ),
    ],
)
def test_sets_that_cannot_be_compared(tmp_path, second, message):
    a = write_set(tmp_path / "a", ["a"], 10)
    options = {"layouts": ["a"], "brightness": 20} | second
    b = write_set(tmp_path / "b", options.pop("layouts"), options.pop("brightness"), **options)
    with pytest.raises(UserError, match=message):
        study.write(a, b, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def colours(folder, size=SIZE):
    """Colours of the layouts of a page, by the source; they are of one class each."""
    known = json.loads((folder / "assignment.json").read_text())["trials"]
    found = {}
    for trial in page_data(folder)["trials"]:
        pixels = decoded(trial["layout"])
        assert pixels.shape == (*size, 3)
        assert np.ptp(pixels.reshape(-1, 3), axis=0).max() == 0
        found[known[trial["id"]]["source"]] = (tuple(pixels[0, 0].tolist()), trial["legend"])
    return found


def test_layouts_have_the_colours_and_names_of_their_classes(two, tmp_path):
    study.write(*two, tmp_path / "out")
    road, sky = default_color(0), default_color(1)
    assert colours(tmp_path / "out") == {
        "a": (sky, [["sky", "rgb({},{},{})".format(*sky)]]),
        "c": (sky, [["sky", "rgb({},{},{})".format(*sky)]]),
        "bb": (road, [["road", "rgb({},{},{})".format(*road)]]),
    }
    scored = CLASSES | {"evaluation": [255, 0], "evaluation_names": ["blue sky"]}
    sets_ = [
        write_set(tmp_path / name, ["bb"], 10 * i, classes=scored, label_space="evaluation")
        for i, name in enumerate("xy")
    ]
    study.write(*sets_, tmp_path / "evaluation")
    assert colours(tmp_path / "evaluation")["bb"] == (
        sky, [["blue sky", "rgb({},{},{})".format(*sky)]]
    )  # fmt: skip


def test_sets_of_others_have_the_colours_of_their_list_or_any(tmp_path):
    a = write_set(tmp_path / "a", ["a"], 10, with_manifest=False)
    b = write_set(tmp_path / "b", ["a"], 20, with_manifest=False)
    study.write(a, b, tmp_path / "out")
    assert colours(tmp_path / "out") == {"a": (default_color(1), [])}
    named = {"classes": [{"name": "road"}, {"name": "sky", "color": [1, 2, 3]}]}
    (b / "classes.json").write_text(json.dumps(named))
    study.write(a, b, tmp_path / "named")
    assert colours(tmp_path / "named") == {"a": ((1, 2, 3), [["sky", "rgb(1,2,3)"]])}


def test_what_a_filter_took_from_one_layout_is_shown_from_the_other(tmp_path):
    a = write_set(tmp_path / "a", ["a"], 10, label=255)
    b = write_set(tmp_path / "b", ["a"], 20)
    for order in ((a, b), (b, a)):
        out = tmp_path / order[0].name / "study"
        study.write(*order, out)
        assert colours(out)["a"][0] == default_color(1)


def test_a_plain_folder_can_be_compared(tmp_path):
    ours = write_set(tmp_path / "ours", ["a"], 10)
    plain = tmp_path / "plain"
    trees.save(plain / "images" / "a.png", np.full((*SIZE, 3), 200, np.uint8))
    trees.save(plain / "masks" / "a.png", np.full(SIZE, 1, np.uint8))
    assert study.write(ours, plain, tmp_path / "out") == 1


def test_the_real_photo_is_shown_where_it_is_asked_for(tmp_path):
    real = tmp_path / "real"
    for split, key, shade in (("train", "a", 100), ("test", "bb", 220), ("test", "other", 0)):
        size = (2 * SIZE[0], 3 * SIZE[1])
        trees.save(real / "images" / split / f"{key}.png", np.full((*size, 3), shade, np.uint8))
        trees.save(real / "labels" / split / f"{key}.png", np.zeros(size, np.uint8))
    recipe = {"data": {"root": str(real)}}
    a = write_set(tmp_path / "a", ["a", "bb"], 10, recipe=recipe)
    b = write_set(tmp_path / "b", ["a", "bb"], 60)
    arguments = ["report", "study", str(a), str(b), "--out"]
    result = CliRunner().invoke(cli, [*arguments, str(tmp_path / "out"), "--show-reference"])
    assert result.exit_code == 0, result.output
    assert "The data sets have 2 layouts in common, fewer than 50" in result.output
    known = json.loads((tmp_path / "out" / "assignment.json").read_text())["trials"]
    shades = {}
    for trial in page_data(tmp_path / "out")["trials"]:
        assert decoded(trial["photo"]).shape == (*SIZE, 3)
        shades[known[trial["id"]]["source"]] = brightness(trial["photo"])
    assert shades == {"a": 100, "bb": 220}
    assert 'id="photo"' in (tmp_path / "out" / "study.html").read_text()
    without = tmp_path / "without"
    study.write(a, b, without)
    assert page_data(without)["trials"][0]["photo"] is None
    assert 'id="photo"' not in (without / "study.html").read_text()
    (real / "images" / "test" / "bb.png").unlink()
    (real / "labels" / "test" / "bb.png").unlink()
    with pytest.raises(UserError, match=r"1 layout without a photo \(first: bb\)"):
        study.write(a, b, tmp_path / "less", reference=real)
    with pytest.raises(UserError, match="give --reference"):
        study.write(b, write_set(tmp_path / "c", ["a"], 3), tmp_path / "no", show_reference=True)


def test_sides_cannot_be_told_from_the_seed_alone(tmp_path):
    layouts = [f"layout-{i:03d}" for i in range(40)]
    a = write_set(tmp_path / "a", layouts, 10)
    sides = []
    for shade in (90, 91):
        b = write_set(tmp_path / f"b{shade}", layouts, shade)
        study.write(a, b, tmp_path / str(shade))
        known = json.loads((tmp_path / str(shade) / "assignment.json").read_text())["trials"]
        sides.append([t["first"] for t in known.values()])
    assert sides[0] != sides[1]


def test_a_study_is_not_written_over_another(two, tmp_path):
    study.write(*two, tmp_path / "out")
    before = (tmp_path / "out" / "study.html").read_bytes()
    study.write(*two, tmp_path / "out")  # the same one
    assert (tmp_path / "out" / "study.html").read_bytes() == before
    for changed in ({"seed": 1}, {"question": "Which?"}, {"num": 2}):
        with pytest.raises(UserError, match="holds another study"):
            study.write(*two, tmp_path / "out", **changed)
    assert (tmp_path / "out" / "study.html").read_bytes() == before


def test_a_study_is_not_written_into_somebody_elses_folder(two, tmp_path):
    other = tmp_path / "data"
    other.mkdir()
    (other / "classes.json").write_text("[]")
    with pytest.raises(UserError, match=r"--out .*data: not empty, and not a study of ecgan; give"):
        study.write(*two, other)
    with pytest.raises(UserError, match=r"--out .*classes\.json: a file; give a folder"):
        study.write(*two, other / "classes.json")
    assert [path.name for path in other.iterdir()] == ["classes.json"]
    (other / "assignment.json").write_text("[]")
    with pytest.raises(UserError, match="data: holds another study"):
        study.write(*two, other)
    assert (other / "assignment.json").read_text() == "[]"


# Results


def answers(
    folder, name, votes_for_a, *, participant="", start=1000, file=None, who=None, left=None
):
    """Answers of one participant: the first trials for a, the others for b."""
    known = json.loads((folder / "assignment.json").read_text())
    found = []
    for index, (trial, about) in enumerate(known["trials"].items()):
        for_a = index < votes_for_a
        choice = 1 if (about["first"] == "a") == for_a else 2
        found.append({"trial": trial, "choice": choice, "time": start + index})
        if left is not None:
            found[-1]["left"] = choice if left else 3 - choice
    path = file or folder / f"{name}.json"
    document = {
        "schema": 1,
        "study": known["study"],
        "id": who or participant or name,
        "participant": participant,
        "answers": found,
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def asked(two, tmp_path):
    study.write(*two, tmp_path / "out")
    return tmp_path / "out"


def test_votes_are_counted_for_the_right_set(asked):
    files = [answers(asked, "x", 3), answers(asked, "y", 1, participant="Yve")]
    results = study.read(files, asked / "assignment.json")
    assert results.votes == {"x": (3, 0), "Yve": (1, 2)}
    found = results.to_json()
    assert found["preference"] == pytest.approx(4 / 6)
    assert found["over_participants"] == {"low": pytest.approx(1 / 3), "high": 1.0}
    arguments = ["report", "study-results", *map(str, files)]
    arguments += ["--assignment", str(asked / "assignment.json")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "was preferred to" in result.output
    assert "in 66.7 % of 6 votes" in result.output
    assert "2 participants, 3 layouts\n" in result.output
    assert "over participants (bootstrap): 33.3 to 100.0 %" in result.output
    assert "  Yve              1      2      33.3\n" in result.output
    assert "note: votes of one participant are not independent" in result.output
    assert "note: 2 participants: that interval, too, is a rough one" in result.output
    assert found["trials"] == 3
    assert found["left"] is None  # these files do not say
    assert json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout) == found
    alone = study.read(files[:1], asked / "assignment.json")
    assert "one participant: nothing is known" in alone.table()


def test_a_preference_for_a_side_is_noticed(two, tmp_path):
    layouts = [f"layout-{i}" for i in range(10)]
    a, b = write_set(tmp_path / "a", layouts, 10), write_set(tmp_path / "b", layouts, 90)
    study.write(a, b, tmp_path / "out")
    for sides, left, words in (((1, 1), 1.0, "100 % chose the left image"), ((1, 0), 0.5, None)):
        files = [
            answers(tmp_path / "out", f"p{i}", 5, left=bool(side)) for i, side in enumerate(sides)
        ]
        found = study.read(files, tmp_path / "out" / "assignment.json").to_json()
        assert found["left"] == left
        assert any("chose the left" in note for note in found["notes"]) == (words is not None)


def test_many_participants_are_not_called_few(asked):
    files = [answers(asked, f"p{i}", i % 4) for i in range(10)]
    notes = study.read(files, asked / "assignment.json").to_json()["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "votes of one participant are not independent"
    ]


def test_a_later_answer_takes_the_place_of_an_earlier_one(asked):
    early = answers(asked, "early", 3, participant="p", start=0)
    late = answers(asked, "late", 0, participant="p", start=100)
    for order in ([early, late], [late, early]):
        assert study.read(order, asked / "assignment.json").votes == {"p": (0, 3)}


def test_participants_are_told_apart_by_their_browser_not_by_their_name(asked, tmp_path):
    (tmp_path / "second").mkdir()
    same = [
        answers(asked, "first", 3, who="x1"),
        answers(asked, "any", 0, who="x2", file=tmp_path / "second" / "first.json"),
        answers(asked, "again", 2, who="x1", start=2000),
    ]
    found = study.read(same, asked / "assignment.json").votes
    assert sorted(found.values()) == [(0, 3), (2, 1)]
    assert len(found) == 2


def test_another_layout_under_the_same_name_is_refused(tmp_path):
    a, b = write_set(tmp_path / "a", ["aa"], 10), write_set(tmp_path / "b", ["aa"], 20)
    other = write_set(tmp_path / "c", ["aa"], 20, label=1)
    study.write(a, b, tmp_path / "fine")
    with pytest.raises(UserError, match="layout aa is another one in each"):
        study.write(a, other, tmp_path / "out")


def test_other_pictures_are_another_study(tmp_path):
    a = write_set(tmp_path / "a", ["aa"], 10)
    for brightness in (20, 30):
        write_set(tmp_path / "b", ["aa"], brightness)
        study.write(a, tmp_path / "b", tmp_path / str(brightness))
    one, other = (page_data(tmp_path / name)["study"] for name in ("20", "30"))
    assert one != other


def test_what_is_not_of_this_study_is_refused_all_at_once(asked, tmp_path):
    good = answers(asked, "good", 2)
    document = json.loads(good.read_text())
    bad = {
        "other.json": document | {"study": "x"},
        "wrong.json": document | {"answers": [{"trial": "x", "choice": 3, "time": 1}]},
        "true.json": document | {"answers": [document["answers"][0] | {"choice": True}]},
        "schema.json": document | {"schema": 2},
        "list.json": [],
    }
    for name, content in bad.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "half.json").write_text("{")
    files = [good, *(tmp_path / name for name in (*bad, "half.json", "nowhere.json"))]
    with pytest.raises(UserError) as caught:
        study.read(files, asked / "assignment.json")
    message = str(caught.value)
    for part in (
        "other.json: of study x", "wrong.json: {", "true.json: {", "schema.json: schema 2",
        "list.json: the whole", "half.json: not answers",
        "nowhere.json: no such file",
    ):  # fmt: skip
        assert part in message
    with pytest.raises(UserError, match="not an assignment"):
        study.read([good], good)
    (tmp_path / "none.json").write_text(json.dumps(document | {"answers": []}))
    with pytest.raises(UserError, match="no answers"):
        study.read([tmp_path / "none.json"], asked / "assignment.json")
