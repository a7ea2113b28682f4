"""The plan of an area: its order, what it frees, and that it counts only what is under way."""

from types import SimpleNamespace

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from anysat.areas.job import Job
from anysat.areas.maps import MapJob
from anysat.areas.run import _Plan
from anysat.areas.windows import Windowing
from anysat.geo.area import Area
from anysat.geo.stores.store import Unit

GROUNDS = [
    (100, 8, 16, 0.25),
    (90, 16, 16, 0.25),
    (130, 64, 16, 0.25),
    (77, 8, 6, 0.5),
    (50, 4, 16, 0.75),
    (64, 16, 5, 0),
]
"""Side of the ground and of a shard in patches, side of a window and overlap."""


def planned(ground, share_written, tick=lambda *_: None):
    """A plan of two periods, some of whose units are written; its work, which notes what it forgets; its grid."""
    side, shard, window, overlap = ground
    box = GeoBox.from_bbox((0, 0, 10 * side, 10 * side), "EPSG:32632", resolution=10)
    work = SimpleNamespace(area=Area(geobox=box, patch_size_m=10.0, shard=shard, crs_reason=""), forgotten=[],
                           windowing=Windowing(side=window, overlap=overlap))  # fmt: skip
    work.span = lambda unit: work.area.shard_span(unit.row, unit.col)
    work.needs = lambda unit: Job.needs(work, unit)
    work.kept = SimpleNamespace(forget=work.forgotten.append)
    remaining = np.random.default_rng(side).random((2, *work.area.shards)) >= share_written
    return _Plan(work, SimpleNamespace(unwritten=lambda: remaining), tick), work, remaining


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_unit_needs_itself_and_those_that_need_it(ground):
    _, work, grid = planned(ground, 0.0)
    units = [Unit(*index) for index in np.ndindex(grid.shape)]
    needed = {unit: set(work.needs(unit)) for unit in units}
    assert all(unit in needed[unit] for unit in units)
    assert all(unit in needed[other] for unit in units for other in needed[unit])
    assert MapJob.needs(work, units[0]) == [units[0]]


@pytest.mark.parametrize("share_written", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("ground", GROUNDS)
def test_a_plan_does_and_frees_what_a_list_of_everything_would(ground, share_written):
    ticks = []
    plan, work, grid = planned(ground, share_written, lambda *counts: ticks.append(counts))
    needs = {unit: work.needs(unit) for unit in (Unit(*index) for index in np.argwhere(grid).tolist())}
    first = list(dict.fromkeys(other for others in needs.values() for other in others))
    assert list(plan.first_units()) == first
    left = {unit: set(others) for unit, others in needs.items()}
    wanted = {other: {unit for unit in needs if other in needs[unit]} for other in first}
    for unit in first:
        waiting = [other for other in needs if unit in needs[other]]
        for other in waiting:
            left[other].discard(unit)
        ready = [other for other in waiting if not left[other]]
        assert plan.first_done(unit) == ready
        for done in ready:
            for other in needs[done]:
                wanted[other].discard(done)
            plan.written(done)
            assert set(work.forgotten) == {other for other in first if not wanted[other]}
    assert len(work.forgotten) == len(first)
    assert ticks[-1:] == ([(len(first) + len(needs),) * 2] if first else [])


def test_a_plan_counts_only_units_under_way():
    plan, work, grid = planned((200, 4, 16, 0.25), 0.0)
    most = 0
    for unit in plan.first_units():
        for ready in plan.first_done(unit):
            plan.written(ready)
        most = max(most, len(plan._left) + len(plan._wanted))
    num_rows = max(len({unit.row for unit in work.needs(Unit(0, row, 0))}) for row in range(grid.shape[1]))
    assert most <= 2 * num_rows * grid.shape[2] < grid.size / 5
    assert not plan._left
    assert not plan._wanted
