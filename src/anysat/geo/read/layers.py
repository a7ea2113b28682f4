"""One raster or cube as stored in a file: band names, units, dates, grid, and a function that reads a part of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.dates import Dates
from anysat.errors import AnySatError, SourceError
from anysat.geo.degrees import crosses_180, wrapped
from anysat.modalities import Modality, band_key

Pixels = NDArray[np.float32]
"""(time band row col), NaN where there is no data."""
Load = Callable[[Sequence[int], Sequence[int], slice, slice], Pixels]
"""A function that reads some times, bands, rows and columns."""

_UNIT_SPELLINGS = {
    "reflectance": ("reflectance", "surface reflectance", "surface_reflectance", "toa reflectance", "unit reflectance"),
    "reflectance_1e4": (
        "reflectance_1e4", "reflectance*10000", "reflectance * 10000", "reflectance x 10000", "reflectance×10000",
        "reflectance*1e4", "reflectance 1e4", "1e-4", "0.0001",
    ),
    "DN": ("dn", "digital number", "digital numbers", "count", "counts"),
    "dB": ("db", "decibel", "decibels"),
    "linear": ("linear", "linear power", "linear_power", "power", "natural", "amplitude^2"),
    "K": ("k", "kelvin", "degree_kelvin", "degrees_kelvin"),
    "m": ("m", "metre", "metres", "meter", "meters"),
    "ratio": ("ratio",),
}  # fmt: skip
_UNIT_OF = {spelling: unit for unit, spellings in _UNIT_SPELLINGS.items() for spelling in spellings}
_TIME = r"(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?(?!\d)"
_DATES = (
    re.compile(r"(?<!\d)((?:19|20)\d\d)(-?)(\d\d)\2(\d\d)(?!\d)"),
    re.compile(r"(?<![0-9A-Za-z])((?:19|20)\d\d)()(\d\d)(\d\d)" + _TIME),  # 20200412101031
    re.compile(r"(?<!\d)((?:19|20)\d\d)([_.])(\d\d)\2(\d\d)(?![0-9A-SU-Za-z])"),  # but not 2020_10_20m
)
"""Spellings of a date, the least ambiguous first."""
_LANDSAT_SCENE = re.compile(r"(?<![0-9A-Za-z])L[A-Z][1-9]\d{6}((?:19|20)\d\d)(\d{3})(?!\d)")
"""Landsat scene name from before 2017, such as LC80200392015216LGN00, with year and day of the year."""
_NUMBERED = re.compile(r"(band|layer|channel|b_)?[ _]?\d*", re.IGNORECASE)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """Bands that share one pixel grid and one list of dates; nothing is read until `load` is called."""

    path: str
    """Where it comes from, for messages."""
    bands: tuple[tuple[str, ...], ...]
    """Possible names of each stored band, best first; empty if the file does not name it."""
    labels: tuple[str, ...] = ()
    """Each stored band as the file calls it, even if that is only a number, such as `band_1`; empty if not known."""
    units: tuple[str | None, ...]
    """Unit of each stored band as the file spells it."""
    shape_px: tuple[int, int]
    """Rows and columns."""
    geobox: GeoBox | None
    """Pixel grid; None without georeference."""
    has_crs: bool = False
    """Whether its reference system is known, even if its grid is not. Set for cubes only."""
    load: Load
    dates: Dates | None = None
    """One per time; None for a single time without a date."""
    scalings: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each stored band, which `load` applies; empty if there are none."""
    load_stored: Load | None = None
    """Reads the numbers as stored, including nodata, and NaN where a mask or alpha band of the file hides them; None if
    `load` does that already."""
    nodata: float | None = None
    """Stored number that means "no data" in the file, or None. `load` returns NaN in its place."""
    scene: str = ""
    """Acquisition that it is part of: the stem of its file, or the item of a catalog."""
    notes: tuple[str, ...] = ()
    """What a user should know about it."""
    files: tuple[str, ...] = ()
    """Addresses of its files, if its path is a name in a catalog."""
    stated: str = ""
    """What a catalog states about its numbers and its grid. If that changes, it is another layer."""

    @property
    def num_times(self) -> int:
        """Number of its dates; 1 for an undated image."""
        return 1 if self.dates is None else len(self.dates)

    @property
    def spelled(self) -> tuple[tuple[str, ...], ...]:
        """What a user may call each stored band: as the file does, or one of its possible names."""
        if not self.labels:
            return self.bands
        return tuple((label, *names) for label, names in zip(self.labels, self.bands, strict=True))

    def north_up(self) -> Layer:
        """Return the layer with rows from north to south and columns from west to east.

        Its reference system becomes a plain EPSG code if it has one, and longitudes lie between -180 and 180.

        Raises:
            SourceError: It lies on both sides of 180 degrees.
        """
        if self.geobox is None or self.geobox.crs is None:
            return replace(self, geobox=None)
        if crosses_180(placed := wrapped(self.geobox)):
            raise SourceError(
                self.path, "it is in degrees and lies on both sides of 180 degrees",
                "cut it there, or reproject it to metres, as with `gdalwarp -t_srs EPSG:32760`",
            )  # fmt: skip
        affine, epsg = placed.affine, self.geobox.crs.to_epsg()
        crs = CRS(f"EPSG:{epsg}") if epsg else self.geobox.crs
        is_rotated = bool(affine.b or affine.d)
        flip_rows, flip_cols = affine.e > 0 and not is_rotated, affine.a < 0 and not is_rotated
        if not (flip_rows or flip_cols) and str(crs) == str(self.geobox.crs) and placed is self.geobox:
            return self
        placed = placed.flipy() if flip_rows else placed
        placed = placed.flipx() if flip_cols else placed
        turned = replace(self, geobox=GeoBox(placed.shape, placed.affine, crs))
        if not (flip_rows or flip_cols):
            return turned
        flips = self.shape_px[0] if flip_rows else None, self.shape_px[1] if flip_cols else None
        load_stored = self.load_stored and partial(_flipped, self.load_stored, *flips)
        return replace(turned, load=partial(_flipped, self.load, *flips), load_stored=load_stored)

    def as_stored(self) -> Layer:
        """Return the layer with its numbers as stored."""
        return replace(self, load=self.load_stored or self.load, scalings=())

    def decoded_as(
        self, scaling: tuple[float, float] | None, offset_from: np.datetime64 | None, nodata: float | None
    ) -> Layer:
        """Return the layer with its numbers decoded as the user says.

        Args:
            scaling: Scale and offset of all bands; None leaves them to the file.
            offset_from: First day for which the offset holds; None for all.
            nodata: Stored number that means "no data"; None leaves it to the file.
        """
        if scaling is None and nodata is None:
            return self
        scalings = self.scalings if scaling is None else (scaling,) * len(self.bands)
        is_plain = all(scaling == (1, 0) for scaling in scalings)
        return replace(
            self, load=partial(_decoded, self, scalings, offset_from, nodata), scalings=() if is_plain else scalings,
            load_stored=self.load_stored or self.load,
        )  # fmt: skip


