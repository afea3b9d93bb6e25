"""Mapping of a segmenter's classes to those of a recipe, by name or by number."""

import re
from collections.abc import Mapping, Sequence

from ecgan.errors import UserError
from ecgan.labels import spellings

UNMAPPED = -1  # a class of the network that the recipe does not have

# Names that data sets give to one class; the first word of each row is arbitrary.
_SYNONYMS = (
    ("pavement", "sidewalk"),
    ("tree", "vegetation", "trees"),
    ("person", "pedestrian", "people"),
    ("rider", "bicyclist", "cyclist"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike", "minibike"),
    ("sign", "traffic sign", "signsymbol", "signboard", "street sign"),
    ("pole", "column pole"),
    ("car", "auto", "automobile"),
    ("airplane", "plane", "aeroplane"),
    ("sofa", "couch"),
    ("terrain", "grass"),
    ("building", "edifice"),
    ("television", "tv", "tv monitor", "television receiver"),
)


def map_by_name(own_names: Sequence[str], names: Sequence[str], source: str) -> list[int]:
    """Class of the recipe with the same name, for each class of a network; -1 where there is none.

    Case, punctuation and separators ("traffic-light", "traffic_light") are ignored; of several
    names with commas between ("building, edifice") each counts; common synonyms count where the
    very name is missing.

    Raises:
        UserError: no class has a partner.
    """
    if len(own_names) == len(names) and all(re.fullmatch(r"LABEL_\d+", own) for own in own_names):
        return list(range(len(names)))  # transformers' names for classes that have none
    exact = {
        word: index for index, name in reversed([*enumerate(names)]) for word in spellings(name)
    }
    synonyms = {
        word: exact[present]
        for row in _SYNONYMS
        for present in reversed(row)
        if present in exact
        for word in row
    }
    meanings = synonyms | exact
    targets = [
        next((meanings[word] for word in spellings(own) if word in meanings), UNMAPPED)
        for own in own_names
    ]
    if all(target == UNMAPPED for target in targets):
        raise UserError(
            f"{source}: no class of its {len(own_names)} ({_some(own_names)}) has the name of "
            f"one of the recipe's {len(names)} ({_some(names)}); map a label generator by number "
            "with model.label_generator_map: {its class: class of the recipe}; for a judge, rename "
            "the classes in its config.json (id2label)"
        )
    return targets


def map_by_number(
    class_map: Mapping[int, int], num_own: int, num_classes: int, source: str
) -> list[int]:
    """Class of the recipe for each class of a network, as the user numbered them.

    Raises:
        UserError: classes that do not exist, or none at all; all faults at once.
    """
    faults = [
        f"class {own}: the network has 0-{num_own - 1}"
        for own in class_map
        if not 0 <= own < num_own
    ]
    faults += [
        f"class {own} -> {target}: the recipe has 0-{num_classes - 1}"
        for own, target in class_map.items()
        if not 0 <= target < num_classes
    ]
    if not class_map:
        faults.append("it is empty")
    if faults:
        raise UserError(f"class map of {source}", faults)
    return [class_map.get(own, UNMAPPED) for own in range(num_own)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
