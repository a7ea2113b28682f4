"""The values that flow: Observation, Tile, Batch in, Embeddings out; padding, collation, day numbers.

Observations, tiles and batches hold source values (what the provider delivered, with a unit per
band); standardising happens once, inside the model. Arrays are numpy up to the tile, torch from
the batch on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from anysat.errors import ExtentError, InputError, RecordError
from anysat.modalities import Modality
from anysat.patches import PatchGrid

Dates = NDArray[np.datetime64]

_CONVERSIONS: dict[tuple[str, str], Any] = {
    ("linear", "dB"): lambda power: 10.0 * np.log10(np.where(power > 0, power, np.nan)),
    ("dB", "linear"): lambda decibel: 10.0 ** (decibel / 10.0),
    ("reflectance", "reflectance_1e4"): lambda value: value * 1e4,
    ("reflectance_1e4", "reflectance"): lambda value: value / 1e4,
}
_RATIO_EPS, _RATIO_LIMIT = 1e-10, 1e4


def day_numbers(dates: Dates, convention: str = "day_of_year") -> NDArray[np.float32]:
    """The model's day number of each date; the only place where one is made.

    `day_of_year` counts from 1 on 1 January, so series over several years wrap, as in most of the
    published loaders; `days_since YYYY-MM-DD` counts on from 0 at that date (published PASTIS).

    >>> day_numbers(np.array(["2020-01-01", "2021-02-01"], "datetime64[D]")).tolist()
    [1.0, 32.0]
    """
    dates = dates.astype("datetime64[D]")
    kind, *since = convention.split()
    if kind == "day_of_year" and not since:
        start = dates.astype("datetime64[Y]").astype("datetime64[D]")
        return ((dates - start).astype(np.int64) + 1).astype(np.float32)
    try:
        origin = np.datetime64(since[0], "D") if kind == "days_since" and len(since) == 1 else None
    except ValueError:
        origin = None
    if origin is None:
        raise RecordError("day convention", convention, "'day_of_year' or 'days_since YYYY-MM-DD'")
    return (dates - origin).astype(np.int64).astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Observation:
    """Source values of one modality over one tile; build it with `Observation.of`."""

    modality: Modality
    values: NDArray[np.float32]
    """(band row col), or (time band row col) for a series; bands in the modality's order."""
    valid: NDArray[np.bool_]
    """Same shape, True where the value is real; elsewhere `values` is 0."""
    units: tuple[str, ...]
    """Unit of each band."""
    dates: Dates | None = None
    """Date of each time step; None for an image."""

    @classmethod
    def of(
        cls,
        modality: Modality,
        values: ArrayLike,
        *,
        bands: Sequence[str] | None = None,
        units: str | Sequence[str] | None = None,
        dates: Any = None,
        valid: ArrayLike | None = None,
        nodata: float | None = None,
    ) -> Observation:
        """Check and order source values.

        Bands are matched by name; those the source lacks become invalid, and a ratio band is made
        from its parts. NaN, infinity and `nodata` are invalid.

        Args:
            modality: the stream the values belong to.
            values: (band row col), or (time band row col) for a series, any real type.
            bands: names of the bands as stored; None when they are the modality's, in its order.
            units: one unit, or one per stored band; None for the modality's own.
            dates: one per time step, anything numpy reads as a date; an image has none.
            valid: broadcastable to `values`, True where data is real.
            nodata: source value that means "no data".

        Raises:
            InputError: wrong rank, lengths, type, dates or an empty series.
            UnknownNameError: a band or unit the modality does not have.

        >>> from anysat.modalities import MODALITIES
        >>> s1 = Observation.of(MODALITIES["s1"], np.ones((2, 2, 4, 4)), bands=["VV", "VH"],
        ...                     units="linear", dates=["2020-01-01", "2020-01-13"])
        >>> s1.values.shape, s1.units
        ((2, 3, 4, 4), ('linear', 'linear', 'ratio'))
        """
        array = _as_array(modality, values)
        if modality.is_temporal:
            dates = _as_dates(modality, dates, len(array))
        elif dates is not None:
            raise InputError(f"{modality.key} dates", "none: it is a single image", f"{np.size(dates)} dates")
        names = _stored_bands(modality, array.shape[-3], bands)
        unit_of = _stored_units(modality, names, units)
        seen = np.isfinite(array)
        if nodata is not None and np.isfinite(nodata):
            seen &= array != nodata
        if valid is not None:
            try:
                seen &= np.broadcast_to(np.asarray(valid, dtype=bool), array.shape)
            except ValueError:
                raise InputError(
                    f"{modality.key} valid mask", f"a shape that broadcasts to {array.shape}", np.shape(valid)
                ) from None
        array = np.where(seen, array, 0).astype(np.float32)
        array, seen, units_out = _in_model_order(modality, array, seen, names, unit_of)
        return cls(modality=modality, values=array, valid=seen, units=units_out, dates=dates)

    def in_units(self, units: str | Sequence[str]) -> Observation:
        """The same observation with its bands in other units; a ratio band stays as it is.

        Raises:
            InputError: there is no conversion between a band's unit and the one asked for.
        """
        wanted = [units] * len(self.units) if isinstance(units, str) else list(units)
        values, valid, units_out = self.values.copy(), self.valid.copy(), list(self.units)
        for index, (band, source, target) in enumerate(zip(self.modality.bands, self.units, wanted, strict=True)):
            if source == target or band.ratio_of is not None:
                continue
            if (source, target) not in _CONVERSIONS:
                raise InputError(
                    f"{self.modality.key} band {band.name}", f"a unit that converts to {target!r}", repr(source)
                )
            with np.errstate(over="ignore"):
                converted = _CONVERSIONS[source, target](values[..., index, :, :])
            valid[..., index, :, :] &= np.isfinite(converted)
            values[..., index, :, :] = np.where(valid[..., index, :, :], converted, 0)
            units_out[index] = target
        return replace(self, values=values, valid=valid, units=tuple(units_out))

    @property
    def shape_px(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[-2], self.values.shape[-1]

    def __repr__(self) -> str:
        dated = f", {len(self.dates)} dates {self.dates.min()}..{self.dates.max()}" if self.dates is not None else ""
        rows, cols = self.shape_px
        return f"Observation({self.modality.key}, {rows} x {cols} px{dated}, {self.valid.mean():.0%} valid)"


@dataclass(frozen=True, eq=False, kw_only=True)
class Tile:
    """One sample: observations of the same ground."""

    observations: Mapping[str, Observation]
    """Observation of each modality, by its key."""
    id: str = "tile"
    """Name used in messages and outputs."""
    dataset: str | None = None
    """Name under which statistics are looked up; None when there is only one set."""
    geobox: Any = None
    """Georeference of the ground (an `odc.geo.GeoBox`), or None."""
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Labels by name."""

    def __post_init__(self) -> None:
        if not self.observations:
            raise InputError(f"tile {self.id!r}", "at least one modality", "none")
        for key, observation in self.observations.items():
            if key != observation.modality.key:
                raise InputError(f"tile {self.id!r}", f"the observation of {key!r} under that key", observation)
        extents = {
            key: (o.shape_px[0] * o.modality.gsd_m, o.shape_px[1] * o.modality.gsd_m)
            for key, o in self.observations.items()
            if not o.modality.covers_tile
        }
        if len({(round(100 * h), round(100 * w)) for h, w in extents.values()}) > 1:
            raise ExtentError(extents, f"crop the observations of tile {self.id!r} to the ground they share")

    def __repr__(self) -> str:
        return f"Tile({self.id!r}, {', '.join(repr(o) for o in self.observations.values())})"


@dataclass(frozen=True, eq=False, kw_only=True)
class StackedObservation:
    """One modality of a batch."""

    modality: Modality
    values: Tensor
    """(batch band row col) or (batch time band row col), source values."""
    valid: Tensor
    """Same shape, boolean. Padded dates and absent tiles are False."""
    units: tuple[str, ...]
    """Unit of each band."""
    dates: Tensor | None = None
    """(batch time) days since 1970-01-01, integers; arbitrary where padded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Stacked tiles: same ground size, ragged dates padded under the valid mask.

    >>> from anysat.modalities import MODALITIES
    >>> s2 = Observation.of(MODALITIES["s2"], np.ones((1, 10, 6, 6)), dates=["2020-06-01"])
    >>> Batch.of([Tile(observations={"s2": s2})]).observations["s2"].values.shape
    torch.Size([1, 1, 10, 6, 6])
    """

    observations: Mapping[str, StackedObservation]
    ids: tuple[str, ...]
    dataset: str | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> Batch:
        """Stack tiles. A modality that some tiles lack is wholly invalid there.

        Raises:
            InputError: no tiles; tiles of different sizes, units, datasets or targets.
        """
        if not tiles:
            raise InputError("batch", "at least one tile", "none")
        datasets = {tile.dataset for tile in tiles}
        if len(datasets) > 1:
            raise InputError("batch", "tiles of one dataset", ", ".join(sorted(map(str, datasets))))
        names = {tuple(sorted(tile.targets)) for tile in tiles}
        if len(names) > 1:
            raise InputError("batch", "the same targets in every tile", sorted(names))
        keys = dict.fromkeys(key for tile in tiles for key in tile.observations)
        return cls(
            observations={key: _stack(key, tiles) for key in keys},
            ids=tuple(tile.id for tile in tiles),
            dataset=tiles[0].dataset,
            targets={name: _stack_targets(name, tiles) for name in tiles[0].targets},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {
            key: replace(
                o,
                values=o.values.to(device),
                valid=o.valid.to(device),
                dates=None if o.dates is None else o.dates.to(device),
            )
            for key, o in self.observations.items()
        }
        return replace(self, observations=moved, targets={name: t.to(device) for name, t in self.targets.items()})

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key} {tuple(o.values.shape)}" for key, o in self.observations.items())
        return f"Batch({len(self)} tiles, {shapes})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings:
    """What the encoder gives: tile, patch and dense vectors, channels last, rows before columns.

    Where nothing was seen, vectors are NaN and `valid` is False.
    """

    tile: Tensor
    """(batch dim)"""
    patch: Tensor
    """(batch patch_row patch_col dim)"""
    valid: Tensor
    """(batch patch_row patch_col), True where at least one modality saw the patch."""
    grid: PatchGrid
    """How the tile was cut."""
    dense: Tensor | None = None
    """(batch row col 2*dim), one vector per sub-patch of `dense_modality`: its patch's fused token, then its own."""
    dense_valid: Tensor | None = None
    """(batch row col), True where that modality saw the sub-patch."""
    dense_modality: Modality | None = None
    """Modality whose sub-patches the dense vectors stand for."""
    absent: Mapping[str, int] = field(default_factory=dict)
    """Modalities without a valid value, and in how many tiles of the batch."""

    AXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "tile": ("batch", "dim"),
        "patch": ("batch", "patch_row", "patch_col", "dim"),
        "valid": ("batch", "patch_row", "patch_col"),
        "dense": ("batch", "row", "col", "dim"),
        "dense_valid": ("batch", "row", "col"),
    }

    def __repr__(self) -> str:
        dense = f", dense {tuple(self.dense.shape)}" if self.dense is not None else ""
        return f"Embeddings(tile {tuple(self.tile.shape)}, patch {tuple(self.patch.shape)}{dense})"


