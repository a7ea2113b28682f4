"""The micro-batches of one process, in their order, and how long it waited for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anysat.batch import Tile
from anysat.data.loader import Draw, Loader, Plan, Source


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Virtual ranks that one process works off: number `m` is what rank `m % n` of them reads at step `m // n`."""

    ranks: Sequence[Source]

    def plan(self, step: int) -> Plan:
        """What a micro-batch reads; its step is that of the optimiser."""
        number, rank = divmod(step, len(self.ranks))
        return self.ranks[rank].plan(number)

    def read(self, plan: Plan) -> list[Tile]:
        """The tiles of a micro-batch."""
        return self.ranks[0].read(plan)


@dataclass(kw_only=True)
class TimedLoader:
    """A loader that counts the seconds in which nothing was there to be trained on."""

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
