"""The user study: pages that give nothing away, answers that are counted, statistics."""

import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ecgan import study
from ecgan.data import codecs, sets, shards
from ecgan.errors import UserError
from ecgan.labels import from_json
from ecgan.storage import HIDDEN, open_store
from ecgan_cli.main import cli

SIZE = (12, 20)
CLASSES = {"classes": [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}], "ignore": 255}


def write_set(
    out, layouts, brightness, *, size=SIZE, classes=CLASSES, with_manifest=True, label=None
):
    """Two styles of each layout; the first is ``brightness`` everywhere."""

    def samples():
        for layout in layouts:
            for style in range(2):
                labels = np.full(size, len(layout) % 2 if label is None else label, np.uint8)
                image = np.full((*size, 3), brightness + style * 50, np.uint8)
                counts = shards.count_classes(labels, 2)
                record = shards.Record(
                    f"{layout}-s{style:03d}", layout, style, 1, size[1], size[0], counts
                )
                png = codecs.encode_image(image, "png", 95)
                yield shards.Encoded(
                    record, png, codecs.encode_map(labels), codecs.encode_map(labels * 0)
                )

    name = shards.shard_name("webdataset", "train", 0)
    shard = shards.write_shard(
        open_store(out), name, samples(), data_format="webdataset", image_format="png",
        num_classes=2,
    )  # fmt: skip
    listed = {"name": name, "samples": shard.samples, "bytes": 0, "sha256": "", "md5": ""}
    about = {
        "schema": sets.SCHEMA,
        "label_space": "input",
        "classes": from_json(classes, "x").to_json(),
        "shards": [listed],
    }
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


def brightness(source):
    import base64
    import io

    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert not image.info.get("exif")
        return round(float(np.asarray(image).mean()))


def test_the_page_shows_shared_layouts_and_gives_nothing_away(two, tmp_path):
    assert study.write(*two, tmp_path / "out", seed=3) == 3
    text = (tmp_path / "out" / "study.html").read_text()
    assert not re.search(r"https?://|sunny|night|url\(", text)
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


def test_colours_come_from_one_of_ours(tmp_path):
    a = write_set(tmp_path / "a", ["a"], 10, with_manifest=False)
    b = write_set(tmp_path / "b", ["a"], 20, with_manifest=False)
    with pytest.raises(UserError, match=r"neither has a manifest\.json"):
        study.write(a, b, tmp_path / "out")


# Results


def answers(folder, name, votes_for_a, *, participant="", start=1000, file=None, who=None):
    """Answers of one participant: the first trials for a, the others for b."""
    known = json.loads((folder / "assignment.json").read_text())
    found = []
    for index, (trial, about) in enumerate(known["trials"].items()):
        for_a = index < votes_for_a
        choice = 1 if (about["first"] == "a") == for_a else 2
        found.append({"trial": trial, "choice": choice, "time": start + index})
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
    assert "Yve: 1 for a, 2 for b" in result.output
    assert json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout) == found
    alone = study.read(files[:1], asked / "assignment.json")
    assert "one participant: nothing is known" in alone.table()


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
        "list.json: not answers", "half.json: not JSON",
        "nowhere.json: no such file",
    ):  # fmt: skip
        assert part in message
    with pytest.raises(UserError, match="not an assignment"):
        study.read([good], good)
    (tmp_path / "none.json").write_text(json.dumps(document | {"answers": []}))
    with pytest.raises(UserError, match="no answers"):
        study.read([tmp_path / "none.json"], asked / "assignment.json")


@given(st.integers(1, 300), st.floats(0, 1))
def test_statistics_are_scipys(n, share):
    successes = round(share * n)
    theirs = scipy.stats.binomtest(successes, n)
    interval = theirs.proportion_ci(method="wilson")
    assert study.wilson(successes, n) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert study.binomial_p(successes, n) == pytest.approx(theirs.pvalue, rel=1e-9)


def test_the_bootstrap_over_participants_is_that_of_theory():
    rng = np.random.default_rng(0)
    shares = rng.normal(0.6, 0.1, 200).clip(0, 1)
    votes = [(int(100 * s), 100 - int(100 * s)) for s in shares]
    low, high = study.over_participants(votes)
    mean = np.mean([v[0] for v in votes]) / 100
    assert low < mean < high
    expected = 2 * 1.96 * np.std([v[0] / 100 for v in votes]) / np.sqrt(200)
    assert high - low == pytest.approx(expected, rel=0.15)
    assert study.over_participants(votes[:1]) is None
