"""All tunable numbers of the generated world. They are frozen: a changed world gets a new version.

Results can be compared over time only if the world stays the same. So nothing here may be tuned, and a test compares
the numbers with `PARAMETERS_SHA256`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VERSION = 1

KNOTS_NM = (440, 490, 560, 665, 705, 740, 783, 835, 865, 945, 1240, 1610, 2200)
"""Wavelengths of the spectra; other wavelengths are interpolated."""

ENDMEMBERS: dict[str, tuple[float, ...]] = {
    "leaf": (0.025, 0.030, 0.070, 0.035, 0.115, 0.300, 0.400, 0.430, 0.440, 0.430, 0.390, 0.200, 0.090),
    "crop": (0.025, 0.032, 0.072, 0.036, 0.110, 0.315, 0.420, 0.450, 0.460, 0.450, 0.400, 0.195, 0.085),
    "needle": (0.015, 0.021, 0.038, 0.023, 0.068, 0.180, 0.225, 0.240, 0.245, 0.240, 0.205, 0.105, 0.048),
    "flower": (0.035, 0.045, 0.165, 0.140, 0.210, 0.340, 0.415, 0.440, 0.450, 0.440, 0.400, 0.210, 0.100),
    "autumn": (0.030, 0.042, 0.100, 0.120, 0.175, 0.260, 0.310, 0.340, 0.350, 0.350, 0.330, 0.215, 0.125),
    "dry": (0.060, 0.080, 0.120, 0.170, 0.200, 0.220, 0.250, 0.275, 0.285, 0.300, 0.360, 0.330, 0.240),
    "twigs": (0.028, 0.036, 0.052, 0.070, 0.090, 0.115, 0.135, 0.155, 0.165, 0.175, 0.205, 0.175, 0.110),
    "soil": (0.045, 0.055, 0.080, 0.112, 0.125, 0.138, 0.152, 0.168, 0.174, 0.185, 0.235, 0.275, 0.235),
    "gravel": (0.095, 0.120, 0.165, 0.215, 0.235, 0.250, 0.268, 0.285, 0.292, 0.305, 0.355, 0.375, 0.340),
    "asphalt": (0.068, 0.078, 0.090, 0.102, 0.106, 0.110, 0.115, 0.120, 0.122, 0.126, 0.142, 0.155, 0.145),
    "tiles": (0.048, 0.058, 0.090, 0.195, 0.225, 0.242, 0.258, 0.272, 0.278, 0.285, 0.320, 0.340, 0.300),
    "metal": (0.150, 0.170, 0.185, 0.195, 0.200, 0.204, 0.208, 0.212, 0.214, 0.218, 0.235, 0.240, 0.220),
    "water": (0.036, 0.040, 0.046, 0.026, 0.020, 0.013, 0.011, 0.010, 0.009, 0.008, 0.005, 0.004, 0.003),
    "mud": (0.060, 0.075, 0.105, 0.098, 0.090, 0.066, 0.060, 0.054, 0.050, 0.040, 0.018, 0.012, 0.009),
    "ash": (0.030, 0.034, 0.042, 0.050, 0.056, 0.062, 0.070, 0.078, 0.082, 0.092, 0.135, 0.185, 0.180),
}
"""Reflectance at `KNOTS_NM` of the components that the ground is mixed from."""

POLARISATIONS = ("VV", "VH", "HH", "HV")
"""VV and VH are in C band, HH and HV in L band."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a piece of ground is made of, and how it develops over the year. Days are days of the year."""

    name: str
    land_cover: str
    canopy: str = "crop"
    ground: str = "soil"
    special: str = "dry"
    """Endmember that replaces the canopy for a while: flowers or autumn leaves."""
    winter: float = 0.0
    """Canopy cover outside the season."""
    summer: float = 0.0
    """Canopy cover added in the season."""
    start: float = 100.0
    """Day on which half of the season's cover is there."""
    start_days: float = 10.0
    end: float = 280.0
    end_days: float = 10.0
    special_day: float = 200.0
    special_days: float = 10.0
    special_frac: float = 0.0
    dry_until: float = 0.0
    """Day until which straw stands, from `end` on."""
    gain: float = 1.0
    """Brightness of the canopy."""
    nir: float = 1.0
    swir: float = 1.0
    height_m: float = 0.0
    biomass_frac: float = 0.0
    """Tonnes per hectare and metre of height to the power 1.4."""
    bare_db: tuple[float, float, float, float] = (-11.5, -19.5, -13.0, -24.0)
    """Backscatter without a canopy in dB, in the order of `POLARISATIONS`."""
    canopy_db: tuple[float, float, float, float] = (-11.0, -16.5, -11.5, -18.5)
    """Backscatter of the closed canopy."""
    flooded_db: tuple[float, float, float, float] = (-22.5, -28.5, -22.5, -31.5)
    """Backscatter with water over the ground."""
    variety: float = 1.0
    """How much pieces of this material differ, relative to the average material."""
    grain: float = 0.06
    """Contrast of the fine texture."""
    warmth_k: float = 0.0
    """Difference in temperature from a meadow on a summer day."""


