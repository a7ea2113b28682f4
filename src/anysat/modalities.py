"""The table of modalities: one record for each input stream that the package knows.

No other module knows a modality by name. To add a sensor, add a record here, or create a `Modality` in Python or YAML
(see `read_modalities`) and pass it in `ModelConfig.modalities`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from anysat.errors import MissingFileError, RecordError, UnknownNameError

UNITS = ("reflectance", "reflectance_1e4", "DN", "dB", "linear", "K", "m", "ratio")
"""Units of band values. `reflectance_1e4` is reflectance times 10,000, `linear` is radar power."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One channel of a modality, always identified by name."""

    name: str
    """Name used by the sensor's operator, without leading zeros: `B2`, `VV`, `NIR`."""
    unit: str = "DN"
    """Default unit of the source values, one of `UNITS`. Data may state another."""
    wavelength_nm: float | None = None
    """Centre wavelength in nanometres; None for radar and for derived bands."""
    polarisation: str | None = None
    """Radar polarisation, first sent, then received: `VV`, `VH`, `HH`, `HV`."""
    common_name: str | None = None
    """Name shared between sensors, such as `red` or `nir`; also accepted when bands are matched."""
    ratio_of: tuple[str, str] | None = None
    """Names of the numerator and the denominator if the band is the ratio of two others, else None."""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UnknownNameError("unit", self.unit, UNITS, f"It was given for band {self.name!r}")
        if not _is_text(self.name):
            raise RecordError("band, name", self.name, "a name such as B2, in quotes if it is a number")
        for field in ("polarisation", "common_name"):
            if (value := getattr(self, field)) is not None and not _is_text(value):
                raise RecordError(f"band {self.name!r}, {field}", value, "one name, or none")
        if self.wavelength_nm is not None and not (_is_number(self.wavelength_nm) and self.wavelength_nm > 0):
            raise RecordError(f"band {self.name!r}, wavelength_nm", self.wavelength_nm, "a positive number, or none")
        if self.ratio_of is not None:
            parts: Any = self.ratio_of
            if not isinstance(parts, (tuple, list)) or len(parts) != 2 or not all(map(_is_text, parts)):
                raise RecordError(f"band {self.name!r}, ratio_of", parts, "the names of two bands, such as [VV, VH]")
            object.__setattr__(self, "ratio_of", tuple(parts))

    @property
    def match_keys(self) -> frozenset[str]:
        """Spellings that identify the band in a file."""
        return frozenset(band_key(name) for name in (self.name, self.common_name) if name)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def band_key(name: str) -> str:
    """Return the spelling of a band name used for comparison: `B02`, `b2` and `B2` are the same band.

    Examples:
        >>> band_key("B02") == band_key("b2"), band_key("B8A")
        (True, 'B8A')
    """
    key = name.strip().upper()
    head, tail = key[:1], key[1:]
    return head + tail.lstrip("0") if head == "B" and tail[:1] == "0" and tail.strip("0") else key


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One input stream with fixed bands and pixel spacing (paper section 4.1, tables 2 and C).

    Raises:
        RecordError: A field has a value that is not possible.

    Examples:
        >>> s2 = MODALITIES["s2"]
        >>> s2.gsd_m, s2.subpatch_m, len(s2.bands)
        (10.0, 10.0, 10)
    """

    key: str
    """Name of the modality in inputs and weights, such as `s2`, `s1-asc` or `aerial`."""
    sensor: str
    """The instrument or product behind it."""
    bands: tuple[Band, ...]
    """Bands, in the order of the model's weights."""
    gsd_m: float
    """Ground sampling distance: the side of one pixel in metres, after any resampling by the provider."""
    is_temporal: bool
    """True for a series with dates, False for a single image."""
    subpatch_px: int = 1
    """Side of a sub-patch, the piece that becomes one token, in pixels; 1 for series."""
    is_radar: bool = False
    """True for radar, False for optical imagery."""
    covers_tile: bool = False
    """True for a context modality, whose pixels are larger than patches: its tokens stand for the whole tile."""
    normalises_over_dates: bool = False
    """True if the projector normalises the features of a pixel over channels and dates before it pools the dates."""
    date_period_days: int = 367
    """Base of the denominators of the date code. The published weights use 367, and 366 for `l8`."""
    dropout_prob: float = 0.0
    """Dropout probability inside the projector during training."""

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise RecordError(f"modality {self.key!r}, {name}", getattr(self, name), expected)

        bands: Any = self.bands
        if not isinstance(bands, (tuple, list)) or not all(isinstance(band, Band) for band in bands):
            refuse("bands", "a list of bands, such as [red, nir]")
        for name in ("is_temporal", "is_radar", "covers_tile", "normalises_over_dates"):
            if not isinstance(getattr(self, name), bool):
                refuse(name, "true or false")
        object.__setattr__(self, "bands", tuple(bands))
        if not _is_text(self.key) or any(c.isspace() or c in "._{}" for c in self.key):
            refuse("key", "a short name without spaces, dots, underscores or braces")
        if self.key in _TAKEN:
            refuse("key", "another name, because torch uses this one itself")
        if not _is_text(self.sensor):
            refuse("sensor", "a name, in quotes if it is a number or a date")
        names = [band.name for band in self.bands]
        if not names or len(set(map(band_key, names))) < len(names):
            refuse("bands", "at least one band, each name once (B1 and B01 are one)")
        if not (_is_number(self.gsd_m) and self.gsd_m > 0):
            refuse("gsd_m", "a positive number of metres")
        object.__setattr__(self, "gsd_m", float(self.gsd_m))
        pixels: Any = self.subpatch_px
        most = 1 if self.is_temporal or self.covers_tile else math.inf
        if isinstance(pixels, bool) or not isinstance(pixels, numbers.Integral) or not 1 <= int(pixels) <= most:
            refuse("subpatch_px", "a whole number of pixels above zero, 1 for a series and for context of the tile")
        object.__setattr__(self, "subpatch_px", int(pixels))
        if not (_is_number(self.date_period_days) and self.date_period_days >= 2):
            refuse("date_period_days", "two days or more")
        if not (_is_number(self.dropout_prob) and 0 <= self.dropout_prob < 1):
            refuse("dropout_prob", "a probability below 1")
        for band in self.bands:
            if band.ratio_of is not None and not set(band.ratio_of) <= set(names):
                refuse("bands", f"the parts of the ratio band {band.name!r} among the bands")

    def __reduce__(self) -> Any:
        """Pickle a record that the package ships as its key, because the batches sent between processes hold many."""
        if _SHIPPED.get(self.key) is self:
            return _of_table, (self.key,)
        return _restore, (type(self), dict(vars(self)))

    @property
    def subpatch_m(self) -> float:
        """Side of a sub-patch, in metres."""
        return self.gsd_m * self.subpatch_px

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands, in the model's order."""
        return tuple(band.name for band in self.bands)

    @property
    def units(self) -> tuple[str, ...]:
        """Default units of the bands, in the model's order."""
        return tuple(band.unit for band in self.bands)

    def find_band(self, name: str) -> int:
        """Return the index of the band with this name or common name.

        Raises:
            UnknownNameError: The modality has no such band.
        """
        for index, band in enumerate(self.bands):
            if band_key(name) in band.match_keys:
                return index
        raise UnknownNameError("band", name, self.band_names, f"Bands of {self.key!r}: {', '.join(self.band_names)}")

    def check_same(self, other: Modality) -> None:
        """Check that a model would treat `other`, a record with the same key, in the same way.

        Raises:
            RecordError: A field differs that matters to the model. The message names it.
        """
        for name in ("band_names", *_SEEN_FIELDS):
            if getattr(other, name) != getattr(self, name):
                where = f"modality {self.key!r}, {name.removesuffix('_names')}"
                raise RecordError(where, getattr(other, name), f"{getattr(self, name)!r}, as in the model")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, as stored in checkpoints and YAML. `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Modality:
        """Create a modality from plain values.

        Bands may be given by name only.

        Raises:
            RecordError, UnknownNameError: A field is missing, unknown or not possible.
        """
        given = record.get("bands") or ()
        if not isinstance(given, (list, tuple)):
            raise RecordError(f"modality {record.get('key')!r}, bands", given, "a list of bands, such as [red, nir]")
        bands = [Band(name=band) if isinstance(band, str) else _record(Band, band, "band") for band in given]
        return cast("Modality", _record(cls, {**record, "bands": tuple(bands)}, "modality"))


def _of_table(key: str) -> Modality:
    return _SHIPPED[key]


def _restore(cls: type[Modality], values: dict[str, Any]) -> Modality:
    return cls(**values)


_TAKEN = frozenset(
    ["apply", "bfloat16", "buffers", "children", "clear", "compile", "cpu", "cuda", "double", "eval", "float",
     "forward", "half", "ipu", "items", "keys", "modules", "mtia", "parameters", "pop", "to", "train", "training",
     "type", "update", "values", "xpu"]
)  # fmt: skip
"""Names that `torch.nn.ModuleDict`, which holds the projectors by key, uses itself. Listed to avoid importing torch."""

_SEEN_FIELDS = ("gsd_m", "is_temporal", "subpatch_px", "covers_tile", "normalises_over_dates", "date_period_days")


def _record(cls: type[Any], values: Mapping[str, Any], kind: str) -> Any:
    known = {field.name for field in fields(cls)}
    if not isinstance(values, Mapping):
        raise RecordError(kind, values, f"a name, or fields among {', '.join(sorted(known))}")
    for name in values:
        if name not in known:
            raise UnknownNameError(f"{kind} field", name, known)
    try:
        return cls(**values)
    except TypeError as error:
        raise RecordError(kind, dict(values), f"all required fields ({error})") from error


def read_modalities(path: str | Path) -> tuple[Modality, ...]:
    """Read modality records from a YAML file.

    Args:
        path: A file with one record or a list of records. Their fields are those of `Modality`.

    Returns:
        The modalities, in the order of the file.

    Raises:
        MissingFileError: There is no such file.
        RecordError, UnknownNameError: The file is not valid YAML, or a field is missing, unknown or not possible.
    """
    import yaml  # needed only here

    from anysat.yaml_files import parse_yaml

    path = Path(path)
    if not path.is_file():
        raise MissingFileError(path, "a YAML file with one modality record or a list of them")
    try:
        content = parse_yaml(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError for an impossible date or number
        raise RecordError(f"modality file {path}", str(error), "valid YAML") from error
    records = content if isinstance(content, list) else [content]
    if not all(isinstance(record, Mapping) for record in records):
        raise RecordError(f"modality file {path}", content, "one record or a list of records")
    return tuple(Modality.from_dict(record) for record in records)


def find_modality(key: str, known: Iterable[Modality]) -> Modality:
    """Return the modality with this key among `known`.

    Raises:
        UnknownNameError: There is none. The message names the closest keys and the command that lists all.
    """
    known = tuple(known)
    for modality in known:
        if modality.key == key:
            return modality
    hint = "`anysat sensors` lists all; a model takes those of its `ModelConfig.modalities`"
    raise UnknownNameError("modality", key, [modality.key for modality in known], hint)


def _optical(unit: str, **wavelengths_nm: float) -> tuple[Band, ...]:
    return tuple(
        Band(name=name, unit=unit, wavelength_nm=nm, common_name=_COMMON.get(name))
        for name, nm in wavelengths_nm.items()
    )


def _radar(unit: str, *polarisations: str) -> tuple[Band, ...]:
    return tuple(Band(name=name, unit=unit, polarisation=name) for name in polarisations)


_COMMON = {"R": "red", "G": "green", "B": "blue", "NIR": "nir"}


def _with_common(bands: tuple[Band, ...], **common_names: str) -> tuple[Band, ...]:
    return tuple(replace(band, common_name=common_names.get(band.name)) for band in bands)


_S2 = _with_common(
    _optical(
        "reflectance_1e4", B2=492.4, B3=559.8, B4=664.6, B5=704.1, B6=740.5, B7=782.8, B8=832.8, B8A=864.7,
        B11=1613.7, B12=2202.4,
    ),
    B2="blue", B3="green", B4="red", B5="rededge1", B6="rededge2", B7="rededge3", B8="nir", B8A="nir08",
    B11="swir16", B12="swir22",
)  # fmt: skip
_L7 = _with_common(
    _optical("reflectance_1e4", B1=485, B2=560, B3=660, B4=835, B5=1650, B7=2220),
    B1="blue", B2="green", B3="red", B4="nir", B5="swir16", B7="swir22",
)  # fmt: skip
_L8 = _with_common(
    _optical(
        "reflectance_1e4", B8=589.5, B1=443.0, B2=482.0, B3=561.4, B4=654.6, B5=864.7, B6=1608.9, B7=2200.7, B9=1373.4
    ),
    B8="pan", B1="coastal", B2="blue", B3="green", B4="red", B5="nir08", B6="swir16", B7="swir22", B9="cirrus",
) + _with_common(_optical("K", B10=10895, B11=12005), B10="lwir11", B11="lwir12")  # fmt: skip
_MODIS = _with_common(
    _optical("reflectance_1e4", B1=645, B2=858.5, B3=469, B4=555, B5=1240, B6=1640, B7=2130),
    B1="red", B2="nir", B3="blue", B4="green", B6="swir16", B7="swir22",
)  # fmt: skip
_VV_VH = _radar("dB", "VV", "VH")
_S1 = (*_VV_VH, Band(name="VV/VH", unit="ratio", ratio_of=("VV", "VH")))
_ALOS = (*_radar("DN", "HH", "HV"), Band(name="HH/HV", unit="ratio", ratio_of=("HH", "HV")))
_HLS = tuple(band for band in _S2 if band.name in ("B2", "B3", "B4", "B8A", "B11", "B12"))

_RECORDS = (
    # Stored order of the TreeSatAI rasters that the weights were trained on: infrared first.
    Modality(key="aerial", sensor="aerial orthophoto (TreeSatAI)", bands=_optical("DN", NIR=820, G=550, B=470, R=650),
             gsd_m=0.2, is_temporal=False, subpatch_px=10),
    Modality(key="aerial-flair", sensor="aerial orthophoto and height above ground (FLAIR)",
             bands=(*_optical("DN", R=650, G=550, B=470, NIR=820), Band(name="elevation", unit="DN")),
             gsd_m=0.2, is_temporal=False, subpatch_px=10),
    Modality(key="spot", sensor="SPOT 6/7, resampled to 1 m", bands=_optical("DN", R=660, G=560, B=485),
             gsd_m=1.0, is_temporal=False, subpatch_px=10),
    Modality(key="naip", sensor="NAIP aerial", bands=_optical("DN", R=635, G=555, B=465, NIR=845),
             gsd_m=1.25, is_temporal=False, subpatch_px=8),
    Modality(key="s2", sensor="Sentinel-2 MSI", bands=_S2, gsd_m=10.0, is_temporal=True, normalises_over_dates=True),
    Modality(key="s1", sensor="Sentinel-1 C-band SAR", bands=_S1, gsd_m=10.0, is_temporal=True, is_radar=True,
             dropout_prob=0.2),
    Modality(key="s1-asc", sensor="Sentinel-1 C-band SAR, ascending orbits", bands=_VV_VH, gsd_m=10.0,
             is_temporal=True, is_radar=True, dropout_prob=0.2),
    Modality(key="s1-des", sensor="Sentinel-1 C-band SAR, descending orbits", bands=_VV_VH, gsd_m=10.0,
             is_temporal=True, is_radar=True, dropout_prob=0.2),
    Modality(key="l8", sensor="Landsat 8/9 OLI and TIRS, resampled to 10 m", bands=_L8, gsd_m=10.0, is_temporal=True,
             date_period_days=366, dropout_prob=0.2),
    Modality(key="l7", sensor="Landsat 7 ETM+", bands=_L7, gsd_m=30.0, is_temporal=True, dropout_prob=0.2),
    Modality(key="alos", sensor="ALOS-2 PALSAR-2 L-band SAR", bands=_ALOS, gsd_m=30.0, is_temporal=True, is_radar=True,
             dropout_prob=0.2),
    Modality(key="modis", sensor="MODIS", bands=_MODIS, gsd_m=250.0, is_temporal=True, covers_tile=True,
             dropout_prob=0.2),
    Modality(key="planet", sensor="PlanetScope monthly mosaic", bands=_optical("DN", R=630, G=545, B=485),
             gsd_m=3.0, is_temporal=False, subpatch_px=4),
    Modality(key="hls", sensor="Harmonized Landsat Sentinel-2", bands=_HLS, gsd_m=30.0, is_temporal=True,
             dropout_prob=0.2),
)  # fmt: skip

_SHIPPED = {modality.key: modality for modality in _RECORDS}

MODALITIES: dict[str, Modality] = dict(_SHIPPED)
"""All modalities of the package, by key."""

RELEASED: tuple[Modality, ...] = tuple(
    _SHIPPED[key]
    for key in ("aerial", "aerial-flair", "alos", "l7", "l8", "modis", "naip", "s1", "s1-asc", "s2", "spot")
)
"""The 11 modalities of the published weights, in the order of their state dict."""
