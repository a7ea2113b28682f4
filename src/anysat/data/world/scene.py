"""From ground to physical values: spectra and backscatter of every piece of ground at every date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anysat.data.world.map import NUMBER, Ground, Units, days_since_burn, days_since_cut, stand_of, year_and_day
from anysat.data.world.noise import Floats, Grid, normal, spline, uniform
from anysat.data.world.parameters import ENDMEMBERS, KNOTS_NM, MATERIALS, PARAMETERS, POLARISATIONS
from anysat.data.world.weather import moisture, wind
from anysat.dates import Dates
from anysat.modalities import Band

P = PARAMETERS
_NAMES = tuple(ENDMEMBERS)
_SPECTRA = np.array([ENDMEMBERS[name] for name in _NAMES])
THERMAL_NM = 3000.0
"""Wavelength above which a band measures heat."""
_CIRRUS_NM, _CIRRUS_WIDTH_NM, _PANCHROMATIC_NM = 1373.0, 28.0, 600.0


_FIELDS = {
    name: np.array([getattr(material, name) for material in MATERIALS], np.float32)
    for name in (
        "winter", "summer", "start", "start_days", "end", "end_days", "special_day", "special_days", "special_frac",
        "dry_until", "gain", "nir", "swir", "height_m", "grain", "warmth_k", "biomass_frac", "variety",
    )
}  # fmt: skip
_ROLES = {
    role: np.array([_NAMES.index(getattr(material, role)) for material in MATERIALS])
    for role in ("canopy", "ground", "special")
}
_DB = {
    state: np.array([getattr(material, f"{state}_db") for material in MATERIALS], np.float32)
    for state in ("bare", "canopy", "flooded")
}


def material_field(name: str, material: NDArray[np.int8]) -> Floats:
    """Return a field of `Material`, by name, for each material."""
    return np.asarray(_FIELDS[name][material], np.float32)


@dataclass(frozen=True, eq=False)
class Cover:
    """Shares of cover of each piece of ground at each date (date piece)."""

    green: Floats
    special: Floats
    """Flowers and autumn leaves."""
    dry: Floats
    """Straw and slash on the ground."""
    ash: Floats
    """Ash left by a burn."""

    @property
    def canopy(self) -> Floats:
        """All standing plants."""
        return self.green + self.special


def cover_of(units: Units, dates: Dates) -> Cover:
    """Return the cover of every piece over the year: greening, flowers, harvest, cutting and burning."""
    field = {name: material_field(name, units.material)[None, :] for name in _FIELDS}
    variety = field["variety"]
    vigour = 1 + P.cover_spread * variety * normal(units.unit, 2)[None, :]
    stretch = P.end_spread_days * variety * normal(units.unit, 3)[None, :]
    day = year_and_day(dates)[1].astype(np.float32)[:, None] - P.shift_days * variety * normal(units.unit, 1)[None, :]
    rise = _logistic((day - field["start"]) / field["start_days"])
    fall = _logistic((field["end"] + stretch - day) / field["end_days"])
    is_harvested = (field["dry_until"] > 0) & (day > field["dry_until"] + stretch)
    winter = field["winter"] * np.where(is_harvested & (day < P.sown_day), P.stubble_frac, 1.0)
    canopy = np.clip((winter + field["summer"] * rise * fall) * vigour, 0, 0.97)
    dry = np.where((field["dry_until"] > 0) & ~is_harvested, P.straw_frac * rise * (1 - fall), 0.0)
    since_burn = days_since_burn(units.burn, dates)
    burnt, ash = (_since(since_burn, fade_days) for fade_days in (P.burn_fade_days, P.ash_fade_days))
    felled = np.where(
        units.has_stand, _since(days_since_cut(stand_of(units.unit, units.material), dates), P.cut_fade_days), 0
    )
    weed = P.weed_frac * felled * _logistic((day - 120) / 15) * _logistic((280 - day) / 15)
    canopy = canopy * (1 - P.felled_frac * felled) * (1 - P.burnt_frac * burnt) + weed
    dry = np.minimum(dry + P.slash_frac * felled, np.maximum(1 - canopy, 0)) * (1 - burnt)
    special = field["special_frac"] * np.exp(-0.5 * ((day - field["special_day"]) / field["special_days"]) ** 2)
    parts = canopy * (1 - special), canopy * special, dry, ash
    return Cover(*(np.asarray(part, np.float32) for part in parts))


def _since(days: NDArray[np.int64], fade_days: float) -> Floats:
    """Return the remaining effect of an event: 1 on its day, then fading; 0 if it never happened."""
    return np.exp(-days / fade_days).astype(np.float32)


def _logistic(value: NDArray[np.floating]) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -30, 30))), np.float32)


def reflectance(units: Units, cover: Cover, bands: list[Band], is_flooded: bool) -> Floats:
    """Return the reflectance (date piece band) of optical bands, with water over the ground if `is_flooded`."""
    nm = np.array([band.wavelength_nm or _PANCHROMATIC_NM for band in bands])
    spectra = np.array([np.interp(nm, KNOTS_NM, row) for row in _SPECTRA], np.float32)
    role = {name: spectra[places[units.material]] for name, places in _ROLES.items()}
    ash, dry, mud = (spectra[_NAMES.index(name)] for name in ("ash", "dry", "mud"))
    tint, leaf = _tints(units, nm)
    burnt = 0.6 * cover.ash[..., None]
    low = np.clip(1 - cover.canopy - cover.dry, 0, 1)[..., None] * (role["ground"] * (1 - burnt) + ash * burnt)
    low = low + cover.dry[..., None] * dry
    high = (cover.green[..., None] * role["canopy"] + cover.special[..., None] * role["special"]) * leaf
    if is_flooded:
        wet = np.where(units.has_stand, 0.35, 0.75)[:, None].astype(np.float32)
        drowned = np.where(units.has_stand, 0.0, 0.55)[:, None].astype(np.float32)
        canopy = cover.canopy[..., None]
        low = low * (1 - wet) + mud * (wet * (1 - canopy) + drowned * canopy)
        high = high * (1 - drowned)
    cirrus = 1 - 0.985 * np.exp(-(((nm - _CIRRUS_NM) / _CIRRUS_WIDTH_NM) ** 2))
    return np.asarray((low + high) * tint * cirrus, np.float32)


def _tints(units: Units, nm: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Return colour factors of each piece (piece band): of all of it, and of its leaves."""
    visible, swir = (_step(730 - nm, 40), _step(nm - 1250, 150))
    near = 1 - visible - swir
    variety = material_field("variety", units.material)[:, None]
    modes = zip(P.tint_spread, (np.ones(len(nm)), visible, near, swir), strict=True)
    tint = sum((spread * normal(units.unit, 4 + k)[:, None] * mode for k, (spread, mode) in enumerate(modes)), 0.0)
    leaf = material_field("gain", units.material)[:, None] * np.ones(len(nm))
    leaf = leaf * (1 + near * (material_field("nir", units.material)[:, None] - 1))
    leaf = leaf * (1 + swir * (material_field("swir", units.material)[:, None] - 1))
    return np.exp(variety * tint).astype(np.float32), leaf.astype(np.float32)


