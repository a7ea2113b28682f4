"""The micro-batches of one process, in order, and the time it waited for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anysat.batch import Tile
from anysat.data.loader import Draw, Loader, Plan, Source


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Virtual ranks of one process: micro-batch `m` is what rank `m % n` of them reads at optimiser step `m // n`."""

    ranks: Sequence[Source]

    def plan(self, step: int) -> Plan:
        """Return what a micro-batch reads. Its step is that of the optimiser."""
        number, rank = divmod(step, len(self.ranks))
        return self.ranks[rank].plan(number)

    def read(self, plan: Plan) -> list[Tile]:
        """Return the tiles of a micro-batch."""
        return self.ranks[0].read(plan)


@dataclass(kw_only=True)
class TimedLoader:
    """A loader that counts the seconds in which training waited for data."""

    loader: Loader
    waited_s: float = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Draw]:
        draws = iter(self.loader)
        while True:
            asked = time.perf_counter()
            draw = next(draws, None)
            self.waited_s += time.perf_counter() - asked
            if draw is None:
                return
            yield draw
            del draw