def _flipped(
    load: Load, rows: int | None, cols: int | None,
    times: Sequence[int], bands: Sequence[int], row: slice, col: slice,
) -> Pixels:  # fmt: skip
    """Read a part of a flipped layer. `rows` and `cols` are the layer's size along flipped axes, None along others."""
    row = row if rows is None else slice(rows - row.stop, rows - row.start)
    col = col if cols is None else slice(cols - col.stop, cols - col.start)
    return load(times, bands, row, col)[..., :: 1 if rows is None else -1, :: 1 if cols is None else -1]


def _decoded(
    layer: Layer, scalings: Sequence[tuple[float, float]], offset_from: np.datetime64 | None, nodata: float | None,
    times: Sequence[int], bands: Sequence[int], row: slice, col: slice,
) -> Pixels:  # fmt: skip
    """Read a part of a layer, decoded as the user says. Its own nodata holds if no other is given."""
    where = (times, bands, row, col)
    if nodata is None:
        seen = np.isfinite(decoded := layer.load(*where))
        numbers = layer.as_stored().load(*where) if layer.scalings else decoded
    else:
        numbers = layer.as_stored().load(*where)
        seen = numbers != np.float32(nodata)
    if not scalings:
        return np.where(seen, numbers, np.nan).astype(np.float32)
    scale, offset = np.array([scalings[band] for band in bands]).T[:, None, :, None, None]
    if offset_from is not None and layer.dates is not None:
        offset = offset * (layer.dates >= offset_from)[list(times)][:, None, None, None]
    return np.where(seen, numbers * scale + offset, np.nan).astype(np.float32)


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn the errors of libraries about a file into a `SourceError` that names it."""
    try:
        yield
    except AnySatError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        problem = str(error).strip().split("\n")[0] or type(error).__name__
        raise SourceError(path, f"it cannot be read ({problem})", _advice_on(problem)) from error


_ADVICE = {
    "response code: 404|does not exist|NoSuchKey|NoSuchBucket": "there is no such file: check its address",
    "AWS_|credentials|Access ?Denied|response code: 40[13]|Signature|ExpiredToken|_ACCESS_KEY|AZURE_|OAUTH":
        "access is refused: set the keys of the service (on S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_NO_SIGN_REQUEST=YES for public files), or renew the signature of expired addresses",
    "resolve host|[Tt]imed? ?out|[Cc]onnect|CURL error|response code: (429|5)":
        "the service does not answer: check the network, and try again",
}  # fmt: skip
"""Advice by GDAL's message (a regular expression) about a file on the network."""


