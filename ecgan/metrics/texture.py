"""Fine texture: share of a picture's variance in the highest octave of spatial frequency."""

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_FLAT = 1e-10  # variance of luminance in [-1, 1] below which a picture has one colour


def top_octave_share(images: Tensor) -> Tensor:
    """Share of the luminance's variance above a quarter of a cycle a pixel, half of Nyquist.

    A Hann window keeps the borders, which do not continue each other, out of the spectrum; the mean
    under the window is taken off first. The frequency is the radial one, so the corners beyond
    Nyquist, where a checkerboard is, belong to the top octave. White noise has 1 - pi / 16 = 0.80.

    Args:
        images: in [-1, 1], (B, 3, H, W).

    Returns:
        Float64, (B,); 0 for a picture of one colour.
    """
    pixels = images.double()
    luma = (pixels * pixels.new_tensor(_LUMA).view(3, 1, 1)).sum(dim=1)  # (B, H, W)
    height, width = luma.shape[1:]
    rows, columns = (
        torch.hann_window(n, dtype=luma.dtype, device=luma.device) for n in (height, width)
    )
    window = rows[:, None] * columns
    mean = (window * luma).sum(dim=(1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2(window * (luma - mean)).abs().square()
    y, x = (((torch.arange(n) + n // 2) % n - n // 2).to(luma.device) for n in (height, width))
    # In whole numbers, (y / height)^2 + (x / width)^2 > 1 / 16: rounding decides nothing
    is_top = 16 * ((y[:, None] * width) ** 2 + (x * height) ** 2) > (height * width) ** 2
    total = power.sum(dim=(1, 2))
    flat = total < _FLAT * height * width * window.square().sum()
    return torch.where(flat, 0, (power * is_top).sum(dim=(1, 2)) / total)