_TREE: dict[str, Any] = {
    "land_cover": "forest", "canopy": "leaf", "ground": "twigs", "special": "autumn", "summer": 0.72, "grain": 0.34,
    "warmth_k": -2.0, "variety": 0.35, "bare_db": (-11.6, -17.6, -9.8, -16.2),
    "canopy_db": (-10.9, -16.2, -8.2, -13.6), "flooded_db": (-5.6, -13.4, -3.8, -12.0),
}  # fmt: skip
_ROOF: dict[str, Any] = {
    "land_cover": "built", "canopy": "leaf", "grain": 0.05, "warmth_k": 6.0, "bare_db": (-7.0, -14.5, -6.5, -17.0),
    "flooded_db": (-3.0, -11.5, -3.4, -14.9),
}  # fmt: skip
_SMOOTH = (-17.0, -24.0, -19.0, -28.0)

MATERIALS: tuple[Material, ...] = (
    Material(name="water", land_cover="water", ground="water", grain=0.02, warmth_k=-6.0,
             bare_db=(-20.5, -27.0, -22.0, -31.0)),
    Material(name="spruce", **{**_TREE, "canopy": "needle", "summer": 0.04}, winter=0.82, start=125, end=285,
             height_m=25, biomass_frac=2.4, gain=0.88),
    Material(name="pine", **{**_TREE, "canopy": "needle", "summer": 0.06}, winter=0.74, start=135, end=285,
             height_m=21, biomass_frac=2.6, gain=1.14, swir=1.15),
    Material(name="beech", **_TREE, winter=0.14, start=117, start_days=5, end=296, end_days=8, special_day=292,
             special_days=13, special_frac=0.8, height_m=26, biomass_frac=3.4, gain=1.06, nir=1.05),
    Material(name="oak", gain=0.92, **_TREE, winter=0.17, start=126, start_days=6, end=306, end_days=8, special_day=302,
             special_days=14, special_frac=0.7, height_m=23, biomass_frac=3.6),
    Material(name="birch", **_TREE, winter=0.16, start=109, start_days=6, end=284, end_days=9, special_day=281,
             special_days=13, special_frac=0.8, height_m=18, biomass_frac=2.6, gain=1.1, swir=1.08),
    Material(name="larch", **{**_TREE, "summer": 0.62}, winter=0.20, start=115, start_days=7, end=312, end_days=7,
             special_day=305, special_days=11, special_frac=0.9, height_m=22, biomass_frac=2.6, gain=0.94, nir=0.88),
    Material(name="wheat", land_cover="cropland", winter=0.18, summer=0.70, start=88, start_days=9, end=183,
             end_days=7, dry_until=210, canopy_db=(-13.6, -19.0, -12.5, -20.5)),
    Material(name="barley", land_cover="cropland", gain=1.09, winter=0.20, summer=0.66, start=80, start_days=9, end=166,
             end_days=7, dry_until=190, canopy_db=(-13.2, -18.6, -12.4, -20.3)),
    Material(name="rapeseed", land_cover="cropland", winter=0.34, summer=0.56, start=78, start_days=10, end=182,
             end_days=8, dry_until=203, special="flower", special_day=124, special_days=9, special_frac=0.75,
             canopy_db=(-11.2, -15.6, -11.2, -18.2)),
    Material(name="maize", land_cover="cropland", winter=0.03, summer=0.84, start=170, start_days=8, end=262,
             end_days=9, dry_until=280, canopy_db=(-10.6, -16.0, -9.8, -16.8)),
    Material(name="beet", land_cover="cropland", gain=1.12, winter=0.03, summer=0.86, start=158, start_days=8, end=292,
             end_days=8, canopy_db=(-10.6, -15.8, -11.0, -18.0)),
    Material(name="potato", land_cover="cropland", gain=0.93, winter=0.03, summer=0.82, start=153, start_days=7,
             end=238, end_days=8, dry_until=256, canopy_db=(-10.8, -16.2, -11.0, -18.2)),
    Material(name="grassland", land_cover="grassland", variety=3.0, winter=0.40, summer=0.42, start=92, start_days=14,
             end=292, end_days=16, special="dry", special_day=225, special_days=28, special_frac=0.25,
             canopy_db=(-12.6, -18.8, -13.0, -21.5)),
    Material(name="shrub", land_cover="shrub", variety=3.0, canopy="leaf", ground="twigs", winter=0.32, summer=0.46,
             start=112, start_days=14, end=288, end_days=14, special_day=232, special_days=30, special_frac=0.25,
             height_m=1.6, biomass_frac=6.0, grain=0.2, gain=0.95, canopy_db=(-11.7, -17.5, -11.2, -17.8)),
    Material(name="fallow", land_cover="bare", variety=3.0, winter=0.14, summer=0.47, start=120, start_days=25, end=260,
             end_days=25, warmth_k=3.0),
    Material(name="gravel", land_cover="bare", variety=2.5, ground="gravel", winter=0.02, summer=0.04,
             grain=0.16, warmth_k=5.0, bare_db=(-13.0, -21.0, -15.0, -25.0)),
    Material(name="asphalt", land_cover="built", ground="asphalt", grain=0.04, warmth_k=5.0, bare_db=_SMOOTH),
    Material(name="tiles", **_ROOF, ground="tiles", height_m=8),
    Material(name="metal", **_ROOF, ground="metal", height_m=10),
    Material(name="lawn", land_cover="built", variety=2.5, winter=0.42, summer=0.36, start=92, start_days=14, end=292,
             end_days=16, canopy_db=(-11.5, -18.0, -11.5, -20.5)),
    Material(name="yard", land_cover="built", variety=2.5, ground="gravel", winter=0.12, summer=0.08,
             grain=0.1, warmth_k=4.0),
    Material(name="garden tree", **{**_TREE, "land_cover": "built"}, winter=0.2, start=114, start_days=7, end=296,
             end_days=9, special_day=290, special_days=13, special_frac=0.7, height_m=9, biomass_frac=3.0),
)  # fmt: skip
"""All materials. The six species and the six crops are consecutive, in the order of the factors."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of the map, its events, the variety within classes, the weather and the sensors."""

    district_m: float = 760.0
    district_jitter: float = 0.7
    stand_m: float = 150.0
    field_m: tuple[float, float, float, float] = (50.0, 95.0, 130.0, 230.0)
    """Least width, range of widths, least length and range of lengths, in metres."""
    road_m: float = 3.2
    river_cell_m: float = 3300.0
    river_m: tuple[float, float] = (16.0, 44.0)
    forest_cells_m: tuple[float, float, float] = (1500.0, 480.0, 110.0)
    forest_weights: tuple[float, float, float] = (1.0, 0.55, 0.16)
    forest_above: float = 0.42
    town_cell_m: float = 2100.0
    town_above: float = 1.05
    shrub_above: float = 1.15
    quarry_above: float = 2.0
    lake_above: float = 2.1
    mixed_stand_frac: float = 0.45
    crop_frac: float = 0.6
    grass_frac: float = 0.27
    fallow_frac: float = 0.08
    cut_years: int = 7
    cut_frac: float = 0.6
    burn_years: int = 5
    burn_cell_m: float = 950.0
    burn_m: tuple[float, float] = (150.0, 150.0)
    flood_m: float = 300.0
    flood_level: tuple[float, float] = (0.42, 0.34)
    cut_span: tuple[float, float] = (30.0, 340.0)
    """Days of the year between which forest is cut."""
    burn_span: tuple[float, float] = (150.0, 255.0)
    cut_fade_days: float = 1300.0
    """Time in which two thirds of a clearing grow over."""
    burn_fade_days: float = 500.0
    ash_fade_days: float = 110.0
    felled_frac: float = 0.74
    burnt_frac: float = 0.9
    """Share of the canopy that burning removes, as `felled_frac` for felling."""
    weed_frac: float = 0.4
    slash_frac: float = 0.35
    straw_frac: float = 0.8
    stubble_frac: float = 0.25
    sown_day: float = 290.0
    shift_days: float = 6.0
    """Standard deviation of the season's shift between parcels or stands."""
    end_spread_days: float = 6.0
    cover_spread: float = 0.12
    tint_spread: tuple[float, float, float, float] = (0.10, 0.06, 0.055, 0.07)
    """Standard deviation over parcels of the log of all bands, and of visible, near and short-wave infrared bands."""
    radar_spread_db: float = 0.9
    patch_spread: float = 0.13
    """Standard deviation within a parcel, over some 40 m."""
    gain_spread: float = 0.045
    """Standard deviation of brightness over dates, due to sun and atmosphere."""
    haze: float = 0.012
    moisture_db: float = 1.3
    wind_db: float = 1.2
    """Largest increase of open water's backscatter by wind."""
    cloud_cover: tuple[float, float] = (0.35, 0.55)
    cloudy_frac: float = 0.2
    """Opacity at and above which a pixel is masked as cloud."""
    shady_frac: float = 0.35
    """Opacity of a cloud beside the line of sight at and above which a pixel is masked as its shadow."""


