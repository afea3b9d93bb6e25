"""Class lists of the paper's data sets, as their authors publish them. Data only.

Cityscapes: raw label ids with the official colours, and the 19 ids that are scored. ADE20K
(SceneParse150) and COCO-Stuff: names in the order of their ids.
"""

from typing import Final

Color = tuple[int, int, int]


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


# Raw id = position. The published list calls license plate -1 and never draws it.
# (name, colour, evaluation id or None where it is not scored)
CITYSCAPES: Final[tuple[tuple[str, Color, int | None], ...]] = (
    ("unlabeled", (0, 0, 0), None),
    ("ego vehicle", (0, 0, 0), None),
    ("rectification border", (0, 0, 0), None),
    ("out of roi", (0, 0, 0), None),
    ("static", (0, 0, 0), None),
    ("dynamic", (111, 74, 0), None),
    ("ground", (81, 0, 81), None),
    ("road", (128, 64, 128), 0),
    ("sidewalk", (244, 35, 232), 1),
    ("parking", (250, 170, 160), None),
    ("rail track", (230, 150, 140), None),
    ("building", (70, 70, 70), 2),
    ("wall", (102, 102, 156), 3),
    ("fence", (190, 153, 153), 4),
    ("guard rail", (180, 165, 180), None),
    ("bridge", (150, 100, 100), None),
    ("tunnel", (150, 120, 90), None),
    ("pole", (153, 153, 153), 5),
    ("polegroup", (153, 153, 153), None),
    ("traffic light", (250, 170, 30), 6),
    ("traffic sign", (220, 220, 0), 7),
    ("vegetation", (107, 142, 35), 8),
    ("terrain", (152, 251, 152), 9),
    ("sky", (70, 130, 180), 10),
    ("person", (220, 20, 60), 11),
    ("rider", (255, 0, 0), 12),
    ("car", (0, 0, 142), 13),
    ("truck", (0, 0, 70), 14),
    ("bus", (0, 60, 100), 15),
    ("caravan", (0, 0, 90), None),
    ("trailer", (0, 0, 110), None),
    ("train", (0, 80, 100), 16),
    ("motorcycle", (0, 0, 230), 17),
    ("bicycle", (119, 11, 32), 18),
    ("license plate", (0, 0, 142), None),
)

# Id = position; the label files hold id + 1, and 0 for everything else.
ADE20K: Final[tuple[str, ...]] = _names(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
    house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
    screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
    bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag"""
)

# Id = position; 255 is unlabelled. Eleven ids never occur.
COCO_STUFF: Final[tuple[str, ...]] = _names(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
    elephant, bear, zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie,
    suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
    skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote,
    keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush, hair brush, banner, blanket, branch, bridge,
    building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
    clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
    floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit,
    furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
    mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic,
    platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
    shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
    tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
    wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"""
)
