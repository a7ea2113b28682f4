"""A sensor's view of the generated world: ground averaged into pixels, atmosphere, clouds, noise and units."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anysat.data.world.map import NUMBER, Ground, Units, days_since_cut, flood_reach, heights, look, stand_of
from anysat.data.world.noise import Floats, Grid
from anysat.data.world.parameters import PARAMETERS, Optics
from anysat.data.world.scene import THERMAL_NM, Cover, backscatter, cover_of, grain_of, heat, reflectance
from anysat.data.world.sensors import optics_of
from anysat.data.world.weather import cloud_opacity, day_numbers_1970, gain_and_haze, shadow
from anysat.dates import Dates
from anysat.modalities import Band, Modality

P = PARAMETERS
ALOS_CALIBRATION_DB = -83.0
"""Backscatter in dB of a radar DN of 1."""
HEIGHT_DN_PER_M = 5.0
"""DN per metre of height above ground, as in FLAIR."""
SLAB_POINTS = 2**16
"""Number of points that are computed together."""
_STRIPES_FROM = np.datetime64("2003-05-31")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is viewed: north-west corner, pixels, and the year of the crops."""

    west_m: float
    north_m: float
    rows: int
    cols: int
    gsd_m: float
    year: int

    def grid(self, pad: int = 0, fine: int = 1) -> Grid:
        """Return the pixel centres, with `pad` pixels around, or `fine` squared points per pixel."""
        side = pad * self.gsd_m
        rows, cols = ((count + 2 * pad) * fine for count in (self.rows, self.cols))
        return Grid.over(self.west_m - side, self.north_m + side, rows, cols, self.gsd_m / fine)


def points_per_side(gsd_m: float) -> int:
    """Return the points per side of a pixel to average; it depends on the pixel size only, so that tiles agree."""
    for limit, count in ((2, 1), (8, 2), (20, 3), (100, 2)):
        if gsd_m < limit:
            return count
    return math.ceil(gsd_m / 10)