def _step(distance: NDArray[np.floating], width: float) -> NDArray[np.floating]:
    return np.asarray(1 / (1 + np.exp(-distance / width)))


def backscatter(
    seed: int, units: Units, cover: Cover, dates: Dates, bands: list[Band], is_flooded: bool, side_db: float
) -> Floats:
    """Return the radar power (date piece band)."""
    places = [POLARISATIONS.index(band.polarisation) if band.polarisation in POLARISATIONS else 0 for band in bands]
    bare, canopy, flooded = (_DB[state][units.material][:, places] for state in ("bare", "canopy", "flooded"))
    wet, rough = (P.moisture_db * moisture(seed, dates), P.wind_db * wind(seed, dates))
    is_land = ~_is_water(units)[:, None]
    if is_flooded:
        canopy = np.where(units.has_stand[:, None], canopy + 3.2, flooded + 2.4)
        bare = flooded + rough[:, None, None]
    else:
        bare = bare + np.where(is_land, wet[:, None, None], rough[:, None, None])
    share = np.clip(cover.canopy + 0.5 * cover.dry, 0, 1)[..., None]
    power = (1 - share) * 10 ** (bare / 10) + share * 10 ** (canopy / 10)
    spread = P.radar_spread_db * normal(units.unit, 9) + side_db * (2 * uniform(units.unit, 35) - 0.5)
    return np.asarray(power * 10 ** (spread[:, None] * is_land / 10), np.float32)


def _is_water(units: Units) -> NDArray[np.bool_]:
    return np.asarray(units.material == NUMBER["water"])


def heat(units: Units, cover: Cover, dates: Dates, bands: list[Band]) -> Floats:
    """Return the brightness temperature (date piece band) in kelvin."""
    day = year_and_day(dates)[1].astype(np.float32)[:, None]
    season = np.sin(2 * np.pi * (day - 110) / 365)
    warmth = material_field("warmth_k", units.material)[None, :] + 1.6 * normal(units.unit, 12)[None, :]
    bare = 6.0 * np.clip(1 - cover.canopy, 0, 1) * ~_is_water(units)
    kelvin = 286.0 + 11.0 * season + (0.55 + 0.45 * season) * (warmth + bare)
    split = np.array([0.6 if (band.wavelength_nm or 0) > 11500 else 0.0 for band in bands], np.float32)
    return np.asarray(kelvin[..., None] - split, np.float32)


def grain_of(seed: int, grid: Grid, ground: Ground) -> Floats:
    """Return the fine texture (row col) with mean 1: crowns, drill rows, tramlines, and slow changes within a field."""
    fine = sum((0.6 * spline(seed, 80 + k, grid, cell) for k, cell in enumerate((1.1, 5.5)) if cell > grid.step_m),
               np.zeros(grid.shape, np.float32))  # fmt: skip
    contrast = material_field("grain", ground.material)
    patchy = P.patch_spread * spline(seed, 83, grid, 42.0) * (contrast > 0.03)
    made = 1 + contrast * fine + patchy
    if grid.step_m <= 1.5:
        is_crop = np.array([material.land_cover == "cropland" for material in MATERIALS])[ground.material]
        wheel = np.abs(np.mod(ground.u, 21.0) - 10.5)
        is_track = (np.abs(wheel - 0.9) < 0.3) & is_crop
        made = made * np.where(is_track, 0.78, 1.0)
        if grid.step_m <= 0.3:
            made = made + 0.07 * is_crop * np.sin(2 * np.pi * ground.u / 0.75)
    return np.asarray(np.clip(made, 0.25, 2.2), np.float32)
