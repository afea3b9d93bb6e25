"""The equations as loops over Python numbers: slow, plain, and sharing no code with ecgan.

Tensors come as nested lists. Each function is the definition, written a second time. ``sample``
alone takes a network, whose own forward pass is the definition.
"""

import math

import torch

BOUND = 1e-6  # on a'' and 1 - a'' of Eq. 3


def one_hot(labels, num_classes, ignore, unknown, boundary=None):
    """S of one image, channels of rows; boundary: rows of numbers or None."""
    channels = [[[float(y == c) for y in row] for row in labels] for c in range(num_classes)]
    if unknown:
        channels.append([[float(y == ignore) for y in row] for row in labels])
    if boundary is not None:
        channels.append([[float(value != 0) for value in row] for row in boundary])
    return channels


def slope_of_edges(x, slope):
    """Gradient of an edge map's pixel to the value before tanh."""
    return 1 - math.tanh(x) ** 2 + slope


def onehot_conv(labels, num_classes, ignore, unknown, boundary, kernel, bias):
    """3 x 3 convolution of S of one image; kernel[out][in][3][3]."""
    return _conv(one_hot(labels, num_classes, ignore, unknown, boundary), kernel, bias)


def similarity_loss(probabilities, labels, ignore):
    """Eq. 3 of one image and its gradient; probabilities[n][m], labels[m], m over the pixels.

    The gradient passes straight through the bound.
    """
    pixels = [m for m in range(len(labels)) if labels[m] != ignore]
    channels = range(len(probabilities))
    gradient = [[0.0] * len(labels) for _ in channels]
    loss = 0.0
    for i in pixels:
        for j in pixels:
            a = sum(probabilities[n][i] * probabilities[n][j] for n in channels)
            if labels[i] == labels[j]:
                bounded = max(a, BOUND)
                slope = -1 / bounded
            else:
                bounded = max(1 - a, BOUND)
                slope = 1 / bounded
            loss -= math.log(bounded) / len(pixels) ** 2
            for n in channels:
                gradient[n][i] += slope * probabilities[n][j] / len(pixels) ** 2
                gradient[n][j] += slope * probabilities[n][i] / len(pixels) ** 2
    return loss, gradient


def pixel_contrastive_loss(
    embeddings, classes, temperature, anchors=None, bank=(), bank_classes=()
):
    """Eq. 5, averaged over the anchors that have a positive; anchors: positions, None for all."""
    everything = [*embeddings, *bank]
    all_classes = [*classes, *bank_classes]
    pixels = range(len(everything))

    def score(i, j):
        return sum(x * y for x, y in zip(everything[i], everything[j], strict=True)) / temperature

    anchor_losses = []
    for i in range(len(embeddings)) if anchors is None else anchors:
        positives = [j for j in pixels if j != i and all_classes[j] == all_classes[i]]
        negatives = [j for j in pixels if all_classes[j] != all_classes[i]]
        # -log(exp(p) / (exp(p) + sum exp(n))), with numerator and denominator divided by exp(p)
        terms = [
            math.log1p(sum(math.exp(score(i, n) - score(i, p)) for n in negatives))
            for p in positives
        ]
        if positives:
            anchor_losses.append(sum(terms) / len(terms))
    return sum(anchor_losses) / len(anchor_losses) if anchor_losses else 0.0


def class_specific_heads(features, labels, ignore, w1, b1, w2, b2):
    """I_g of one image by its definition, one branch a class: features[c][y][x], labels[y][x]."""
    height, width = len(labels), len(labels[0])
    image = [[[0.0] * width for _ in range(height)] for _ in b2[0]]
    for n in range(len(w1)):
        if n == ignore:
            continue
        mask = [[float(y == n) for y in row] for row in labels]
        hidden = _conv(_masked(features, mask), w1[n], b1[n])
        hidden = [[[x if x > 0 else 0.2 * x for x in row] for row in map_] for map_ in hidden]
        output = _conv(_masked(hidden, mask), w2[n], b2[n])
        output = [[[math.tanh(x) for x in row] for row in map_] for map_ in output]
        for total, branch in zip(image, _masked(output, mask), strict=True):
            for y in range(height):
                for x in range(width):
                    total[y][x] += branch[y][x]
    return image


def _masked(maps, mask):
    return [
        [[x * m for x, m in zip(*rows, strict=True)] for rows in zip(map_, mask, strict=True)]
        for map_ in maps
    ]