def _as_array(modality: Modality, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    axes = "(time band row col)" if modality.is_temporal else "(band row col)"
    if array.ndim != (4 if modality.is_temporal else 3):
        raise InputError(modality.key, f"{axes}, rank {4 if modality.is_temporal else 3}", f"shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(modality.key, "real numbers", f"type {array.dtype}")
    if 0 in array.shape:
        raise InputError(modality.key, f"at least one of each axis {axes}", f"shape {array.shape}")
    return array


def _as_dates(modality: Modality, dates: Any, num_times: int) -> Dates:
    where = f"{modality.key} dates"
    if dates is None:
        raise InputError(where, f"{num_times} dates, one per time step", "none", "pass dates=[...]")
    try:
        made = np.array(dates, dtype="datetime64[D]")
    except (ValueError, TypeError) as error:
        raise InputError(where, "dates such as 2020-06-01", error) from None
    if made.shape != (num_times,):
        raise InputError(where, f"{num_times} dates, one per time step", f"shape {made.shape}")
    if np.isnat(made).any():
        raise InputError(where, "a date at every time step", f"no date at step {int(np.isnat(made).argmax())}")
    return made


def _stored_bands(modality: Modality, num_bands: int, bands: Sequence[str] | None) -> list[int]:
    """Model index of each stored band."""
    if bands is None:
        measured = [i for i, band in enumerate(modality.bands) if band.ratio_of is None]
        if num_bands == len(modality.bands):
            return list(range(num_bands))
        if num_bands == len(measured):
            return measured
        names = ", ".join(modality.band_names)
        raise InputError(
            modality.key, f"{len(modality.bands)} bands ({names})", num_bands, "name them with bands=[...]"
        )
    if len(bands) != num_bands:
        raise InputError(
            f"{modality.key} bands", f"{num_bands} names, one per stored band", f"{len(bands)}: {list(bands)}"
        )
    indices = [modality.find_band(name) for name in bands]
    if len(set(indices)) < len(indices):
        raise InputError(f"{modality.key} bands", "each band once", list(bands))
    return indices


def _stored_units(modality: Modality, indices: list[int], units: str | Sequence[str] | None) -> dict[int, str]:
    own = {i: modality.bands[i].unit for i in indices}
    if units is None:
        return own
    if not isinstance(units, str) and len(units) != len(indices):
        raise InputError(f"{modality.key} units", f"one unit, or {len(indices)}, one per stored band", list(units))
    given = [units] * len(indices) if isinstance(units, str) else list(units)
    for index, unit in zip(indices, given, strict=True):
        if not (isinstance(units, str) and modality.bands[index].ratio_of is not None):
            own[index] = replace(modality.bands[index], unit=unit).unit  # the record refuses unknown units
    return own


def _in_model_order(
    modality: Modality, array: NDArray[np.float32], seen: NDArray[np.bool_], indices: list[int], units: dict[int, str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[str, ...]]:
    shape = (*array.shape[:-3], len(modality.bands), *array.shape[-2:])
    values, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    values[..., indices, :, :], valid[..., indices, :, :] = array, seen
    for index, band in enumerate(modality.bands):
        if band.ratio_of is not None and index not in indices:
            above, below = (modality.find_band(name) for name in band.ratio_of)
            ratio = values[..., above, :, :] / (values[..., below, :, :] + _RATIO_EPS)
            both = valid[..., above, :, :] & valid[..., below, :, :]
            values[..., index, :, :] = np.where(both, ratio.clip(-_RATIO_LIMIT, _RATIO_LIMIT), 0)
            valid[..., index, :, :] = both
    return values, valid, tuple(units.get(i, band.unit) for i, band in enumerate(modality.bands))


def _stack(key: str, tiles: Sequence[Tile]) -> StackedObservation:
    present = [tile.observations[key] for tile in tiles if key in tile.observations]
    first = present[0]
    for observation in present[1:]:
        if observation.modality != first.modality or observation.units != first.units:
            raise InputError(f"batch, {key}", f"one record and units {first.units}", observation.units)
        if observation.shape_px != first.shape_px:
            raise InputError(f"batch, {key}", f"tiles of {first.shape_px} pixels", observation.shape_px)
    longest = max((len(o.dates) for o in present if o.dates is not None), default=0)
    shape = (len(tiles), *((longest,) if longest else ()), *first.values.shape[-3:])
    values, valid = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    dates = torch.zeros(len(tiles), longest, dtype=torch.int64) if longest else None
    for index, tile in enumerate(tiles):
        if key not in tile.observations:
            continue
        observation = tile.observations[key]
        if observation.dates is None or dates is None:
            values[index], valid[index] = torch.from_numpy(observation.values), torch.from_numpy(observation.valid)
        else:
            steps = len(observation.dates)
            values[index, :steps] = torch.from_numpy(observation.values)
            valid[index, :steps] = torch.from_numpy(observation.valid)
            dates[index, :steps] = torch.from_numpy(observation.dates.astype(np.int64))
    return StackedObservation(modality=first.modality, values=values, valid=valid, units=first.units, dates=dates)


def _stack_targets(name: str, tiles: Sequence[Tile]) -> Tensor:
    arrays = [np.asarray(tile.targets[name]) for tile in tiles]
    if len({array.shape for array in arrays}) > 1:
        raise InputError(f"target {name!r}", "one shape in every tile", [array.shape for array in arrays])
    return torch.from_numpy(np.stack(arrays))
