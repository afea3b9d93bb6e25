"""Which judge is taken, which is refused, and what is marked."""

import pytest
import torch

from ecgan import labels
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.evaluation import judge as judges
from ecgan.recipe import parse_recipe
from ecgan.runtime.files import sha256
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter, Sources, segformer
from ecgan.shards.manifest import FilterSummary, Manifest
from tests.helpers import folder_items
from tests.helpers.tiny import NAMES, write_pairs

CPU = torch.device("cpu")


NOTHING = Sources()


def segmenter(seed=0, data="", sources=NOTHING, kind="loaded"):
    return Segmenter(
        segformer(8, NAMES, seed),
        range(len(NAMES)),
        NAMES,
        normalisation=Normalisation(),
        provenance=Provenance(kind, "somewhere", data=data),
        evaluation=True,
        sources=sources,
    )


def manifest(name="train", **taught):
    return Manifest(
        label_space="input",
        recipe={"model": {"label_generator": name}},
        classes=[],
        names=("sky",),
        class_pixels=[0],
        shards=[],
        label_generator=taught or None,
    )


def filtered_by(**changes):
    return manifest().model_copy(update={"filter": FilterSummary(**changes)})


@pytest.fixture
def reference(tmp_path):
    write_pairs(tmp_path / "real", num_train=4, num_val=3)
    space = labels.load_label_space(tmp_path / "real" / "classes.json")
    items = folder_items.index("folder", tmp_path / "real", "val")
    return TripleDataset(items, space, "folder", height=32, width=64, edges="none")


def test_the_label_generator_is_refused_by_its_hash_its_data_and_its_place(tmp_path):
    judge = judges.Judge(segmenter(data="d" * 64), str(tmp_path))
    own = judge.segmenter.hash
    for found in (
        manifest(hash=own, data=""),
        manifest(hash="other", data="d" * 64),
        manifest(hash="other", data="", weights=judge.segmenter.weights_hash),
        manifest(str(tmp_path / "." / "x" / "..")),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="label generator that trained the generator of set-a"):
            judges.own_label_generators(judge, {"set-a": found}, force=False)
        marks = judges.own_label_generators(judge, {"set-a": found}, force=True)
        assert marks == {
            "set-a": [
                "the judge is the label generator that trained the generator of this set (forced)"
            ]
        }


def test_the_label_filter_is_refused_by_its_weights_and_its_place(tmp_path):
    judge = judges.Judge(segmenter(), str(tmp_path))
    filters = [
        {"segmenter": "train", "weights": ["other", judge.segmenter.weights_hash]},
        {"segmenter": str(tmp_path)},
    ]
    for about in filters:
        found = {"set-a": filtered_by(**about)}
        with pytest.raises(UserError, match="it is the label filter of set-a"):
            judges.own_label_generators(judge, found, force=False)
        marks = judges.own_label_generators(judge, found, force=True)
        assert marks == {"set-a": ["the judge is the label filter of this set (forced)"]}
    others = filtered_by(segmenter="train", weights=["other"])
    nothing = filtered_by(kind="none")
    found = {"a": others, "b": nothing}
    assert judges.own_label_generators(judge, found, force=False) == {}


def test_the_same_weights_are_known_under_another_class_map():
    one = segmenter()
    other = Segmenter(
        one.network, [1, 0, *range(2, len(NAMES))], NAMES,
        normalisation=Normalisation(), provenance=Provenance("loaded", "elsewhere"),
    )  # fmt: skip
    assert one.hash != other.hash
    assert one.weights_hash == other.weights_hash != segmenter(seed=1).weights_hash


def test_other_segmenters_may_judge():
    judge = judges.Judge(segmenter(), "hub/name")
    others = {
        "unlike": manifest(hash=segmenter(seed=1).hash, data=""),
        "unknown": manifest(),
        "without": manifest("off"),
        "elsewhere": manifest("hub/other"),
    }
    assert judges.own_label_generators(judge, others, force=False) == {}


def test_a_judge_that_saw_layouts_is_marked_by_label_maps_rather_than_keys(reference):
    seen, other = reference.items[0], reference.items[1]
    by_label = Sources(frozenset({other.key, "far"}), frozenset({sha256(seen.label)}))
    judge = judges.Judge(segmenter(sources=by_label), "judge")
    layouts = [seen.key, seen.key, other.key, "far", "near"]
    # other.key is a key of another split's map: its own map was not seen
    assert judges.seen_layouts(judge, layouts, reference) == {seen.key, "far"}
    (mark,) = judges.seen_layouts_warning(judge, layouts, reference)
    assert mark.startswith("2 of 4 layouts")
    by_key = judges.Judge(segmenter(sources=Sources(frozenset({other.key}))), "judge")
    assert judges.seen_layouts(by_key, layouts, reference) == {other.key}
    assert judges.seen_layouts_warning(judges.Judge(segmenter(), "judge"), layouts, reference) == []


@pytest.mark.slow
def test_a_judge_is_trained_once_and_of_the_network_that_is_asked_for(reference, tmp_path):
    recipe = parse_recipe({"evaluate": {"judge_training": {"channels": 8, "images": 8}}}, "test")
    options = {"cache": tmp_path / "judges", "device": CPU, "progress": False}
    space = reference.space
    judge = judges.find_judge("train", recipe, space, reference, **options)
    assert judge.segmenter.evaluation
    again = judges.find_judge(judge.path, recipe, space, reference, **options)
    assert again.segmenter.hash == judge.segmenter.hash
    assert "width 8, trained by ecgan, 8 images seen, on the reference's split train" in (
        judge.about(recipe, "train")
    )
    assert again.about(recipe, "").startswith(judge.path)
    loaded = judges.Judge(segmenter(), "hub/name")
    assert loaded.about(recipe, "") == "hub/name"