def view(
    seed: int, modality: Modality, frame: Frame, dates: Dates, keep_clouds: bool
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return values and validity (date band row col) of the bands that are not ratios, in their units."""
    optics = optics_of(modality)
    bands = [band for band in modality.bands if band.ratio_of is None]
    pad = 0 if optics.blur_m < 0.2 * frame.gsd_m else min(4, math.ceil(1.6 * optics.blur_m / frame.gsd_m))
    fine = points_per_side(frame.gsd_m)
    pixels = _pixels(seed, modality, bands, frame.grid(pad, fine), frame.year, dates, fine)
    values = _blurred(pixels, pad, optics.blur_m / frame.gsd_m)
    valid = np.ones((len(dates), 1, frame.rows, frame.cols), bool)
    optical = [number for number, band in enumerate(bands) if _kind(modality, band) in ("optical", "heat")]
    if optical:
        values[:, optical], clear = _through_air(
            seed, frame, [bands[k] for k in optical], values[:, optical], dates, modality
        )
        valid &= clear | keep_clouds
    if optics.has_stripes:
        valid &= ~_stripes(frame.grid(), dates)
    _add_noise(seed, modality, frame, bands, optics, values, dates)
    for number, band in enumerate(bands):
        values[:, number] = _in_unit(_kind(modality, band), band, values[:, number])
    return np.ascontiguousarray(values), np.broadcast_to(valid, values.shape)


def _kind(modality: Modality, band: Band) -> str:
    """Return what a band measures, from its record alone."""
    if band.polarisation is not None or (modality.is_radar and band.wavelength_nm is None):
        return "radar"
    if band.unit == "K" or (band.wavelength_nm or 0) >= THERMAL_NM:
        return "heat"
    if band.wavelength_nm is None and (band.unit == "m" or band.name.lower() in ("elevation", "height")):
        return "height"
    return "optical"


def _pixels(seed: int, modality: Modality, bands: list[Band], grid: Grid, year: int, dates: Dates, fine: int) -> Floats:
    """Return reflectance, power, kelvin or metres (date band row col), the mean over each pixel's points."""
    slab = fine * max(1, SLAB_POINTS // (len(grid.x) * fine))
    parts = []
    for top in range(0, len(grid.y), slab):
        part = Grid(grid.x, grid.y[top : top + slab], grid.step_m)
        parts.append(_slab(seed, modality, bands, part, look(seed, part, year), dates, fine))
    return np.concatenate(parts, axis=2)


def _slab(
    seed: int, modality: Modality, bands: list[Band], grid: Grid, ground: Ground, dates: Dates, fine: int
) -> Floats:
    units = Units.of(ground)
    cover = cover_of(units, dates)
    reach = np.array([flood_reach(seed, date) for date in dates])
    is_water = ground.material == NUMBER["water"]
    lowest = float(np.where(is_water, np.inf, ground.water_m).min())
    states = (False, True) if reach.max() > lowest else (False,)
    table = np.concatenate([_signatures(seed, modality, bands, units, cover, dates, state) for state in states], axis=1)
    kinds = [_kind(modality, band) for band in bands]
    grain = grain_of(seed, grid, ground) if "optical" in kinds else None
    grained = np.array([kind == "optical" for kind in kinds])
    values = np.zeros((len(dates), grid.shape[0] // fine, grid.shape[1] // fine, len(bands)), np.float32)
    for number in range(len(dates)):
        place = units.place
        if reach[number] > lowest:
            place = place + len(units.material) * ((ground.water_m < reach[number]) & ~is_water)
        for row, col in np.ndindex(fine, fine):
            seen = table[number][place[row::fine, col::fine]]
            if grain is not None:
                texture = grain[row::fine, col::fine, None]
                seen *= texture if grained.all() else np.where(grained, texture, np.float32(1))
            values[number] += seen
    values = np.moveaxis(values / np.float32(fine**2), -1, 1)
    if "height" in kinds:
        since = days_since_cut(stand_of(units.unit, units.material), dates)
        tall = np.stack([heights(seed, grid, ground, days[units.place]) for days in since])
        values[:, kinds.index("height")] = tall.reshape(len(dates), *values.shape[2:][:1], fine, -1, fine).mean((2, 4))
    return values


def _signatures(
    seed: int, modality: Modality, bands: list[Band], units: Units, cover: Cover, dates: Dates, is_flooded: bool
) -> Floats:
    """Return what each band measures of each piece of ground (date piece band)."""
    table = np.zeros((len(dates), len(units.material), len(bands)), np.float32)
    kinds = [_kind(modality, band) for band in bands]
    for kind in set(kinds) - {"height"}:
        places = [number for number, found in enumerate(kinds) if found == kind]
        chosen = [bands[number] for number in places]
        if kind == "radar":
            side_db = optics_of(modality).side_db
            table[..., places] = backscatter(seed, units, cover, dates, chosen, is_flooded, side_db)
        elif kind == "heat":
            table[..., places] = heat(units, cover, dates, chosen)
        else:
            table[..., places] = reflectance(units, cover, chosen, is_flooded)
    return table


def _blurred(values: Floats, pad: int, sigma_px: float) -> Floats:
    """Blur values with the point spread function (date band row col); this uses up the margin."""
    if pad == 0:
        return values
    taps = np.exp(-0.5 * (np.arange(-pad, pad + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (2, 3):
        length = values.shape[axis] - 2 * pad
        parts = (values[(slice(None),) * axis + (slice(k, k + length),)] * tap for k, tap in enumerate(taps))
        values = np.asarray(sum(parts, np.float32(0)))
    return values


def _through_air(
    seed: int, frame: Frame, bands: list[Band], values: Floats, dates: Dates, modality: Modality
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return light seen through haze and clouds, and where it is clear (date 1 row col); images have no clouds."""
    gain, haze = gain_and_haze(seed, frame.grid(), dates)
    nm = np.array([band.wavelength_nm or 600.0 for band in bands], np.float32)
    is_heat = np.array([_kind(modality, band) == "heat" for band in bands])[:, None, None]
    scatter = np.minimum((480 / nm) ** 2.5, 1.5)[:, None, None]
    seen = np.where(is_heat, values, values * gain[:, None] + haze[:, None] * scatter)
    if not modality.is_temporal:
        return seen, np.ones((len(dates), 1, frame.rows, frame.cols), bool)
    cloud, shade = (part(seed, frame.grid(), dates)[:, None] for part in (cloud_opacity, shadow))
    bright = np.where(nm > 1250, 0.42, 0.78)[:, None, None] * np.where(np.abs(nm - 1373) < 40, 0.25, 1)[:, None, None]
    lit = np.where(is_heat, seen - 2.0 * shade, seen * (1 - 0.6 * shade))
    covered = lit * (1 - cloud) + cloud * np.where(is_heat, 258.0, bright)
    return covered.astype(np.float32), (cloud < P.cloudy_frac) & (shade < P.shady_frac)


def _stripes(grid: Grid, dates: Dates) -> NDArray[np.bool_]:
    """Return the gaps of Landsat 7 since its scan line corrector failed (date 1 row col): a fifth of the ground."""
    day = day_numbers_1970(dates)[:, None, None]
    along = (grid.y[:, None] - 0.2 * grid.x[None, :]) / 990.0 + day * 0.37
    return ((np.mod(along, 1.0) < 0.21) & (np.asarray(dates)[:, None, None] > _STRIPES_FROM))[:, None]


def _add_noise(
    seed: int, modality: Modality, frame: Frame, bands: list[Band], optics: Optics, values: Floats, dates: Dates
) -> None:
    """Add speckle to radar and noise to other bands, always the same for the same place and date."""
    place = [round(frame.west_m * 100) % 2**32, round(frame.north_m * 100) % 2**32, frame.rows]
    kinds = [_kind(modality, band) for band in bands]
    for number, day in enumerate(day_numbers_1970(dates).tolist()):
        rng = np.random.default_rng([seed % 2**63, zlib.crc32(modality.key.encode()), day % 2**32, *place])
        for band, kind in enumerate(kinds):
            layer = values[number, band]
            if kind == "radar":
                layer *= rng.standard_gamma(optics.looks, layer.shape, np.float32) / np.float32(optics.looks)
            else:
                unit = {"optical": layer * optics.noise_frac + optics.noise_floor, "heat": 0.25, "height": 0.08}[kind]
                layer += unit * rng.standard_normal(layer.shape, np.float32)


def _in_unit(kind: str, band: Band, values: Floats) -> Floats:
    """Convert physical values to the unit of a band, rounded as in a product."""
    if kind == "radar":
        decibel = np.round(10 * np.log10(np.maximum(values, 1e-6)), 2)
        if band.unit == "DN":
            return np.rint(10 ** ((decibel - ALOS_CALIBRATION_DB) / 20)).astype(np.float32)
        return decibel if band.unit == "dB" else np.round(10 ** (decibel / 10), 6).astype(np.float32)
    if kind == "heat":
        return np.asarray(np.round(values, 2))
    if kind == "height":
        metres = np.maximum(values, 0)
        return np.rint(metres * HEIGHT_DN_PER_M).clip(0, 255) if band.unit == "DN" else np.asarray(np.round(metres, 2))
    reflectance_1e4 = np.rint(values * 1e4).clip(1, 16_000)
    if band.unit == "DN":
        return np.rint(255 * (reflectance_1e4 / 4500).clip(0, 1) ** 0.62).astype(np.float32)
    return reflectance_1e4 if band.unit == "reflectance_1e4" else np.asarray(reflectance_1e4 / np.float32(1e4))
