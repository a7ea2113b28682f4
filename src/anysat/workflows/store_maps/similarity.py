"""The run of `anysat similar`: cosines between embeddings from which the mean of the stores was subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.errors import InputError, RecordError
from anysat.geo.claims import alone_at
from anysat.geo.overlap import seen_before
from anysat.geo.parcels import place_parcels
from anysat.geo.write.outputs import Result, check_also, check_output
from anysat.geo.zonal import Asked, read_shapes, summarise
from anysat.workflows.store_maps.maps import Bar, Mapped, MapPlan, Stores, no_bar, seen_parts, write_maps

LAYER = "similarity"
_BINS = np.linspace(-2, 2, 4001)


def similar(
    store: Path | str | Sequence[Path | str], to: Any, out: Path | str, *, unlike: Any = None, group: str | None = None,
    also: Sequence[str] = (), overwrite: bool = False, bar: Bar = no_bar,
) -> Mapped:  # fmt: skip
    """Write a map of how similar every patch of a store is to given places.

    The similarity is the cosine between the embedding of the patch and the mean of the embeddings at the places, after
    the mean over the stores is subtracted from both: most embeddings have a large part in common, so that without this,
    all cosines are near 1. Every period is compared with the places in the same period.

    Args:
        store: NAME.zarr, written by `anysat embed`; the NAME given to an area in several UTM zones; or several stores
            of one kind. For several stores, there is a map for each, whose name ends in that of the zone or store.
        to: A vector file or GeoDataFrame of points or polygons, in any reference system, or `longitude,latitude` in
            degrees. A point takes the patch in which it lies, a polygon the mean of the patches by their share in it.
        out: NAME.tif (float32, NaN where nothing was seen), NAME.zarr, or NAME.parquet with a row per patch.
        unlike: Places whose similarity is subtracted.
        group: Name of the group; None for the embeddings of patches.
        also: Suffixes of the formats to write besides NAME.zarr, such as [".tif"].
        overwrite: Replace existing files.
        bar: Shows progress.

    Returns:
        The files and the report. Its facts are the median, the 99th percentile, and the similarity at each place.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError, RecordError: A store or the places cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
    """
    check_output("--out", out, Result.AREA)
    check_also(",".join(also) or None, out, Result.AREA)
    with alone_at(Path(out)):
        stores = Stores.open(store, group)
        layers = {LAYER: {"variable_attributes": {"long_name": "cosine similarity of centred embeddings"}}}
        plan = MapPlan(stores=stores, out=Path(out), layers=layers, also=also)
        plan.check([to, unlike], overwrite=overwrite)
        wanted = [_Places.of(stores, one) for one in (to, unlike) if one is not None]
        centre = _means(stores, bar)
        directions = [_unit(place.mean - centre) for place in wanted]
        counts = np.zeros(len(_BINS) - 1, np.int64)

        def similarity(period: int, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
            centred = _unit(vectors - centre[period])
            found = [centred @ direction[period] for direction in directions]
            return found[0] if len(found) == 1 else found[0] - found[1]

        def counted(period: int, vectors: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            found = similarity(period, vectors)
            counts[:] += np.histogram(found[np.isfinite(found)], _BINS)[0]
            return {LAYER: found}

        at = [similarity(period, each) for period, each in enumerate(wanted[0].each)]
        told = {"to": wanted[0].name, "unlike": wanted[1].name if len(wanted) > 1 else None}
        files = write_maps(plan, counted, told, overwrite=overwrite, bar=bar)
    return _reported(stores, wanted, np.concatenate(at), counts, files)


@dataclass(frozen=True, eq=False)
class _Places:
    """Embeddings of places."""

    name: str
    each: NDArray[np.float32]
    """(period place dim), NaN where nothing was seen."""
    lines: list[str]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(period dim), NaN where no place was seen."""
        seen = np.isfinite(self.each).all(-1, keepdims=True)
        count = seen.sum(1)
        return np.where(count > 0, np.where(seen, self.each, 0).sum(1) / np.maximum(count, 1), np.nan)

    @classmethod
    def of(cls, stores: Stores, given: Any) -> _Places:
        """Read places, and the mean embedding of each.

        Raises:
            InputError: None of them was seen.
        """
        name, table = _read_places(given)
        shapes = table[[table.geometry.name]]
        placed = [place_parcels(shapes, name, group.geobox) for group in stores.groups]
        found, notes = summarise(Asked(stores.groups, shapes, placed))
        dim = stores.groups[0].dim or 1
        columns = list(found.columns)[-dim - 1 : -1]  # the last is the geometry
        each = found[columns].to_numpy(np.float32).reshape(len(shapes), len(stores.periods), dim).swapaxes(0, 1)
        seen = np.isfinite(each).all(-1)
        if not seen.any():
            raise InputError(name, f"places on ground that {stores.name} has seen", f"{len(shapes)} elsewhere",
                             "check their place and reference system")  # fmt: skip
        lines = list(notes)
        if unseen := int((~seen.any(0)).sum()):
            lines.append(f"{unseen} of {len(shapes)} places of {name} lie on ground that was not seen")
        if empty := int((~seen.any(1)).sum()):
            lines.append(f"in {empty} of {len(seen)} periods no place of {name} was seen: the map is empty there")
        return cls(name if len(shapes) == 1 else f"{name} ({len(shapes)} places)", each, lines)


