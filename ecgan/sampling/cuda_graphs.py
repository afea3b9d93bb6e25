"""A network's pass on CUDA with fixed shapes: compiled, recorded as graphs, replayed.

A replay launches all kernels of a pass at once, which one by one take longer to launch than to run
where layers are small. What torch's compiler made is kept in its own cache
(``TORCHINDUCTOR_CACHE_DIR``), and the next run finds it there.

Shape legend:
    L, K  layouts, and styles of each      H, W  height and width
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ecgan.models.inference import LayoutFeatures

WARM_UPS = 3  # runs before a recording: to compile, and for libraries to take what memory they need

Share = Callable[[Tensor, Tensor | None], LayoutFeatures]
Draw = Callable[[LayoutFeatures, Tensor | None], tuple[Tensor, Tensor | None]]


class RecordedPass:
    """The two parts of a pass on CUDA, as graphs: of the layouts, and of their styles.

    Args:
        share: labels, (L, H, W), and boundaries, (L, 1, H, W), to what the styles share.
        draw: that and styles, (L, K, 256), to bytes of images and edges.
        labels: of the shape that is recorded, as are the others.
        boundary: None where the generator takes none.
        z: None where the generator takes none.
        pool: of memory, ``torch.cuda.graph_pool_handle()``; that of other passes if they are
            replayed one after the other, each from its layouts on.
    """

    def __init__(
        self,
        share: Share,
        draw: Draw,
        labels: Tensor,
        boundary: Tensor | None,
        z: Tensor | None,
        pool: Any,  # noqa: ANN401  a name that torch versions write differently
    ) -> None:
        self._labels = labels.clone()
        self._boundary = None if boundary is None else boundary.clone()
        self._z = None if z is None else z.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                draw(share(self._labels, self._boundary), self._z)
        torch.cuda.current_stream().wait_stream(aside)
        self._share_graph, self._draw_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._share_graph, pool=pool):
            self._shared = share(self._labels, self._boundary)
        with torch.cuda.graph(self._draw_graph, pool=pool):
            self._drawn = draw(self._shared, self._z)

    def share(self, labels: Tensor, boundary: Tensor | None) -> LayoutFeatures:
        """What the styles of layouts share; until the next call."""
        self._labels.copy_(labels)
        if self._boundary is not None and boundary is not None:
            self._boundary.copy_(boundary)
        self._share_graph.replay()
        return self._shared

    def draw(self, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Bytes of images and edges of the layouts that ``share`` was given last."""
        if self._z is not None and z is not None:
            self._z.copy_(z)
        self._draw_graph.replay()
        images, edges = self._drawn
        return images.clone(), None if edges is None else edges.clone()
