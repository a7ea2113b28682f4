"""Small area stores with values that all differ, so that what lies at another place shows."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from anysat.geo.stores.conventions import embedding_attributes
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.quantise import quantisation
from anysat.geo.stores.store import AreaStore, Unit
from anysat.geo.write.catalog import ModelFacts, RunFacts
from anysat.modalities import MODALITIES as M
from geo_builders import geobox

PERIODS = [(date(2020, 1, 1), date(2020, 6, 30)), (date(2020, 7, 1), date(2020, 12, 31))]
GRID = geobox((11, 7), 20.0)
"""Three by two shards of four patches, the last ones smaller."""
DIM = 6
MADE_FROM = {"inputs": {"s2": ["a.tif", "b.tif"]}, "weights": "abc", "options": {"patch_size_m": 20.0}}
NAMES = ("grass", "water")


def facts(kind: str = "float32", **changes: Any) -> dict[str, Any]:
    dtype = "int8" if kind.startswith("int8") else kind
    given = {"kind": "chip", "dim": DIM, "model": "g-astruc/AnySat", "sources": ["s2.nc"], "gsd_m": 10, "dtype": dtype,
             "version": "0", "chip_px": (2, 2), "quantisation": quantisation(kind)}  # fmt: skip
    return embedding_attributes(**(given | changes))


def patch_layout(kind: str = "float32", grid: GeoBox = GRID, name: str = "patch", **changes: Any) -> Layout:
    scale = np.full(DIM, 4 / 127, np.float32) if kind == "int8-scale" else None
    return Layout(name=name, geobox=grid, shard_px=4, chunk_px=2, dim=DIM, kind=kind, scale=scale,
                  attributes=facts(kind), **changes)  # fmt: skip


def dense_layout() -> Layout:
    """Two sub-patches a side."""
    return Layout(name="dense", geobox=geobox((22, 14), 10.0), shard_px=8, chunk_px=4, dim=2,
                  attributes=facts(kind="pixel", dim=2, chip_px=None))  # fmt: skip


def class_layout() -> Layout:
    """A class map."""
    colours = ["#00ff00", "#0000ff"]
    return Layout(
        name="classes", geobox=GRID, shard_px=4, chunk_px=2, kind="uint8", variable="class",
        variable_attributes={"flag_values": [0, 1], "flag_meanings": " ".join(NAMES), "flag_colors": " ".join(colours)},
    )  # fmt: skip


def content(layout: Layout, num_periods: int = len(PERIODS), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values (time row col dim) and validity (time row col) of the whole store; the first shard has nothing."""
    rng = np.random.default_rng(seed)
    shape = (num_periods, layout.geobox.height, layout.geobox.width)
    valid = rng.random(shape) > 0.2
    valid[:, : layout.shard_px, : layout.shard_px] = False
    if layout.kind == "uint8":
        return rng.integers(0, 2, shape), valid
    values = rng.standard_normal((*shape, layout.dim or 1), dtype=np.float32)
    return (values if layout.dim else values[..., 0]), valid


def parts(layouts: Sequence[Layout], unit: Unit) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a unit holds."""
    found = {}
    for layout in layouts:
        values, valid = content(layout)
        place = (unit.period, *layout.shard_slices(unit.row, unit.col))
        found[layout.name] = (values[place], valid[place])
    return found


def begin(path: Path, layouts: Sequence[Layout], **options: Any) -> AreaStore:
    return AreaStore.open(path, layouts, PERIODS, options.pop("made_from", MADE_FROM), **options)


def finished(path: Path, layouts: Sequence[Layout] | None = None, **options: Any) -> Path:
    """A store with everything written."""
    layouts = layouts or [patch_layout()]
    store = begin(path, layouts, **options)
    for unit in store.remaining():
        store.write(unit, parts(layouts, unit), {"seconds": 1.0})
    return store.finish({"seam_score": 1.05})


def model_facts(**changes) -> ModelFacts:
    given = {
        "name": "g-astruc/AnySat",
        "digest": "abc",
        "num_parameters": 12,
        "dim": DIM,
        "modalities": [M["s2"], M["aerial"]],
    }
    return ModelFacts(**(given | changes))


def run_facts(**changes) -> RunFacts:
    given = {
        "model": model_facts(), "inputs": {"s2": {"path": "s2.nc", "dates": ["2020-03-01"]}, "aerial": {"paths": ["a.tif", "b.tif"]}},
        "options": {"patch_size_m": 20.0}, "version": "0", "finished": datetime(2026, 1, 2, tzinfo=UTC), "seconds": 3.5,
    }  # fmt: skip
    return RunFacts(**(given | changes))