def _conv(maps, kernel, bias):
    """3 x 3 convolution with zero padding; kernel[out][in][3][3]."""
    height, width = len(maps[0]), len(maps[0][0])
    result = []
    for weights, start in zip(kernel, bias, strict=True):
        rows = [[start] * width for _ in range(height)]
        for map_, taps in zip(maps, weights, strict=True):
            for y in range(height):
                for x in range(width):
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if 0 <= y + dy < height and 0 <= x + dx < width:
                                rows[y][x] += map_[y + dy][x + dx] * taps[dy + 1][dx + 1]
        result.append(rows)
    return result


def class_specific_l1(generated, real, labels, ignore, mean):
    """Eq. 6 over a batch flattened to pixels: generated[m] and real[m] are RGB."""
    of_class = {}
    for fake, true, label in zip(generated, real, labels, strict=True):
        if label != ignore:
            distance = sum(abs(x - y) for x, y in zip(fake, true, strict=True)) / len(fake)
            of_class.setdefault(label, []).append(distance)
    if not of_class:
        return 0.0
    if mean == "class":
        return sum(sum(d) / len(d) for d in of_class.values()) / len(of_class)
    everything = [d for distances in of_class.values() for d in distances]
    return sum(everything) / len(everything)


def adversarial(side, kind, scales):
    """Mean over patches, then over scales; side: real, fake (D's two losses) or generator."""
    sigmoid = [[1 / (1 + math.exp(-x)) for x in patches] for patches in scales]
    patch_losses = {
        ("real", "hinge"): [[max(0.0, 1 - x) for x in patches] for patches in scales],
        ("fake", "hinge"): [[max(0.0, 1 + x) for x in patches] for patches in scales],
        ("generator", "hinge"): [[-x for x in patches] for patches in scales],
        ("real", "log"): [[-math.log(p) for p in patches] for patches in sigmoid],
        ("fake", "log"): [[-math.log(1 - p) for p in patches] for patches in sigmoid],
        ("generator", "log"): [[math.log(1 - p) for p in patches] for patches in sigmoid],
    }[side, kind]
    return sum(sum(patches) / len(patches) for patches in patch_losses) / len(patch_losses)


def mean_l1(real, fake):
    """Mean absolute difference of two flat lists."""
    return sum(abs(x - y) for x, y in zip(real, fake, strict=True)) / len(real)


def feature_matching(real_scales, fake_scales):
    """Mean per map (a flat list), sum over the maps of a scale, mean over scales."""
    scales = [
        sum(mean_l1(real, fake) for real, fake in zip(reals, fakes, strict=True))
        for reals, fakes in zip(real_scales, fake_scales, strict=True)
    ]
    return sum(scales) / len(scales)


def perceptual(real_maps, fake_maps, weights):
    """Weighted sum of the mean differences of maps, flat lists."""
    return sum(
        weight * mean_l1(real, fake)
        for weight, real, fake in zip(weights, real_maps, fake_maps, strict=True)
    )


def kl_divergence(mu, log_var):
    """Of diagonal normals from the standard one; sum over the style, mean over the batch."""
    total = 0.0
    for means, log_variances in zip(mu, log_var, strict=True):
        for m, v in zip(means, log_variances, strict=True):
            total += 0.5 * (m * m + math.exp(v) - 1 - v)
    return total / len(mu)


def style_spread(layouts, photos, num_classes, least):
    """Variance over styles by variance over photos, summed over classes, and that of each class.

    layouts: for each, its styles; a style, as a photo, is (pixels, labels): pixels[m] a list of
    channels, labels[m] a class. ``least`` pixels make a mean.
    """

    def means(images, k):
        found = []
        for pixels, labels in images:
            own = [p for p, label in zip(pixels, labels, strict=True) if label == k]
            if len(own) >= least:
                found.append([sum(channel) / len(own) for channel in zip(*own, strict=True)])
        return found

    def variance(points):
        centre = [sum(x) / len(points) for x in zip(*points, strict=True)]
        far = [sum((a - b) ** 2 for a, b in zip(p, centre, strict=True)) for p in points]
        return sum(far) / (len(points) - 1)

    part = whole = 0.0
    ratios = [None] * num_classes
    for k in range(num_classes):
        of_photos = means(photos, k)
        of_styles = [p for p in (means(styles, k) for styles in layouts) if len(p) > 1]
        if of_styles and len(of_photos) > 1:
            v = sum(variance(points) for points in of_styles) / len(of_styles)
            ratios[k] = v / variance(of_photos)
            part += v
            whole += variance(of_photos)
    return part / whole, ratios


