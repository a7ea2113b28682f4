"""Embed xarray cubes in Python, with georeference, lazily if the cubes are lazy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anysat.areas.job import Job
from anysat.errors import InputError
from anysat.geo.stores.layout import Layout, coordinates_of
from anysat.geo.stores.store import Unit
from anysat.model.encoder import AnySat
from anysat.workflows.embed import EmbedConfig
from anysat.workflows.embed.area import levelled, measure_statistics, prepare

if TYPE_CHECKING:
    import xarray


def embed(
    data: Mapping[str, Any], patch_size_m: float, *, weights: str | Path | AnySat = "g-astruc/AnySat", **options: Any
) -> xarray.Dataset:
    """Embed cubes of the same ground. The values are those of `anysat embed`.

    If any cube is lazy, so is the result: each of its blocks is computed when needed, on a Dask cluster if one is
    connected.

    Args:
        data: The cubes by modality key: xarray Datasets or DataArrays with a coordinate reference system and axes
            time, band, y and x in any order, or paths.
        patch_size_m: Side of a patch in metres.
        weights: A source of weights as for `anysat.load`, or a model.
        **options: Other options of `anysat embed`: `area`, `dates`, `period`, `dense` (returns the embeddings of
            that modality's sub-patches instead), `units`, `statistics`, `dataset`, `window`, `overlap`, `places`,
            `memory_gb`, `device`, `precision`.

    Returns:
        A georeferenced Dataset with `embedding` (time dim y x) and `valid` (time y x).

    Raises:
        InputError: An option is not one of these, or the ground lies in several UTM zones.
        SourceError, UnknownNameError, RecordError, PatchSizeError: As `anysat embed`.

    Examples:
        >>> import numpy as np, odc.geo.xr, xarray
        >>> from odc.geo.geobox import GeoBox
        >>> grid = GeoBox.from_bbox((600000, 5600000, 600080, 5600060), "EPSG:32631", resolution=10)
        >>> s1 = odc.geo.xr.wrap_xr(np.ones((1, 6, 8), "float32"), grid, time=["2020-06-01"], axis=1)
        >>> s1 = xarray.Dataset({"VV": s1, "VH": 2 * s1}).assign_coords(s1.coords)
        >>> embed({"s1": s1}, 20, weights="nano", units=["s1=linear"], statistics="from-data").embedding.shape
        (1, 160, 3, 4)
    """
    unknown = options.keys() & {"out", "inputs", "store", "scheduler", "overwrite", "sensors", "also", "readers",
                                "keep", "update"}  # fmt: skip
    if unknown:
        raise InputError("anysat.embed", "options that affect the result", ", ".join(sorted(unknown)),
                         "use `anysat embed` to write files")  # fmt: skip
    config = EmbedConfig(inputs=list(data), out="lazy.zarr", patch_size_m=patch_size_m, **options)
    prepared = prepare(config, data, weights)
    measure_statistics(prepared.jobs, prepared.model)
    if len(prepared.jobs) > 1:
        names = ", ".join(job.area.name for job in prepared.jobs)
        raise InputError("data", "ground in one reference system", names, "select one zone at a time with area=")
    job = levelled(prepared.jobs[0], config)
    part = prepared.part(job)
    lazy = _graph(job, part.layouts[-1])
    dataset = coordinates_of(part.layouts[-1], part.periods).assign(lazy)
    dataset.attrs["anysat"] = dict(part.made_from)
    return dataset if any(_is_lazy(cube) for cube in data.values()) else dataset.compute(scheduler="synchronous")


def _graph(job: Job, layout: Layout) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Build lazy arrays. Each shard is a block that depends on the tokens of the shards around it."""
    import dask
    import dask.array

    shared = dask.delayed(job, traverse=False)
    make = dask.delayed(Job.make, pure=False)
    tokens = {unit: make(shared, unit) for unit in job.units}
    fuse = dask.delayed(_fuse, pure=False)
    fused = {unit: fuse(shared, unit, [tokens[o] for o in job.needs(unit)], layout.name) for unit in job.units}
    rows, cols = map(range, job.area.shards)

    def whole(name: str, depth: tuple[Any, ...], dtype: Any) -> Any:
        """Put the arrays of a name together (time … y x)."""

        def array(unit: Unit) -> Any:
            sides = (part.stop - part.start for part in layout.shard_slices(unit.row, unit.col))
            return dask.array.from_delayed(fused[unit][name], (1, *depth, *sides), dtype)

        periods = [[[array(Unit(p, r, c)) for c in cols] for r in rows] for p in range(len(job.periods))]
        return dask.array.concatenate([dask.array.block(period) for period in periods])

    y, x = layout.geobox.dimensions
    vectors = whole("embedding", (layout.dim,), np.float32)
    return {"embedding": (("time", "dim", y, x), vectors), "valid": (("time", y, x), whole("valid", (), bool))}


def _fuse(job: Job, unit: Unit, parts: list[Any], name: str) -> dict[str, Any]:
    """Return the embeddings (time dim y x) and validity (time y x) of a shard."""
    own = next(part for part, other in zip(parts, job.needs(unit), strict=True) if other == unit)
    arrays, found = job.fuse(unit, parts, own.sub)
    for problem in found.unreadable:
        warnings.warn(f"could not be read, left as NaN: {problem}", stacklevel=2)
    vectors, valid = arrays[name]
    return {"embedding": np.moveaxis(vectors, -1, 0)[None], "valid": valid[None]}


def _is_lazy(cube: Any) -> bool:
    variables = getattr(cube, "data_vars", None)
    arrays = [cube] if variables is None else list(variables.values())
    return any(getattr(array, "chunks", None) for array in arrays)
