"""Streets drawn as label maps: a horizon, and boxes of classes that stand on the ground."""

import re

import numpy as np

from ecgan.generation.layout_augmentation import Scene, thing_classes, vary
from ecgan.labels import from_json

NAMES = ("sky", "building", "road", "pavement", "pole", "car", "person", "bicycle", "bus")
SKY, BUILDING, ROAD, PAVEMENT, POLE, CAR, PERSON, BICYCLE, BUS = range(len(NAMES))
UNLABELLED = 255
SPACE = from_json(list(NAMES), "test")
THINGS = thing_classes(SPACE)
HORIZON = 20  # first row of the ground
SIZE = (64, 96)


def street(*boxes, ground=ROAD, key="street", size=SIZE, instances=False, dtype=np.uint8):
    """Sky over ground, and boxes (class, bottom row, left, height, width) in this order on it."""
    label = np.full(size, ground, dtype)
    label[:HORIZON] = SKY
    ids = np.zeros(size, np.int32)
    for number, (kind, bottom, left, height, width) in enumerate(boxes, start=1000):
        box = np.s_[bottom - height + 1 : bottom + 1, left : left + width]
        label[box], ids[box] = kind, number
    return Scene(key, label, ids if instances else None)


def varied(scene, donors=(), changes=("paste",), seed=0, things=THINGS, space=SPACE):
    return vary(scene, donors, changes, space, things=things, seed=seed)


def boxes_of(label, kind):
    """Top, bottom, left and right of all pixels of a class."""
    rows, columns = np.nonzero(label == kind)
    return rows.min(), rows.max(), columns.min(), columns.max()


def pastes(done):
    """(name, key, top, left, scale) of each object that a sentence tells of."""
    found = re.findall(r"paste (\S+) from (\S+) to (\d+),(\d+) x([\d.]+)", done)
    return [(name, key, int(top), int(left), float(scale)) for name, key, top, left, scale in found]
