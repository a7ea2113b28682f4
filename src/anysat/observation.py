"""Observations: the pixels, dates and validity of one modality over one tile.

An observation holds the values as the provider delivered them. They are standardised once, inside the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.dates import Dates, calendar_date
from anysat.errors import InputError, UnknownNameError
from anysat.modalities import UNITS, Modality

CONVERSIONS: dict[tuple[str, str], Any] = {
    ("linear", "dB"): lambda power: 10.0 * np.log10(np.where(power > 0, power, np.nan)),
    ("dB", "linear"): lambda decibel: 10.0 ** (decibel / 10.0),
    ("reflectance", "reflectance_1e4"): lambda value: value * 1e4,
    ("reflectance_1e4", "reflectance"): lambda value: value / 1e4,
}
"""Functions on arrays, by the unit they convert from and to."""
AXIS_NAMES = {
    "time": ("time", "t", "date", "dates"), "band": ("band", "bands", "channel", "variable"),
    "row": ("y", "row", "lat", "latitude", "northing"), "col": ("x", "col", "lon", "longitude", "easting"),
}  # fmt: skip
"""Names of the dimensions of an xarray object, in small letters, by the axis that they are."""
_DAY = "datetime64[D]"
_RATIO_EPS, _RATIO_LIMIT = 1e-10, 1e4


@dataclass(frozen=True, eq=False, kw_only=True)
class Observation:
    """The pixels, dates and validity of one modality over one tile, in source values.

    Create it with `Observation.of`, which checks its input.
    """

    modality: Modality
    values: NDArray[np.float32]
    """(band row col), or (time band row col) for a series; bands in the modality's order."""
    valid: NDArray[np.bool_]
    """Same shape as `values`: True where a value is real. Elsewhere `values` is 0."""
    units: tuple[str, ...]
    """Unit of each band."""
    dates: Dates | None = None
    """(time) date of each time step; None for a single image."""

    @classmethod
    def of(
        cls,
        modality: Modality,
        values: ArrayLike,
        *,
        bands: Iterable[str] | None = None,
        units: str | Sequence[str] | None = None,
        dates: Any = None,
        valid: ArrayLike | None = None,
        nodata: float | None = None,
    ) -> Observation:
        """Create an observation from source values.

        Bands are matched by name. Bands that the source lacks become invalid, except ratio bands, which are computed
        from their parts. NaN, infinity, masked values and `nodata` are invalid.

        Args:
            modality: The modality that the values belong to.
            values: (band row col), or (time band row col) for a series; any real type. The dimensions of an xarray
                `DataArray` may be in any order; they are recognised by their names (`AXIS_NAMES`).
            bands: Names of the stored bands, as strings or as an xarray coordinate. None if they are those of the
                band coordinate of a `DataArray`, or else the modality's bands in its order, with or without the ratio
                bands.
            units: One unit for all bands, or one per stored band. None for the modality's own units.
            dates: One date per time step, in any form that numpy reads as a day, between 1900 and 2199. Times with
                a time zone are converted to UTC. None for a single image, or for those of the time coordinate of a
                `DataArray`.
            valid: True where data is real. Either (time), or the axes of `values`, where an axis of length 1
                applies to the whole axis. A `DataArray` may lack dimensions.
            nodata: The source value that means "no data". It is rounded to the type of `values` before comparing. None
                for that in the attributes of a `DataArray`, as rioxarray and odc-stac give it, if there is one.

        Returns:
            The observation, with the bands in the modality's order and values in float32.

        Raises:
            InputError: The values, bands, units, dates, mask or nodata value have a wrong shape, length or type, or the
                series is empty.
            UnknownNameError: The modality has no such band, or the unit is unknown.

        Examples:
            >>> from anysat.modalities import MODALITIES
            >>> s1 = Observation.of(MODALITIES["s1"], np.ones((2, 2, 4, 4)), bands=["VV", "VH"],
            ...                     units="linear", dates=["2020-01-01", "2020-01-13"])
            >>> s1.values.shape, s1.units
            ((2, 3, 4, 4), ('linear', 'linear', 'ratio'))
        """
        if not isinstance(modality, Modality):
            raise InputError("modality", "a record such as anysat.MODALITIES['s2']", repr(modality))
        bands, dates = _with_coordinates(modality, values, bands, dates)
        if nodata is None and isinstance(getattr(values, "dims", None), tuple):
            nodata = nodata_in(getattr(values, "attrs", {}))
        values = _in_order(modality.key, values, modality)
        array = _as_array(modality, values)
        if modality.is_temporal:
            dates = _as_dates(modality, dates, len(array))
        elif dates is not None:
            raise InputError(f"{modality.key} dates", "none: it is a single image", f"{np.size(dates)} dates")
        names = stored_bands(modality, array.shape[-3], bands)
        unit_of = _stored_units(modality, names, units)
        with np.errstate(over="ignore"):
            seen = np.isfinite(array.astype(np.float32)) & ~_masked(values)
        if nodata is not None:
            seen &= array != _as_stored(modality, nodata, values, array.dtype)
        if valid is not None:
            seen &= _as_valid(modality, valid, array.shape)
        array = np.where(seen, array, 0).astype(np.float32)
        array, seen, units_out = _in_model_order(modality, array, seen, names, unit_of)
        return cls(modality=modality, values=array, valid=seen, units=units_out, dates=dates)

    def in_units(self, units: str | Sequence[str]) -> Observation:
        """Convert the observation to other units.

        Supported are dB to and from linear power, and reflectance to and from reflectance times 10,000. Ratio bands
        are computed again from the converted bands. Values that cannot be converted, such as powers of 0 or less to
        dB, become invalid.

        Args:
            units: One unit for all bands, or one per band of the modality.

        Returns:
            The converted observation; the original is unchanged.

        Raises:
            InputError: There is no conversion from a band's unit to the requested one, or not one unit per band.
            UnknownNameError: There is no such unit.
        """
        expected = f"one unit, or {len(self.units)}, one per band of {', '.join(self.modality.band_names)}"
        wanted = _unit_of_each(f"{self.modality.key} units", expected, units, len(self.units))
        if unknown := [unit for unit in wanted if unit not in UNITS]:
            raise UnknownNameError("unit", unknown[0], UNITS)
        values, valid, units_out = self.values.copy(), self.valid.copy(), list(self.units)
        for index, (band, source, target) in enumerate(zip(self.modality.bands, self.units, wanted, strict=True)):
            if source == target or band.ratio_of is not None:
                continue
            if (source, target) not in CONVERSIONS:
                raise InputError(
                    f"{self.modality.key} band {band.name}", f"a unit that converts to {target!r}", repr(source),
                    f"give the unit that its numbers are in, as `--units [{self.modality.key}={target}]` or `units` of "
                    "its description",
                )  # fmt: skip
            with np.errstate(over="ignore"):
                converted = CONVERSIONS[source, target](values[..., index, :, :])
            valid[..., index, :, :] &= np.isfinite(converted)
            values[..., index, :, :] = np.where(valid[..., index, :, :], converted, 0)
            units_out[index] = target
        for index, band in enumerate(self.modality.bands):
            if band.ratio_of is not None and tuple(units_out) != self.units:
                make_ratio(self.modality, index, values, valid)
        return replace(self, values=values, valid=valid, units=tuple(units_out))

    @property
    def shape_px(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.values.shape[-2], self.values.shape[-1]

    def __repr__(self) -> str:
        dated = f", {len(self.dates)} dates {self.dates.min()}..{self.dates.max()}" if self.dates is not None else ""
        rows, cols = self.shape_px
        return f"Observation({self.modality.key}, {rows} x {cols} px{dated}, {self.valid.mean():.0%} valid)"


def _with_coordinates(modality: Modality, values: Any, bands: Any, dates: Any) -> tuple[Any, Any]:
    """Return the bands and dates given, or else those that the coordinates of an xarray object name.

    Raises:
        InputError: Both are given, and they differ.
    """
    named, dated = _coordinate(values, "band", "UOTS"), _coordinate(values, "time", "M")
    if bands is None:
        bands = named
    elif named is not None:
        bands = list(bands)
        with contextlib.suppress(UnknownNameError):  # names of another kind, such as band_1
            if stored_bands(modality, len(named), named) != stored_bands(modality, len(named), bands):
                raise InputError(f"{modality.key} bands", f"those of the coordinate, {', '.join(map(str, named))}",
                                 ", ".join(map(str, bands)), "leave `bands` out, or give `.values`")  # fmt: skip
    if dates is None:
        dates = dated if modality.is_temporal else None
    elif dated is not None and not np.array_equal(_as_dates(modality, dates, len(dated)), dated.astype(_DAY)):
        raise InputError(f"{modality.key} dates", f"those of the coordinate, {dated.astype(_DAY).tolist()[0]} …",
                         "others", "leave `dates` out, or give `.values`")  # fmt: skip
    return bands, dates


def nodata_in(said: Mapping[Any, Any]) -> float | None:
    """Return the number that means "no data" in attributes or an encoding; None if there is none, or if it is NaN."""
    for name in ("nodata", "_FillValue", "missing_value"):
        with contextlib.suppress(TypeError, ValueError):  # there is none, or it is no number
            if not np.isnan(number := float(said.get(name, np.nan))):
                return number
    return None


def _coordinate(values: Any, axis: str, kinds: str) -> NDArray[Any] | None:
    """Return the coordinate of an axis of an xarray object, if it has one of these kinds of numpy types."""
    for dim in values.dims if isinstance(getattr(values, "dims", None), tuple) else ():
        if str(dim).lower() in AXIS_NAMES[axis] and dim in values.coords:
            found = np.asarray(values.coords[dim])
            return found if found.dtype.kind in kinds else None
    return None


def _in_order(where: str, values: Any, modality: Modality, *, may_lack: bool = False) -> Any:
    """Return the values of an xarray object with the axes in our order; anything without named axes as it is.

    With `may_lack`, axes that it lacks have length 1.
    """
    dims = getattr(values, "dims", None)
    if not isinstance(dims, tuple):  # such as h5py's
        return values
    axes = ("time", "band", "row", "col") if modality.is_temporal else ("band", "row", "col")
    dim_of = {axis: dim for dim in dims for axis, names in AXIS_NAMES.items() if str(dim).lower() in names}
    if len(dim_of) < len(dims) or not set(dim_of) <= set(axes) or (len(dims) < len(axes) and not may_lack):
        expected = f"the dimensions {', '.join(AXIS_NAMES[axis][0] for axis in axes)}, in any order"
        raise InputError(where, expected, f"({', '.join(map(str, dims))})", "rename them, or give `.values`")
    ordered = np.asarray(values.transpose(*(dim_of[axis] for axis in axes if axis in dim_of)))
    return ordered[tuple(slice(None) if axis in dim_of else None for axis in axes)]


def _as_array(modality: Modality, values: ArrayLike) -> NDArray[Any]:
    values = _detached(values)
    if str(getattr(values, "dtype", "")) == "torch.bfloat16":  # numpy has no such type
        values = values.float()  # type: ignore[union-attr]
    axes = "(time band row col)" if modality.is_temporal else "(band row col)"
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of different lengths, an xarray Dataset, a sparse tensor
        raise InputError(modality.key, f"an array {axes}", f"a {type(values).__name__} ({error})") from None
    if not array.ndim:
        raise InputError(modality.key, f"an array {axes}", f"a {type(values).__name__}")
    if array.ndim != (4 if modality.is_temporal else 3):
        raise InputError(modality.key, f"{axes}, rank {4 if modality.is_temporal else 3}", f"shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(modality.key, "real numbers", f"type {array.dtype}")
    if 0 in array.shape:
        raise InputError(modality.key, f"at least one of each axis {axes}", f"shape {array.shape}")
    return array


def _detached(values: Any) -> Any:
    """Return the values, detached from the graph of gradients if they are a tensor."""
    detach = getattr(values, "detach", None)
    return values if detach is None else detach()


def _as_stored(modality: Modality, nodata: object, values: Any, dtype: np.dtype[Any]) -> float:
    """Return the nodata value rounded to the type of the values, because files store it at a higher precision."""
    number = np.asarray(_detached(nodata))
    if number.size != 1 or number.dtype.kind not in "fiu":
        raise InputError(f"{modality.key} nodata", "one number such as -9999", repr(nodata))
    number = number.item()
    if dtype.kind != "f":
        return number
    with np.errstate(over="ignore"):
        stored = dtype.type(number) if not hasattr(values, "new_tensor") else values.new_tensor(number).item()
    return float(stored)


def _masked(values: object) -> NDArray[np.bool_] | np.bool_:
    return np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else np.False_


def _as_valid(modality: Modality, valid: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    where = f"{modality.key} valid mask"
    mask = np.asarray(_detached(_in_order(where, valid, modality, may_lack=True)))
    if modality.is_temporal and mask.ndim == 1:
        mask = mask[:, None, None, None]
    fits = mask.ndim == len(shape) and all(a in (1, b) for a, b in zip(mask.shape, shape, strict=True))
    if not fits:
        short = ", or (time,)" if modality.is_temporal else ""
        expected = f"True and False of shape {shape}, or 1 for an axis that does not matter{short}"
        raise InputError(where, expected, f"{mask.dtype} of shape {np.shape(valid)}")
    if (odd := mask[~np.isin(mask, (0, 1))]).size:
        raise InputError(where, "True and False, or 1 and 0", odd[0])
    return np.broadcast_to(mask.astype(bool), shape)


def _as_dates(modality: Modality, dates: Any, num_times: int) -> Dates:
    where = f"{modality.key} dates"
    if dates is None:
        raise InputError(where, f"{num_times} dates, one per time step", "none", "pass dates=[...]")
    if (hidden := np.atleast_1d(_masked(dates))).any():
        raise InputError(where, "a date at every time step", f"a masked one at step {int(hidden.argmax())}")
    given = np.asarray(dates)
    if given.dtype.kind in "biufc" and given.size:
        raise InputError(where, "dates such as 2020-06-01", "numbers", "day numbers belong to the published call")
    try:
        made = np.array([calendar_date(date) for date in np.atleast_1d(given)], dtype="datetime64[D]")
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(where, "dates such as 2020-06-01", error) from None
    if made.shape != (num_times,):
        raise InputError(where, f"{num_times} dates, one per time step", f"shape {made.shape}")
    if np.isnat(made).any():
        raise InputError(where, "a date at every time step", f"no date at step {int(np.isnat(made).argmax())}")
    odd = made[(made < np.datetime64("1900-01-01")) | (made >= np.datetime64("2200-01-01"))]
    if odd.size:
        raise InputError(where, "dates between 1900 and 2199", odd[0])
    return made


def stored_bands(modality: Modality, num_bands: int, bands: Iterable[Any] | None) -> list[int]:
    """Return the index of each stored band in the modality's order.

    Args:
        modality: The modality that the bands belong to.
        num_bands: Number of stored bands.
        bands: Their names, as strings or as an xarray coordinate. None if they are the modality's bands in its order,
            with or without the ratio bands.

    Raises:
        InputError: The number of names or bands is wrong, or a band is named twice.
        UnknownNameError: The modality has no such band.
    """
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
    if isinstance(bands, str) or not isinstance(bands, Iterable):
        raise InputError(f"{modality.key} bands", "a list of names, one per stored band", repr(bands))
    bands = [str(getattr(name, "item", lambda name=name: name)()) for name in bands]  # or items of a coordinate
    if len(bands) != num_bands:
        raise InputError(f"{modality.key} bands", f"{num_bands} names, one per stored band", f"{len(bands)}: {bands}")
    indices = [modality.find_band(name) for name in bands]
    if len(set(indices)) < len(indices):
        raise InputError(f"{modality.key} bands", "each band once", bands)
    return indices


def _stored_units(modality: Modality, indices: list[int], units: str | Sequence[str] | None) -> dict[int, str]:
    own = {i: modality.bands[i].unit for i in indices}
    if units is None:
        return own
    expected = f"one unit, or {len(indices)}, one per stored band"
    given = _unit_of_each(f"{modality.key} units", expected, units, len(indices))
    for index, unit in zip(indices, given, strict=True):
        if not (isinstance(units, str) and modality.bands[index].ratio_of is not None):
            own[index] = replace(modality.bands[index], unit=unit).unit  # Band raises for unknown units
    return own


def _unit_of_each(where: str, expected: str, units: str | Sequence[str], num_bands: int) -> list[str]:
    """Return the unit of each band.

    Raises:
        InputError: They are neither one nor one per band.
    """
    if isinstance(units, str):
        return [units] * num_bands
    if not isinstance(units, Iterable) or isinstance(units, Mapping) or len(found := list(units)) != num_bands:
        raise InputError(where, expected, repr(units))
    return found


def _in_model_order(
    modality: Modality, array: NDArray[np.float32], seen: NDArray[np.bool_], indices: list[int], units: dict[int, str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[str, ...]]:
    shape = (*array.shape[:-3], len(modality.bands), *array.shape[-2:])
    values, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    values[..., indices, :, :], valid[..., indices, :, :] = array, seen
    for index, band in enumerate(modality.bands):
        if band.ratio_of is not None and index not in indices:
            make_ratio(modality, index, values, valid)
    return values, valid, tuple(units.get(i, band.unit) for i, band in enumerate(modality.bands))


def make_ratio(modality: Modality, index: int, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    """Fill in a ratio band, in place, from its parts in the units they have.

    A ratio of values in dB is therefore not the ratio of the powers.
    """
    parts = modality.bands[index].ratio_of
    assert parts is not None, modality.bands[index]
    above, below = (modality.find_band(name) for name in parts)
    with np.errstate(divide="ignore", over="ignore"):
        ratio = values[..., above, :, :] / (values[..., below, :, :] + _RATIO_EPS)
    both = valid[..., above, :, :] & valid[..., below, :, :]
    values[..., index, :, :] = np.where(both, ratio.clip(-_RATIO_LIMIT, _RATIO_LIMIT), 0)
    valid[..., index, :, :] = both