def _advice_on(problem: str) -> str:
    """Return advice on a file that cannot be read.

    >>> _advice_on("HTTP response code: 404")
    'there is no such file: check its address'
    """
    found = (advice for said, advice in _ADVICE.items() if re.search(said, problem))
    return next(found, "check that the file is complete")


def known_unit(spelling: str | None) -> str | None:
    """Return our name of a unit that a file spells in its own way; None if it is not known.

    >>> known_unit("decibels"), known_unit("1")
    ('dB', None)
    """
    return _UNIT_OF.get((spelling or "").strip().lower())


def date_in(text: str, *, is_strict: bool = False) -> np.datetime64 | None:
    """Find the first date in a text: YYYYMMDD or YYYY-MM-DD, else YYYYMMDDhhmmss, YYYY_MM_DD or YYYY.MM.DD.

    Names of Landsat scenes from before 2017, with the day of the year, come first. If `is_strict`, only YYYYMMDD and
    YYYY-MM-DD are tried besides, because the others may be other numbers.

    >>> date_in("S2A_MSIL2A_20170613T101031_87_48_B02"), date_in("s2_2020_04_12")
    (np.datetime64('2017-06-13'), np.datetime64('2020-04-12'))
    """
    for year, day in _LANDSAT_SCENE.findall(text):
        if 1 <= int(day) <= 366:
            return np.datetime64(f"{year}-01-01", "D") + (int(day) - 1)
    for spelling in _DATES[:1] if is_strict else _DATES:
        for year, _, month, day in spelling.findall(text):
            try:
                return np.datetime64(f"{year}-{month}-{day}", "D")
            except ValueError:  # digits that are not a date
                continue
    return None


def names_of(text: str | None) -> tuple[str, ...]:
    """Return the possible names of a band with this label; none if it is just a number.

    >>> names_of("SR_B4"), names_of("Band 1")
    (('SR_B4', 'B4'), ())
    """
    label = (text or "").strip()
    return () if _NUMBERED.fullmatch(label) else tuple(dict.fromkeys((label, re.split(r"[_.-]", label)[-1])))


def names_in_stem(path: Path) -> tuple[str, ...]:
    """Return the words of a file name, which may name its only band, last first."""
    return tuple(word for word in reversed(re.split(r"[^0-9A-Za-z]+", path.stem)) if word)


def band_index(name: str, modality: Modality) -> int | None:
    """Return the index of the modality's band of this name, or None."""
    return next((index for index, band in enumerate(modality.bands) if band_key(name) in band.match_keys), None)
