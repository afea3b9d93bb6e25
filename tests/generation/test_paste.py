"""Things are pasted where they could stand, as large as they would be, behind what is nearer."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ecgan.generation.layout_augmentation import Scene, thing_classes, vary
from ecgan.labels import from_json, load_label_space
from tests.helpers.streets import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    HORIZON,
    NAMES,
    PAVEMENT,
    PERSON,
    POLE,
    ROAD,
    SKY,
    UNLABELLED,
    boxes_of,
    pastes,
    street,
    varied,
)


def test_a_pasted_object_is_one_of_a_donor_on_its_own_ground():
    """No line through one size: scale and row are kept, within 3 % of the height."""
    car = (CAR, 40, 20, 12, 16)
    donor = street(car, key="donor")
    donor.label[29:33, 20:24] = SKY  # no box: its upper left corner is missing
    target = street()
    target.label[HORIZON:, 48:] = PAVEMENT
    tops = set()
    for seed in range(40):
        result = varied(target, [donor], seed=seed)
        [(name, key, top, left, scale)] = pastes(result.done)
        assert (name, key, scale) == ("car", "donor", 1)
        assert abs(top - 29) <= 1
        expected = target.label.copy()
        mask = donor.label[29:41, 20:36] == CAR
        expected[top : top + 12, left : left + 16][mask] = CAR
        np.testing.assert_array_equal(result.label, expected)
        under = result.label[top + 12, left : left + 16]
        assert (under == ROAD).mean() >= 0.8
        tops.add(top)
    assert tops == {28, 29, 30}


@pytest.mark.parametrize("ground", [PAVEMENT, UNLABELLED, SKY, CAR])
def test_nothing_is_pasted_where_the_ground_is_another(ground):
    target = street(ground=ground)
    for seed in range(10):
        result = varied(target, [street((CAR, 40, 20, 12, 16))], seed=seed)
        assert result.done == ""
        np.testing.assert_array_equal(result.label, target.label)


def test_the_ground_is_what_lies_right_below_the_bottom_edge():
    target = street()
    target.label[40:] = PAVEMENT
    for seed in range(10):
        [(_, _, top, _, _)] = pastes(
            varied(target, [street((CAR, 39, 20, 12, 16))], seed=seed).done
        )
        assert top + 12 <= 39


def test_an_object_on_two_grounds_belongs_to_that_of_most_of_its_bottom_edge():
    donor = street((CAR, 40, 20, 12, 16))
    for first, done in ((28, False), (24, True)):
        donor.label[41:, first:] = PAVEMENT
        results = [varied(street(ground=PAVEMENT), [donor], seed=seed) for seed in range(10)]
        assert {bool(result.done) for result in results} == {done}
        assert not any(varied(street(), [donor], seed=seed).done for seed in range(10))


def test_what_stands_upright_is_no_ground():
    """A car behind a low fence, of one row; and the same fence elsewhere."""
    donor, target = street((CAR, 40, 20, 12, 16)), street()
    donor.label[41] = target.label[40:43] = POLE
    assert not any(varied(target, [donor], seed=seed).done for seed in range(10))


def test_an_object_does_not_touch_the_border():
    for seed in range(20):
        result = varied(street(), [street((CAR, 62, 20, 12, 16))], seed=seed)
        assert boxes_of(result.label, CAR)[1] in (61, 62)


@pytest.mark.parametrize(("height", "done"), [(5, False), (7, True)])
def test_an_object_has_a_thousandth_of_the_map(height, done):
    """Of 40,000 pixels; 30 are too few, though they would do on a small map."""
    donor, target = (street(*b, size=(200, 200)) for b in ([(CAR, 90, 20, height, 6)], []))
    assert bool(varied(target, [donor]).done) == done


def test_pixels_that_touch_at_corners_are_one_piece():
    donor = street((CAR, 40, 30, 8, 6), (CAR, 32, 24, 8, 6))
    for seed in range(10):
        result = varied(street(), [donor], seed=seed)
        assert len(pastes(result.done)) == 1
        assert (result.label == CAR).sum() == 96


UNFIT = {
    "on nothing labelled": street((CAR, 40, 20, 12, 16), ground=UNLABELLED),
    "in the sky": street((CAR, 15, 20, 12, 16)),
    "on a building": street((BUILDING, 50, 10, 30, 40), (CAR, 40, 20, 12, 16)),
    "cut by the left border": street((CAR, 40, 0, 12, 16)),
    "cut by the right border": street((CAR, 40, 80, 12, 16)),
    "cut by the lower border": street((CAR, 63, 20, 12, 16)),
    "cut by the upper border": street((CAR, 40, 20, 41, 16)),
    "too small": street((CAR, 40, 20, 4, 5)),
    "behind a nearer thing": street((CAR, 40, 20, 12, 16), (BUS, 50, 30, 30, 20)),
    "behind a pole": street((CAR, 40, 20, 12, 16), (POLE, 45, 28, 30, 3)),
    "a receding row": street((CAR, 28, 50, 6, 10), (CAR, 32, 38, 10, 13), (CAR, 50, 20, 26, 20)),
    "no thing": street((POLE, 40, 20, 12, 16)),
}


@pytest.mark.parametrize("donor", UNFIT.values(), ids=UNFIT)
def test_what_is_cut_off_or_stands_on_no_ground_does_not_move(donor):
    for target in (street(), street(ground=UNLABELLED)):
        target.label[40:, 80:] = BUILDING
        for seed in range(10):
            assert "paste car" not in varied(target, [donor], seed=seed).done


def test_a_layout_without_donors_stays_as_it_is():
    scene = street((CAR, 40, 20, 12, 16))
    result = varied(scene, [])
    assert result.done == ""
    np.testing.assert_array_equal(result.label, scene.label)


def in_perspective(kind=CAR):
    """Things as high as their bottom row is below the row 16, wherever they stand."""
    rows = (26, 31, 38, 44, 54, 58)
    return [street((kind, row, 30, row - 16, (row - 16) // 2), key=f"donor-{row}") for row in rows]


@pytest.mark.slow
def test_the_scale_follows_the_row_of_the_bottom_edge():
    bottoms = set()
    for seed in range(60):
        result = varied(street(), in_perspective(), seed=seed)
        for _, key, top, _, scale in pastes(result.done):
            row = int(key.removeprefix("donor-"))
            height = round(scale * (row - 16))
            bottom = top + height - 1
            assert height == pytest.approx(bottom - 16, abs=1.01)
            assert 0.3 <= scale <= 3
            assert 26 <= bottom <= 58  # where they were seen
            bottoms.add(bottom)
    assert len(bottoms) > 20


def test_four_objects_make_no_line():
    scales = [
        paste[4]
        for seed in range(10)
        for paste in pastes(varied(street(), in_perspective()[:4], seed=seed).done)
    ]
    assert set(scales) == {1.0}


def test_the_line_is_not_believed_where_nearer_things_are_smaller():
    donors = [street((CAR, row, 30, 70 - row, 12), key=f"d{row}") for row in range(30, 60, 5)]
    scales = [p[4] for seed in range(10) for p in pastes(varied(street(), donors, seed=seed).done)]
    assert scales
    assert set(scales) == {1.0}


def test_an_object_of_an_unlikely_height_stays():
    """Half of the car is hidden, by something that the map does not show."""
    half = street((CAR, 50, 30, 10, 20), key="half")
    for seed in range(20):
        assert "half" not in varied(street(), [*in_perspective(), half], seed=seed).done


def test_without_a_line_the_ground_has_to_begin_at_about_the_same_row():
    target = street()
    target.label[:32] = BUILDING
    assert not any(
        varied(target, [street((CAR, 45, 20, 12, 16))], seed=seed).done for seed in range(10)
    )


def test_pasting_is_inside_the_window_of_the_crop():
    for seed in range(30):
        result = varied(street(), in_perspective(), ["paste", "crop"], seed)
        *_, top, left, height, width = map(int, re.findall(r"\d+", result.done.split("crop")[1]))
        for _, key, y, x, scale in pastes(result.done):
            row = int(key.removeprefix("donor-"))
            assert top <= y
            assert y + round(scale * (row - 16)) < top + height
            assert left <= x
            assert x + round(scale * ((row - 16) // 2)) <= left + width


@pytest.mark.parametrize(("kind", "bottom"), [(BUS, 45), (POLE, 45), (UNLABELLED, 45)])
def test_what_is_nearer_is_not_covered(kind, bottom):
    """It stands between the camera and the place where the car comes to stand, or beside it."""
    width = 4
    target = street((kind, bottom, 46, 40, width))
    hidden = 0
    for seed in range(60):
        result = varied(target, [street((CAR, 30, 20, 9, 60))], seed=seed)
        np.testing.assert_array_equal(result.label == kind, target.label == kind)
        for _, _, top, left, _ in pastes(result.done):
            hidden += left <= 46 < left + 60
            inside = result.label[top : top + 9, left : left + 60]
            assert ((inside == CAR) | (inside == kind)).all()
    assert hidden >= 10


def test_what_is_farther_is_covered_but_not_buried():
    target = street((BUS, 26, 40, 10, 16))
    least = (target.label == BUS).sum()
    for seed in range(80):
        result = varied(target, [street((CAR, 45, 20, 28, 12))], seed=seed)
        for _, _, top, left, _ in pastes(result.done):
            assert (result.label[top : top + 28, left : left + 12] == CAR).all()
        least = min(least, (result.label == BUS).sum())
    assert 80 <= least < 120  # of 160


def test_two_things_do_not_stand_in_one_place():
    """Boxes that overlap have bottom edges some rows apart."""
    target = street((BUS, 41, 10, 20, 60))
    for seed in range(40):
        result = varied(target, [street((CAR, 40, 20, 20, 16))], seed=seed)
        for _, _, _, left, _ in pastes(result.done):
            assert left >= 70


def test_a_thing_that_is_mostly_hidden_is_not_pasted():
    """Through a slit in a bus its feet could be seen, with the ground below them."""
    target = street((BUS, 50, 2, 48, 94))
    target.label[34:44, 4:] = ROAD
    for seed in range(20):
        assert varied(target, [street((PERSON, 40, 20, 20, 6))], seed=seed).done == ""
        low = varied(target, [street((PERSON, 40, 20, 6, 6))], seed=seed)
        assert (low.label == PERSON).sum() == 36


@pytest.mark.parametrize("instances", [False, True])
def test_a_rider_moves_with_the_bicycle(instances):
    donor = street((PERSON, 36, 24, 14, 6), (BICYCLE, 42, 20, 8, 16), instances=instances)
    target = street((CAR, 50, 70, 20, 20), instances=True)
    for seed in range(20):
        result = varied(target, [donor], seed=seed)
        [(name, _, top, left, _)] = pastes(result.done)
        assert name == "bicycle"
        window = np.s_[top : top + 20, left : left + 16]
        np.testing.assert_array_equal(
            result.label[window] == PERSON, donor.label[23:43, 20:36] == PERSON
        )
        assert (result.label == BICYCLE).sum() == (donor.label == BICYCLE).sum()
        rider, bicycle = (np.unique(result.instances[result.label == k]) for k in (PERSON, BICYCLE))
        assert len(rider) == len(bicycle) == 1
        assert {int(rider[0]), int(bicycle[0])} == {1001, 1002}  # 1000 is the car's


def test_things_side_by_side_move_alone():
    """Touching is not enough: they share no column, or too few of them."""
    donor = street((CAR, 42, 20, 12, 16), (PERSON, 42, 36, 20, 6))
    alone = {
        tuple(sorted({CAR, PERSON} & {*np.unique(varied(street(), [donor], seed=s).label)}))
        for s in range(30)
    }
    assert (PERSON,) in alone


def test_every_pasted_object_gets_an_instance_id_of_its_own():
    target = street((CAR, 50, 70, 20, 20), instances=True)
    donors = in_perspective(PERSON)
    most = 0
    for seed in range(20):
        result = varied(target, donors, seed=seed)
        changed = result.label != target.label
        np.testing.assert_array_equal(result.instances != target.instances, changed)
        fresh = np.unique(result.instances[changed])
        assert len(fresh) == len(pastes(result.done))
        assert not set(fresh.tolist()) & set(np.unique(target.instances).tolist())
        most = max(most, len(fresh))
    assert most > 2


def test_instances_tell_things_apart_that_touch():
    """Two cars side by side: one region of the label, two of the ids; one of them can move."""
    boxes = (CAR, 40, 20, 12, 16), (CAR, 40, 36, 12, 16)
    wide, narrow = (
        (varied(street(), [street(*boxes, instances=i)], seed=1).label == CAR).sum()
        for i in (False, True)
    )
    assert wide == 12 * 32
    assert narrow in (12 * 16, 2 * 12 * 16)
    widths = {
        int(
            np.ptp(
                np.nonzero(varied(street(), [street(*boxes, instances=True)], seed=s).label == CAR)[
                    1
                ]
            )
        )
        for s in range(20)
    }
    assert 15 in widths


def test_a_thing_before_another_of_its_class_moves_alone():
    """They touch and share columns, yet each has its own id."""
    donor = street((CAR, 36, 20, 14, 16), (CAR, 44, 24, 10, 16), instances=True)
    for seed in range(10):
        assert (varied(street(), [donor], seed=seed).label == CAR).sum() == 160


def test_id_0_is_no_instance():
    donor = street((PERSON, 40, 20, 14, 4), (PERSON, 40, 30, 14, 4), instances=True)
    donor.instances[:] = 0
    for seed in range(10):
        result = varied(street(), [donor], seed=seed)
        assert {left for *_, left, _ in pastes(result.done)}
        columns = np.nonzero((result.label == PERSON).any(axis=0))[0]
        assert len(columns) == 4 * len(pastes(result.done))


def test_pasted_objects_hide_one_another_as_their_rows_say():
    """The far one, on the left half of its own ground, does not cover the near one."""
    far, near = (CAR, 28, 10, 8, 80), (BUS, 45, 30, 40, 10)
    hidden = 0
    for seed in range(60):
        result = varied(street(), [street(far, key="far"), street(near, key="near")], seed=seed)
        spots = {name: (top, left) for name, _, top, left, _ in pastes(result.done)}
        if len(spots) == 2:
            (top, left), (other_top, other_left) = spots["bus"], spots["car"]
            assert (result.label[top : top + 40, left : left + 10] == BUS).all()
            hidden += other_left < left < other_left + 70
            assert other_top > top
    assert hidden > 10


def test_pasted_objects_do_not_stand_in_one_place_either():
    donors = [street((BUS, 40, 20, 20, 30)), street((CAR, 40, 20, 20, 30))]
    both = 0
    for seed in range(40):
        lefts = [left for _, _, _, left, _ in pastes(varied(street(), donors, seed=seed).done)]
        if len(lefts) == 2:
            assert abs(lefts[0] - lefts[1]) >= 30
            both += 1
    assert both > 5


def test_one_id_for_a_crowd_does_not_make_it_one_object():
    donor = street((PERSON, 40, 4, 14, 4), (PERSON, 40, 84, 14, 4), (PERSON, 60, 40, 14, 4))
    ids = np.where(donor.label == PERSON, 24, 0).astype(np.int32)
    result = varied(street(), [donor._replace(instances=ids)])
    assert (result.label == PERSON).sum() in (56, 112, 168)
    assert pastes(result.done)


@pytest.mark.slow
def test_one_to_four_objects_are_pasted():
    done = [varied(street(size=(64, 200)), in_perspective(), seed=seed).done for seed in range(40)]
    numbers = Counter(len(pastes(sentence)) for sentence in done)
    assert set(numbers) == {1, 2, 3, 4}
    assert min(numbers.values()) >= 4


def test_rare_classes_come_first():
    """One small person among large cars: drawn first much more often than one in seven."""
    cars = [(CAR, 61, left, 18, 12) for left in (5, 20, 35, 50, 65, 80)]
    donor = street(*cars, (PERSON, 40, 40, 14, 4))
    firsts = Counter(pastes(varied(street(), [donor], seed=seed).done)[0][0] for seed in range(60))
    assert firsts["person"] > 30
    assert firsts["car"] > 0


def test_donors_of_another_size_are_brought_to_that_of_the_layout():
    donor = street((CAR, 80, 40, 24, 32), size=(128, 192))
    donor.label[: 2 * HORIZON] = SKY
    donor.label[57:81, 40:72] = CAR
    result = varied(street(), [donor])
    top, bottom, left, right = boxes_of(result.label, CAR)
    assert bottom - top == pytest.approx(11, abs=1)
    assert right - left == pytest.approx(15, abs=1)


def test_the_sentence_says_everything_in_its_order():
    for seed in range(40):
        done = varied(street(), in_perspective(), ["crop", "paste", "flip"], seed).done
        assert re.fullmatch(
            r"(flip; )?(paste car from donor-\d+ to \d+,\d+ x\d\.\d\d; )*"
            r"(paste \d more; )?crop \d+,\d+ \d+x\d+",
            done,
        )


def test_the_sentence_stays_short_whatever_the_keys():
    donors = [donor._replace(key=donor.key * 6) for donor in in_perspective()]
    done = [varied(street(size=(64, 200)), donors, seed=seed).done for seed in range(12)]
    assert all(len(d) <= 200 for d in done)
    assert any(d.endswith("; paste 2 more") for d in done)
    endless = [donor._replace(key="k" * 300) for donor in in_perspective()]
    assert re.fullmatch(r"paste \d objects", varied(street(), endless).done)


def test_class_names_of_any_script_give_ascii_sentences():
    space = from_json([*NAMES[:5], "Fußgänger, Passant", *NAMES[6:]], "test")
    things = thing_classes(space, ["Passant"])
    assert things == {CAR}
    result = varied(street(), [street((CAR, 40, 20, 12, 16))], things=things, space=space)
    assert result.done.startswith("paste Fu?g?nger from street to ")


def test_real_layouts_get_objects(camvid):
    """Most of them; and every pixel that changes becomes a thing."""
    space = load_label_space(camvid / "classes.json")
    paths = sorted((camvid / "labels" / "train").glob("*.png"))[::73]
    layouts = [Scene(p.stem, np.array(Image.open(p)), None) for p in paths]
    things = thing_classes(space)
    pasted = 0
    for number, layout in enumerate(layouts):
        donors = [other for other in layouts if other is not layout]
        result = vary(layout, donors, ["paste"], space, things=things, seed=number)
        changed = result.label[result.label != layout.label]
        assert set(np.unique(changed).tolist()) <= things
        pasted += bool(result.done)
    assert pasted >= 0.8 * len(layouts)