def top_octave_share(pixels):
    """Share of the power above 1/4 cycle a pixel by a Fourier sum; pixels[y][x] is RGB."""
    height, width = len(pixels), len(pixels[0])
    places = [(y, x) for y in range(height) for x in range(width)]
    luma = {
        (y, x): sum(c * p for c, p in zip((0.299, 0.587, 0.114), pixels[y][x], strict=True))
        for y, x in places
    }
    window = {
        (y, x): math.sin(math.pi * y / height) ** 2 * math.sin(math.pi * x / width) ** 2
        for y, x in places
    }
    mean = sum(window[p] * luma[p] for p in places) / sum(window.values())
    top = whole = 0.0
    for v, u in places:
        turns = {(y, x): v * y / height + u * x / width for y, x in places}
        real = sum(window[p] * (luma[p] - mean) * math.cos(2 * math.pi * turns[p]) for p in places)
        imaginary = sum(
            window[p] * (luma[p] - mean) * math.sin(2 * math.pi * turns[p]) for p in places
        )
        power = real**2 + imaginary**2
        fy, fx = min(v, height - v) / height, min(u, width - u) / width
        whole += power
        if math.hypot(fy, fx) > 0.25 + 1e-12:
            top += power
    return top / whole


@torch.no_grad()
def sample(generator, S, labels, ignore, z):
    """Images and edges, (L, K, 3, H, W), of K styles of each layout; one style after the other."""
    styles = [None] if z is None else z.unbind(dim=1)
    made = [generator(S, labels, ignore, style) for style in styles]
    edges = [one.edge for one in made]
    images = torch.stack([one.image for one in made], dim=1)
    return images, None if edges[0] is None else torch.stack(edges, dim=1)


def class_balance(labels, num_classes, ignore, limits):
    """M / (K n_k) of every class k, within limits; labels is a flat list."""
    counts = [sum(label == k for label in labels) for k in range(num_classes)]
    present, total = sum(count > 0 for count in counts), sum(counts)
    raw = [total / (present * count) if count else math.inf for count in counts]
    return [min(max(value, limits[0]), limits[1]) for value in raw]


def segmentation_real(logits, labels, weights, ignore, smoothing):
    """Weighted cross-entropy with smoothed targets; logits[m] are those of pixel m."""
    losses = []
    for scores, label in zip(logits, labels, strict=True):
        if label == ignore:
            continue
        logarithms = [x - math.log(sum(math.exp(y) for y in scores)) for x in scores]
        target = [smoothing / (len(scores) - 1)] * len(scores)
        target[label] = 1 - smoothing
        entropy = -sum(t * x for t, x in zip(target, logarithms, strict=True))
        losses.append(weights[label] * entropy)
    return sum(losses) / max(1, len(losses))


def segmentation_made(logits, shown):
    """Cross-entropy with the last class over the pixels that are shown."""
    losses = [
        -math.log(math.exp(scores[-1]) / sum(math.exp(x) for x in scores))
        for scores, is_shown in zip(logits, shown, strict=True)
        if is_shown
    ]
    return sum(losses) / max(1, len(losses))


def label_mix(mixed, real, fake, mask):
    """Mean squared difference over pixels and logits; each is a list of pixels of logits."""
    differences = [
        (m - (r if taken else f)) ** 2
        for mixed_at, real_at, fake_at, taken in zip(mixed, real, fake, mask, strict=True)
        for m, r, f in zip(mixed_at, real_at, fake_at, strict=True)
    ]
    return sum(differences) / len(differences)


def style_of(noise, mean, axes, deviations, residual, temperature):
    """A style of the photos' prior; all are lists of numbers, axes a list of unit vectors."""
    along = [sum(a * e for a, e in zip(axis, noise, strict=True)) for axis in axes]
    style = []
    for i, e in enumerate(noise):
        rest = e - sum(x * axis[i] for x, axis in zip(along, axes, strict=True))
        wide = sum(
            temperature * s * x * axis[i]
            for s, x, axis in zip(deviations, along, axes, strict=True)
        )
        style.append(mean[i] + wide + residual * rest)
    return style


def nearest(images, photos):
    distances, indices = [], []
    for image in images.tolist():
        found = [
            1 - sum(a * b for a, b in zip(image, photo, strict=True)) for photo in photos.tolist()
        ]
        indices.append(min(range(len(found)), key=found.__getitem__))
        distances.append(max(found[indices[-1]], 0.0))
    return distances, indices
