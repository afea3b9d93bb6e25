"""The coarse image I' of samples, for reports: data sets do not hold it, so it is made again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ecgan.errors import UserError, first_line
from ecgan.generation import planner
from ecgan.generation.plan import Plan
from ecgan.generation.state import Ledger
from ecgan.generation.worker import ShardMaker
from ecgan.runtime.storage import open_store
from ecgan.shards.codecs import Pixels


class CoarseImages:
    """I' of the samples of one of our data sets, while its generator and its layouts are there.

    Args:
        place: folder or address of the set.
        device: auto, cpu, cuda or cuda:N.

    Attributes:
        reason: why there are none, for the report; empty where there are.
    """

    def __init__(self, place: str, device: str) -> None:
        self.reason = ""
        try:
            self._open(place, device)
        except (UserError, OSError, KeyError, TypeError, ValueError) as error:
            self.reason = first_line(error)

    def _open(self, place: str, device: str) -> None:
        ledger = Ledger(open_store(place))
        kept = {**ledger.request(), "out": place, "device": device}
        request = replace(planner.Request.from_json(kept), quiet=True, save_styles=None)
        if request.label_filter is not None or request.spread == "hardness":
            # Their segmenters would have to be there, or be trained once more.
            raise UserError("the set was filtered or balanced by segmenters")
        prepared = planner.prepare(request)
        if not prepared.file.recipe.model.semantic_preserving:
            raise UserError("without Gs and Gf the image is the coarse one itself")
        self._plan: Plan = ledger.resolve(prepared.wanted, extend=False)[0]
        self._maker = ShardMaker(prepared.settings)

    def of(self, record: Mapping[str, Any]) -> Pixels | None:
        """I', (H, W, 3), of the sample that a record is of; None for varied layouts.

        It goes through the network alone, so that its last bits are not those that the sample came
        from.
        """
        if self.reason or record.get("variation"):
            return None
        key, style = str(record["source"]), int(record["style"])
        for stage in self._plan.stages:
            shard = stage.find(key, style)
            if shard is not None:
                groups = stage.job(shard).groups
                group = next(g for g in groups if g.key == key and 0 <= style - g.first < g.count)
                return self._maker.coarse(group, style)
        return None
