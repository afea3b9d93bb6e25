"""The style encoder (App. C, after GauGAN): an image to the distribution of its style z.

Shape legend:
    B  images in the batch      H, W  height and width      w  width of the network
"""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.models.generator import STYLE_DIM
from ecgan.models.layers import convolution, initialised, leaky

SIDE = 256  # pixels, of what the convolutions see
FACTORS = (1, 2, 4, 8, 8, 8)  # channels of each convolution, in units of w


class StyleEncoder(nn.Module):
    """Image to mean and log variance of z, each (B, 256).

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


def reparameterise(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """Style z = mu + sigma * noise, (B, 256), from noise that the caller drew."""
    return mu + (0.5 * log_var).exp() * noise
