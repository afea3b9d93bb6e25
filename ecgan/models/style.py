"""Style encoders, an image to the distribution of its style z, and the prior of a run's photos.

Shape legend:
    B  images in the batch      H, W  height and width      w  width of the network
    n  photos                   k     principal axes
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.models.generator import STYLE_DIM
from ecgan.models.layers import convolution, initialised, leaky

SIDE = 256  # pixels, of what the convolutions of App. C see
FACTORS = (1, 2, 4, 8, 8, 8)  # channels of each convolution, in units of w
STATISTICS_FACTORS = (1, 2, 4, 8)
THUMBNAIL = 4  # pixels, side of the image that the statistics include
MAX_AXES = 32  # of a style prior


class StyleEncoder(nn.Module):
    """Image to mean and log variance of z, each (B, 256), after GauGAN (App. C).

    Six 3x3 convolutions of stride 2, each before instance norm (which would take out a bias) and
    LeakyReLU; then two linear layers on the 4 x 4 that is left.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [3, *(factor * width for factor in FACTORS)]
        self.layers = nn.ModuleList(
            convolution(c_in, c_out, stride=2, bias=False, spectral=False)
            for c_in, c_out in itertools.pairwise(widths)
        )
        num_features = widths[-1] * (SIDE // 2 ** len(FACTORS)) ** 2
        self.to_mean = initialised(nn.Linear(num_features, STYLE_DIM), spectral=False)
        self.to_log_variance = initialised(nn.Linear(num_features, STYLE_DIM), spectral=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image in [-1, 1], (B, 3, H, W), of any size -> mu and log var, each (B, 256)."""
        x = F.interpolate(image, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        for layer in self.layers:
            x = leaky(F.instance_norm(layer(x)))
        x = x.flatten(1)
        return self.to_mean(x), self.to_log_variance(x)


class StatisticsEncoder(nn.Module):
    """Image to mean and log variance of z, each (B, 256), from statistics of its channels.

    The linear layers see the mean and the deviation of each channel of the image and of the four
    convolutions, and a thumbnail of 4 x 4. There is no instance norm: it takes out the light and
    the colours of an image, which are most of its style.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [3, *(factor * width for factor in STATISTICS_FACTORS)]
        self.layers = nn.ModuleList(
            convolution(c_in, c_out, stride=2, spectral=False)
            for c_in, c_out in itertools.pairwise(widths)
        )
        num_features = 2 * sum(widths) + 3 * THUMBNAIL**2
        self.to_mean = initialised(nn.Linear(num_features, STYLE_DIM), spectral=False)
        self.to_log_variance = initialised(nn.Linear(num_features, STYLE_DIM), spectral=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image in [-1, 1], (B, 3, H, W), of any size -> mu and log var, each (B, 256)."""
        x = image
        features = [F.adaptive_avg_pool2d(x, THUMBNAIL).flatten(1), *_mean_and_deviation(x)]
        for layer in self.layers:
            x = leaky(layer(x))
            features += _mean_and_deviation(x)
        statistics = torch.cat(features, dim=1)
        return self.to_mean(statistics), self.to_log_variance(statistics)


def _mean_and_deviation(x: Tensor) -> list[Tensor]:
    """(B, C, h, w) -> mean and standard deviation over the pixels, each (B, C)."""
    mean = x.mean(dim=(2, 3))
    variance = (x - mean[:, :, None, None]).square().mean(dim=(2, 3))
    return [mean, (variance + 1e-6).sqrt()]  # the root has no gradient at 0


def reparameterise(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """Style z = mu + sigma * noise, (B, 256), from noise that the caller drew."""
    return mu + (0.5 * log_var).exp() * noise


class StylePrior(nn.Module):
    """Gaussian fitted to the styles of a run's photos, from which styles of samples are drawn.

    Covariance: k principal axes with their deviations, and one deviation for all other directions.
    Sampling N(0, 1) instead covers little of what the encoder uses where the KL term is small
    (ex-post density estimation: Ghosh et al., "From Variational to Deterministic Autoencoders",
    ICLR 2020).

    Attributes:
        mean: mean style, (256,).
        axes: principal axes, orthonormal, (k, 256).
        deviations: standard deviation along each, (k,).
        residual: standard deviation along every other direction, ().
    """

    mean: Tensor
    axes: Tensor
    deviations: Tensor
    residual: Tensor

    def __init__(self, num_axes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(STYLE_DIM))
        self.register_buffer("axes", torch.eye(STYLE_DIM)[:num_axes].clone())
        self.register_buffer("deviations", torch.ones(num_axes))
        self.register_buffer("residual", torch.ones(()))

    @classmethod
    def fitted(cls, posteriors: Iterable[tuple[Tensor, Tensor]]) -> "StylePrior":
        """Fit the prior to photos.

        Args:
            posteriors: mean and log variance of the photos' styles in batches, each (b, 256), as a
                style encoder gives them; n photos in all, at least one.
        """
        means, log_variances = (
            torch.cat(parts).double() for parts in zip(*posteriors, strict=True)
        )
        return cls._of(*style_moments(means, log_variances), len(means))

    @classmethod
    def _of(cls, mean: Tensor, covariance: Tensor, num_photos: int) -> "StylePrior":
        values, vectors = torch.linalg.eigh(covariance)  # in ascending order
        prior = cls(min(MAX_AXES, num_photos // 4))
        num_axes = len(prior.axes)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        # The sign of an axis is arbitrary; a fixed one makes equal photos give equal styles
        largest = vectors.abs().argmax(dim=0)
        vectors = vectors * vectors[largest, torch.arange(STYLE_DIM)].sign()
        prior.mean.copy_(mean)
        prior.axes.copy_(vectors[:, :num_axes].T)
        prior.deviations.copy_(values[:num_axes].sqrt())
        prior.residual.copy_(values[num_axes:].mean().sqrt())
        return prior

    def forward(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Styles of noise.

        Args:
            noise: draws from N(0, 1), (..., 256).
            temperature: factor of the deviations along the principal axes: 0 gives the mean style,
                1 the photos' variety, more than 1 a wider one.

        Returns:
            Styles, (..., 256).
        """
        along = noise @ self.axes.T  # (..., k)
        rest = noise - along @ self.axes
        return (
            self.mean + (temperature * self.deviations * along) @ self.axes + self.residual * rest
        )


def style_moments(means: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, (256,), and covariance, (256, 256), of styles drawn from the posteriors of n photos.

    The covariance is that of the photos' means plus the mean of their variances.

    Args:
        means: (n, 256).
        log_variances: (n, 256).
    """
    mean = means.mean(dim=0)
    centred = means - mean
    covariance = centred.T @ centred / len(means) + log_variances.exp().mean(dim=0).diag()
    return mean, covariance