def _read_places(given: Any) -> tuple[str, Any]:
    """Return a name for messages and a table of geometries, from `longitude,latitude`, a file or a table.

    Raises:
        RecordError: The numbers are not degrees.
        MissingFileError, SourceError, UnknownNameError: The file cannot be read.
    """
    import geopandas
    import shapely

    try:
        lon, lat = map(float, given.split(","))
    except (AttributeError, TypeError, ValueError):  # a table, or a file
        return read_shapes(given, "places")
    if not (abs(lon) <= 180 and abs(lat) <= 90):
        raise RecordError("place", given, "longitude,latitude in degrees, such as 4.35,50.85")
    return given, geopandas.GeoDataFrame(geometry=[shapely.Point(lon, lat)], crs=4326)


def _means(stores: Stores, bar: Bar) -> NDArray[np.float64]:
    """Return the mean embedding of each period (period dim); ground in several stores counts once."""
    total, count = np.zeros((len(stores.periods), stores.groups[0].dim or 1)), np.zeros((len(stores.periods), 1))
    with bar(f"averaging {stores.name}", stores.num_steps) as advance:
        for number, group in enumerate(stores.groups):
            for unit in group.units():
                for rows, vectors, seen in seen_parts(group, unit):
                    before = seen_before(stores.groups[:number], group, unit.period, rows, group.slices(unit)[1])
                    once = vectors[~before[seen]]
                    total[unit.period] += once.sum(0, dtype=np.float64)
                    count[unit.period] += len(once)
                advance(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return vectors (… dim) of length 1; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def _reported(
    stores: Stores, wanted: Sequence[_Places], at: NDArray[np.float32], counts: NDArray[np.int64],
    files: tuple[Path, ...],
) -> Mapped:  # fmt: skip
    """Return the result with a report: what is usual in the map, and what the places themselves have."""
    total = np.cumsum(counts) / max(1, counts.sum())
    median, high = (float(_BINS[1 + np.searchsorted(total, part)]) for part in (0.5, 0.99))
    own, names = at[np.isfinite(at)], [one.name for one in wanted]
    lines = [
        f"{stores.groups[0].name} of {stores.name}: similarity to {' minus that to '.join(names)}",
        *(line for one in wanted for line in one.lines),
        f"{counts.sum()} patches: median {median:.2f}, 1 % are above {high:.2f}; at the places themselves "
        + " to ".join(dict.fromkeys(f"{one:.2f}" for one in (own.min(), own.max()))),
        *(f"wrote {file}" for file in files),
    ]  # fmt: skip
    facts = {"median": median, "percentile_99": high, "at_places": [float(one) for one in own]}
    return Mapped(files=files, report="\n".join(lines), facts=facts)