@dataclass(frozen=True, kw_only=True)
class Optics:
    """How a sensor sees the ground."""

    blur_m: float
    """Standard deviation of the point spread function, in addition to the pixel itself."""
    revisit_days: float
    """Days between two passes."""
    noise_frac: float = 0.01
    """Noise relative to the signal."""
    noise_floor: float = 0.0012
    """Noise in reflectance."""
    looks: float = 6.0
    """Independent looks averaged in a radar pixel."""
    side_db: float = 0.0
    """Extra backscatter of streets and rows that face this side."""
    has_stripes: bool = False
    """Whether there are wedges without data, as from a broken scan line corrector."""


SENSORS: dict[str, Optics] = {
    "aerial": Optics(blur_m=0.1, revisit_days=365),
    "aerial-flair": Optics(blur_m=0.1, revisit_days=365),
    "spot": Optics(blur_m=0.6, revisit_days=60),
    "naip": Optics(blur_m=0.6, revisit_days=365),
    "s2": Optics(blur_m=5.5, revisit_days=5),
    "s1": Optics(blur_m=7.0, revisit_days=6, side_db=0.3),
    "s1-asc": Optics(blur_m=7.0, revisit_days=12, side_db=0.5),
    "s1-des": Optics(blur_m=7.0, revisit_days=12, side_db=-0.5),
    "l8": Optics(blur_m=14.0, revisit_days=16, noise_frac=0.006),
    "l7": Optics(blur_m=14.0, revisit_days=16, noise_frac=0.016, has_stripes=True),
    "alos": Optics(blur_m=16.0, revisit_days=46, looks=12.0),
    "modis": Optics(blur_m=0.0, revisit_days=8, noise_frac=0.008),
    "planet": Optics(blur_m=1.6, revisit_days=30, noise_frac=0.02),
    "hls": Optics(blur_m=14.0, revisit_days=3),
}
"""Optics of the modalities, by key."""

PARAMETERS = Parameters()
"""The numbers of this version."""

PARAMETERS_SHA256 = "59dcd4a1fb42b26296a8b6368e0bb57d90052cd9ddccd8346860aea49127f29d"
"""Fingerprint of all tables and numbers of this version."""
