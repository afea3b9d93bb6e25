"""Metrics of a set's images from their measurements: styles, texture, diversity, edge maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ecgan.evaluation.feature_networks import METRICS
from ecgan.evaluation.measure import COLOUR, DEEP, Measurements
from ecgan.evaluation.report.document import Metric
from ecgan.metrics import statistics
from ecgan.metrics.segmentation import AGREEMENTS, edge_scores
from ecgan.metrics.styles import scatter, style_spread

_SPREADS = {COLOUR: "style_spread", DEEP: "style_spread_deep"}
_FAMILIES = {
    "efficientnet_lite0": "EfficientNet",
    "efficientnet_lite1": "EfficientNet",
    "vgg16_hed": "VGG",
    "vgg19": "VGG",
}


class StyleMetrics(NamedTuple):
    """Spread of the styles of a set; empty where no layout has several."""

    metrics: dict[str, Metric]
    skipped: dict[str, str]
    protocol: dict[str, str]
    per_class: npt.NDArray[np.float64] | None  # (E,), of colours; None without styles


def style_metrics(
    own: Measurements, reference: Measurements, photos: Mapping[str, Measurements]
) -> StyleMetrics:
    """Spread of the styles, in colour and in features of VGG16.

    Args:
        own: the samples.
        reference: photos of the tested split, whose own spread stands beside the samples'.
        photos: those of all splits, by split.
    """
    found = StyleMetrics({}, {}, {}, None)
    for name, styles in own.styles.items():
        of_photos = scatter(np.sum([one.photo_sums[name] for one in photos.values()], axis=0))
        try:
            overall, per_class = style_spread(styles, own.style_layouts, of_photos)
        except ValueError as error:
            found.skipped[_SPREADS[name]] = str(error)
            continue
        n = int((styles[:, 1].max(axis=1) + 1).sum())
        real = _spread_of_photos(scatter(reference.photo_sums[name]), of_photos)
        value, low, high = overall
        found.metrics[_SPREADS[name]] = Metric.of(value, real, n, low, high)
        if name == COLOUR:
            found = found._replace(per_class=per_class)
    if own.styles:
        counts = ", ".join(f"{len(one.octaves)} of {split}" for split, one in photos.items())
        found.protocol["photos_of_style_spread"] = counts
    if own.styles and DEEP not in own.styles:
        found.skipped[_SPREADS[DEEP]] = "needs vgg16_hed in evaluate.features, and data.hed_weights"
    return found


def _spread_of_photos(reference: npt.NDArray[np.float64], photos: npt.NDArray[np.float64]) -> float:
    try:
        return style_spread(reference[None], ["photos"], photos).overall.value
    except ValueError:  # a single photo
        return math.nan


def texture_metric(
    own: Measurements, photos: npt.NDArray[np.float64], train: Measurements | None
) -> dict[str, Metric]:
    """Mean share of the top octave, by that of photos; empty where these have no texture.

    Args:
        own: the samples.
        photos: shares of the photos.
        train: train photos, for the real value; None: not measured.
    """
    if not photos.mean() > 0:
        return {}
    found = statistics.bootstrapped_mean(own.octaves, own.confusion.layouts)
    real = math.nan if train is None else float(np.mean(train.octaves))
    value, low, high = (v / photos.mean() for v in found)
    return {"top_octave": Metric.of(value, real / photos.mean(), len(own.octaves), low, high)}


def pair_metrics(own: Measurements, real: Measurements) -> dict[str, Metric]:
    """Diversity of the styles of a layout, and agreement of edge maps with their images."""
    metrics: dict[str, Metric] = {}
    if own.distances:
        value, low, high = statistics.bootstrapped_mean(own.distances, own.pair_layouts)
        between = float(np.mean(real.distances)) if real.distances else math.nan
        metrics["diversity_efficientnet_lite0"] = Metric.of(
            value,
            between,
            len(own.distances),
            low,
            high,
            protocol="real: photos of different layouts, so not what styles can reach",
        )
    if own.edges:
        for name, (value, low, high) in edge_scores(own.edges, own.edge_layouts).items():
            if math.isfinite(value):
                metrics[name] = Metric.of(value, math.nan, len(own.edges), low, high)
    return metrics


def edge_warnings(own: Measurements) -> list[str]:
    """That all edge maps are black, if they are: such an edge generator has stopped learning."""
    if not own.edges or any(counts.num_edge for counts in own.edges):
        return []
    return [
        f"none of its {len(own.edges)} edge maps has an edge: they are of no use, and of none to "
        "the images; train with --set losses.edge_slope=0.05"
    ]


# Networks that the generator was trained against


def trained_against(recipe: Mapping[str, Any]) -> list[str]:
    """Networks whose features a generator's training looked at.

    Args:
        recipe: recipe of a manifest.
    """
    losses, model = (
        part if isinstance(part, dict) else {} for part in map(recipe.get, ("losses", "model"))
    )
    found: list[str] = []
    if losses.get("perceptual") and losses.get("perceptual_network") in _FAMILIES:
        found.append(losses["perceptual_network"])
    if model.get("segmentation_discriminator") == "features" and "efficientnet_lite0" not in found:
        found.append("efficientnet_lite0")
    return found


def marked(
    metrics: Mapping[str, Metric], networks: Sequence[str], judge: str | None
) -> tuple[dict[str, Metric], list[str]]:
    """Metrics, each with the network of its own family that the generator was trained against.

    A distance on features that training brought closer says less than one on other features.

    Args:
        metrics: metrics by name.
        networks: of :func:`trained_against`.
        judge: network that the judge started from; None: another than those here.

    Returns:
        The metrics, and a note for each network that some are marked with.
    """
    by_family = {_FAMILIES[network]: network for network in networks}
    used = {name: network for network, names in METRICS.items() for name in names}
    if judge is not None:
        used |= dict.fromkeys(AGREEMENTS, judge)
    found = {name: by_family.get(_FAMILIES.get(used.get(name, ""), "")) for name in metrics}
    notes = [
        f"the generator was trained against features of {network}, which flatters the figures "
        "marked †: they are of the same family; compare those that are not"
        for network in networks
        if network in found.values()
    ]
    return {
        name: metric.model_copy(update={"trained_against": found[name]})
        for name, metric in metrics.items()
    }, notes
