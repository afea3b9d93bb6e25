"""Cars and people of a toy street."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from ecgan.demo.street import (
    CAR,
    CLOTHES,
    PAINTS,
    PERSON,
    SKINS,
    Color,
    Objects,
    Point,
    Street,
    pick,
    upright,
)


def traffic(street: Street) -> Objects:
    """Cars and people, in no order of distance."""
    return [*_cars(street), *_people(street)]


def _cars(street: Street) -> Objects:
    rng = street.rng
    cars: Objects = []

    def add(x: float, z: float, *, oncoming: bool, moving: bool) -> None:
        paint, tall = pick(rng, PAINTS, 12), rng.uniform(0.92, 1.2)
        car = _Car(street, x, z, paint, tall, oncoming, moving)
        cars.append((z, car.draw))

    for side, x in enumerate((street.left + 1.15, street.right - 1.15)):
        if street.parking[side]:
            z = rng.uniform(4.5, 12)
            while z < 70:
                if rng.random() < 0.7:
                    add(x + rng.normal(0, 0.06), z, oncoming=side == 0, moving=False)
                z += rng.uniform(5.3, 7)
    z = rng.uniform(8, 40)
    while z < 90:
        add(-3.5 + rng.normal(0, 0.15), z, oncoming=True, moving=True)
        z += rng.uniform(9, 45)
    z = rng.uniform(9, 50)
    while z < 90:
        add(rng.normal(0.1, 0.15), z, oncoming=False, moving=True)
        z += rng.uniform(10, 50)
    return cars


@dataclass(frozen=True)
class _Car:
    """A car by its near end: middle, distance, paint; seen from ahead when oncoming."""

    street: Street
    x: float
    z: float
    paint: Color
    tall: float
    oncoming: bool
    moving: bool

    def draw(self) -> None:
        street = self.street
        street.shadow(self.x, self.z + 2.1, 1.15, 2.5)
        visible = -1 if self.x > 0 else 1  # the side that faces the middle of the street
        if abs(self.x) > 0.9:
            self._draw_side(visible)
        self._draw_end()

    def _at(self, across: float, y: float, along: float) -> Point:
        return self.x + across, y * self.tall, self.z + along

    def _face(self, points: Sequence[tuple[float, float, float]], shade: float) -> None:
        """A face of the body: (across, up, along) of its corners."""
        self.street.surface([self._at(*p) for p in points], self.paint, CAR, shade)

    def _glass(self, points: Sequence[tuple[float, float, float]], shade: float = 1.0) -> None:
        self.street.surface([self._at(*p) for p in points], (62, 76, 90), CAR, shade)

    def _draw_side(self, side: int) -> None:
        """Body, windows, wheels of the side that the camera sees."""
        a, b = side * 0.88, side * 0.66
        self._face([(a, 0.25, 0), (a, 0.25, 4.2), (a, 0.8, 4.2), (a, 0.92, 0)], 0.82)
        start, end = (1.1, 4.0) if self.oncoming else (0.1, 3.1)
        roof = start + 0.7, end - 0.7
        self._face([(a, 0.78, start), (a, 0.78, end), (b, 1.45, roof[1]), (b, 1.45, roof[0])], 0.86)
        middle = (start + end) / 2
        for low, high in (((start + 0.3), middle - 0.06), (middle + 0.06, end - 0.3)):
            top = [(b, 1.36, min(high, roof[1])), (b, 1.36, max(low, roof[0]))]
            self._glass([(a, 0.92, low), (a, 0.92, high), *top])
        for along in (0.75, 3.4):
            self._draw_wheel(a, along)

    def _draw_wheel(self, across: float, along: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        for radius, albedo in ((0.33, (30, 30, 32)), (0.17, (150, 152, 156))):
            rim = [
                (self.x + across, 0.33 + radius * np.sin(t), self.z + along + radius * np.cos(t))
                for t in angle
            ]
            self.street.surface(rim, albedo, CAR)

    def _draw_end(self) -> None:
        """The end that the camera sees: tyres, body, bonnet or boot, window, lamps, plate."""
        street, z = self.street, self.z
        for across in (-0.72, 0.72):
            tyre = upright(self.x + across, 0.17, z + 0.05, (0.12, 0.17))
            street.surface(tyre, (26, 26, 28), CAR)
        deck, roof = (1.0, 1.75) if self.oncoming else (0.12, 0.75)
        self._face(
            [(-0.86, 0.9, deck), (0.86, 0.9, deck), (0.66, 1.46, roof), (-0.66, 1.46, roof)], 1
        )
        self._glass(
            [(-0.76, 0.94, deck), (0.76, 0.94, deck), (0.6, 1.38, roof), (-0.6, 1.38, roof)]
        )
        self._face(
            [(-0.66, 1.46, roof), (0.66, 1.46, roof), (0.64, 1.48, 2.6), (-0.64, 1.48, 2.6)], 1.1
        )
        if self.oncoming:
            self._face([(-0.88, 0.78, 0), (0.88, 0.78, 0), (0.86, 0.93, 1), (-0.86, 0.93, 1)], 1.12)
        high = 0.78 if self.oncoming else 0.93
        self._face([(-0.9, 0.22, 0), (0.9, 0.22, 0), (0.88, high, 0), (-0.88, high, 0)], 0.94)
        self.street.surface(upright(self.x, 0.3 * self.tall, z, (0.86, 0.1)), (46, 46, 50), CAR)
        plate = upright(self.x, 0.46 * self.tall, z, (0.26, 0.07))
        street.surface(plate, (236, 232, 210))
        self._draw_lamps()

    def _draw_lamps(self) -> None:
        street = self.street
        lamps_on = street.weather.lamps and self.moving
        if self.oncoming:
            color = (255, 250, 226) if lamps_on else street.lit((226, 230, 232), self.z)
        else:
            color = (255, 40, 34) if lamps_on else street.lit((176, 24, 28), self.z)
        for across in (-0.68, 0.68):
            lamp = self._at(across, 0.64, 0)
            street.disc(lamp, (0.19, 0.1), color, CAR)
            if lamps_on:
                street.shine(lamp, 0.3 if self.oncoming else 0.2, color)


def _people(street: Street) -> Objects:
    rng = street.rng
    people: Objects = []
    for _ in range(rng.poisson(1.8)):
        z = float(rng.uniform(5, 26))
        if rng.random() < 0.1:
            x = float(rng.uniform(street.left, street.right))
            z = max(z, 11.0)
        else:
            edge, outward = ((street.left, -1), (street.right, 1))[rng.integers(2)]
            x = edge + outward * float(rng.uniform(0.5, street.pavement - 0.2))
        people.append((z, partial(_draw_person, street, x, z, int(rng.integers(2**32)))))
    return people


def _draw_person(street: Street, x: float, z: float, seed: int) -> None:
    """Legs in step, coat, arms, head, hair, sometimes a bag."""
    rng = np.random.default_rng(seed)
    size, stride = rng.uniform(0.82, 1.06), rng.uniform(0.05, 0.24)
    coat, trousers = pick(rng, CLOTHES), pick(rng, ((44, 50, 76), (60, 58, 60), (120, 104, 84)))
    skin, hair = pick(rng, SKINS, 5), pick(rng, ((40, 30, 26), (110, 74, 40), (190, 160, 100)))
    street.shadow(x, z, 0.42, 0.4)

    def fill(corners: Sequence[tuple[float, float]], albedo: Color, shade: float = 1.0) -> None:
        points = [(x + a * size, b * size, z) for a, b in corners]
        street.surface(cast("list[Point]", points), albedo, PERSON, shade)

    for sign in (-1, 1):
        foot = sign * stride
        fill([(foot - 0.09, 0), (foot + 0.1, 0), (0.13, 0.85), (-0.13, 0.85)], trousers)
    for sign in (-1, 1):
        hand = sign * (0.3 + stride / 3)
        fill(
            [(hand - 0.05, 0.8), (hand + 0.06, 0.8), (sign * 0.2 + 0.06, 1.4), (sign * 0.2, 1.42)],
            coat,
            0.82,
        )
    fill([(-0.2, 0.78), (0.2, 0.78), (0.24, 1.38), (0.1, 1.46), (-0.1, 1.46), (-0.24, 1.38)], coat)
    if rng.random() < 0.35:
        fill([(0.2, 0.7), (0.42, 0.7), (0.4, 1.0), (0.22, 1.0)], pick(rng, PAINTS))
    head = (x, 1.6 * size, z)
    street.disc((x, 1.64 * size, z), (0.125 * size, 0.15 * size), street.lit(hair, z), PERSON)
    street.disc(head, (0.1 * size, 0.125 * size), street.lit(skin, z), PERSON)
