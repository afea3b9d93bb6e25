"""Real edges: Canny with thresholds relative to the image's own strongest gradient.

OpenCV's Canny blurs nothing by itself, and its thresholds are absolute: the same numbers give a
dark scene no edges and a sunny one every leaf. Here the image is smoothed first, and both
thresholds are shares of the largest gradient of the smoothed image, so that brightness and contrast
of the photo matter little.
"""

import cv2
import numpy as np
import numpy.typing as npt

SIGMA = 1.4  # pixels
LOW, HIGH = 0.075, 0.175  # shares of the largest gradient magnitude


def canny_edges(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Edges of an RGB image, (H, W, 3) -> (H, W): 255 on an edge, 0 elsewhere.

    Grey, Gaussian of 1.4 pixels, 3x3 Sobel with replicated borders, Euclidean magnitude,
    non-maximum suppression, hysteresis between 0.075 and 0.175 of the largest magnitude. All steps
    before the thresholds run in integers, so every machine finds the same edges. A flat image has
    none.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(grey, (0, 0), SIGMA)
    dx = cv2.Sobel(smooth, cv2.CV_16S, 1, 0, borderType=cv2.BORDER_REPLICATE)
    dy = cv2.Sobel(smooth, cv2.CV_16S, 0, 1, borderType=cv2.BORDER_REPLICATE)
    strongest = float(np.sqrt((dx.astype(np.int32) ** 2 + dy.astype(np.int32) ** 2).max()))
    if strongest == 0:
        return np.zeros(grey.shape, np.uint8)
    return np.asarray(
        cv2.Canny(dx, dy, LOW * strongest, HIGH * strongest, L2gradient=True), np.uint8
    )
