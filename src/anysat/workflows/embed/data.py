"""Embed xarray cubes in Python, with georeference, lazily if the cubes are lazy."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anysat.areas.job import Job
from anysat.errors import InputError, SourceWarning
from anysat.geo.read.descriptions import DescribedCube, describe_sources
from anysat.geo.read.source import Source
from anysat.geo.stores.layout import Layout, coordinates_of
from anysat.geo.stores.store import Unit
from anysat.modalities import MODALITIES
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.workflows.embed import FIRST, EmbedConfig
from anysat.workflows.embed.area import levelled, measure_statistics, prepare
from anysat.workflows.embed.options import named_as_in_python, of_type, read_options

if TYPE_CHECKING:
    import xarray


def embed(
    data: Mapping[str, Any], patch_size_m: float, *, weights: str | Path | AnySat = "g-astruc/AnySat", **options: Any
) -> xarray.Dataset:
    """Embed cubes of the same ground. The values are those of `anysat embed`.

    If any cube is lazy, so is the result: each of its blocks is computed when needed, on a Dask cluster if one is
    connected. It can be written with `to_netcdf`, or with `to_zarr("area.zarr", group="patch")` as a store for
    `anysat.zonal`.

    Args:
        data: The cubes by modality key: xarray Datasets or DataArrays with a coordinate reference system and axes
            time, band, y and x in any order; a mapping with such a `cube` and what describes it, such as
            `{"cube": data, "quality": "scl"}` (keys: `bands`, `units`, `scale`, `offset`, `offset_from`, `nodata`,
            `quality`, `dates`); or paths and descriptions of files. A YAML file of sources may be given instead.
        patch_size_m: Side of a patch in metres.
        weights: A source of weights as for `anysat.load`, or a model.
        **options: Other options of `anysat embed`: `area` (also four numbers, a GeoDataFrame, or a shapely polygon in
            degrees), `dates` (also a list of two days), `period`, `dense` (returns the embeddings of that modality's
            sub-patches instead; `first` is the first that has any), `units` (also a mapping), `statistics`, `dataset`,
            `window`, `overlap`, `places`, `memory_gb`, `device`, `precision`.

    Returns:
        A georeferenced Dataset with `embedding` (time dim y x) and `valid` (time y x). Its attribute `anysat` is JSON
        text about weights, statistics, inputs and options, with the notes on each input.

    Raises:
        UnknownNameError: An option is not one of these.
        InputError: An option has a wrong type, or the ground lies in several UTM zones.
        SourceError, RecordError, PatchSizeError: As `anysat embed`.

    Warns:
        SourceWarning: An input has bands that are not used, lacks some, or has a quality layer that is not applied.

    Examples:
        >>> import numpy as np, odc.geo.xr, xarray
        >>> from odc.geo.geobox import GeoBox
        >>> grid = GeoBox.from_bbox((600000, 5600000, 600080, 5600060), "EPSG:32631", resolution=10)
        >>> s1 = odc.geo.xr.wrap_xr(np.ones((1, 6, 8), "float32"), grid, time=["2020-06-01"], axis=1)
        >>> s1 = xarray.Dataset({"VV": s1, "VH": 2 * s1}).assign_coords(s1.coords)
        >>> embed({"s1": s1}, 20, weights="nano", units={"s1": "linear"}, statistics="from-data").embedding.shape
        (1, 160, 3, 4)
    """
    with named_as_in_python():
        if weights is None:
            raise InputError("weights of anysat.embed", "a name, a path, a hub id or a model", "None")
        given = _given(data)
        found, ground = read_options(options)
        if found.get("dense") == FIRST:
            found["dense"] = next(
                (key for key in given if key not in MODALITIES or not MODALITIES[key].covers_tile), None
            )
        name = f"hash://sha256/{digest(weights)}" if isinstance(weights, AnySat) else str(weights)
        side = of_type("patch_size_m", patch_size_m)
        config = EmbedConfig(inputs=list(given), out="lazy.zarr", patch_size_m=side, weights=name, **found)
        prepared = prepare(config, given, weights, ground)
        _warn(prepared.inputs.sources)
        measure_statistics(prepared.jobs, prepared.model)
        if len(prepared.jobs) > 1:
            names = ", ".join(job.area.name for job in prepared.jobs)
            raise InputError("data", "ground in one reference system", names, "select one zone at a time with area=")
        job, _ = levelled(prepared.jobs[0], config)
        part = prepared.part(job)
    dataset = coordinates_of(part.layouts[-1], part.periods).assign(_graph(job, part.layouts[-1]))
    notes = {key: source.notes for key, source in prepared.inputs.sources.items()}
    dataset.attrs = _plain(dataset.attrs | {"anysat": {**part.made_from, "notes": notes}})
    return dataset if any(map(_is_lazy, given.values())) else dataset.compute(scheduler="synchronous")


def _given(data: Any) -> dict[str, Any]:
    """Return what is given for each modality, as described."""
    if hasattr(data, "dims") or not isinstance(data, (Mapping, str, Path)):
        raise InputError("data of anysat.embed", "cubes by modality", f"a {type(data).__name__}",
                         'give a mapping such as {"s2": cube}')  # fmt: skip
    return describe_sources(data)


def _warn(sources: Mapping[str, Source]) -> None:
    """Warn of what may be a mistake, once per input."""
    for key, source in sources.items():
        if source.doubts:
            name = key if source.name == key else f"{key}, {source.name}"
            warnings.warn(SourceWarning(f"{name}: {'; '.join(source.doubts)}"), stacklevel=3)


def _plain(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes that every format can hold: those with parts become JSON text.

    They claim no Zarr conventions, which require the parts.
    """
    plain = {}
    for name, value in attributes.items():
        parts = value if isinstance(value, (list, tuple)) else ()
        is_nested = isinstance(value, Mapping) or any(isinstance(part, (list, tuple, Mapping)) for part in parts)
        if name != "zarr_conventions":
            plain[name] = json.dumps(value, default=str) if is_nested else value
    return plain


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
    cube = cube.cube if isinstance(cube, DescribedCube) else cube
    variables = getattr(cube, "data_vars", None)
    arrays = [cube] if variables is None else list(variables.values())
    return any(getattr(array, "chunks", None) for array in arrays)
