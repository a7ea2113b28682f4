"""Descriptions of sources by the user: where imagery lies and how to read it, as words, a YAML file or a mapping."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from anysat.errors import MissingFileError, RecordError, UnknownNameError
from anysat.geo.read.addresses import is_remote, suffix_of, unsigned
from anysat.geo.read.quality import Quality
from anysat.modalities import UNITS

RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".hdf", ".h5", ".hdf5", ".nc", ".nc4", ".zarr")
"""Suffixes of rasters, whether they can be read or not."""
Between = tuple[np.datetime64, np.datetime64]
"""First and last day, both included."""
LonLatBox = tuple[float, float, float, float]
"""West, south, east and north in degrees."""
SKIPPED = "-"
"""Stands in `bands` for a stored band that is not read."""


@dataclass(frozen=True, kw_only=True)
class InputPath:
    """One input as typed by the user: `MODALITY=PATH`, optionally with `::PART` and `@DATE`.

    >>> InputPath.parse("s2=tile.h5::sen-2")
    InputPath(key='s2', path='tile.h5', part='sen-2', date=None)
    """

    key: str
    """Modality key."""
    path: str
    part: str | None = None
    """Series of an HDF5 file, or variable of a cube."""
    date: np.datetime64 | None = None
    """Date of an undated image, or the one date to use of several."""

    @classmethod
    def parse(cls, words: str) -> InputPath:
        """Parse an input.

        Raises:
            RecordError: It is not `MODALITY=PATH`, or its date is not valid.
        """
        key, equals, path = words.partition("=")
        if not equals or not key or not path:
            raise RecordError("input", words, "MODALITY=PATH, such as s2=cube.nc")
        date = None
        if found := re.search(r"@(\d{4}-\d\d-\d\d)$", path):
            path = path[: found.start()]
            try:
                date = np.datetime64(found[1], "D")
            except ValueError:
                raise RecordError("input", words, "a calendar date after @") from None
        path, _, part = path.partition("::")
        return cls(key=key, path=path, part=part or None, date=date)

    def __str__(self) -> str:
        return self.path + (f"::{self.part}" if self.part else "")


@dataclass(frozen=True, kw_only=True)
class SourceDescription:
    """One source of imagery: where it lies, and what its metadata do not say or say wrongly.

    Raises:
        RecordError, UnknownNameError: A field has a value that is not possible, or fields contradict each other.

    >>> SourceDescription(path="cube.nc", bands={"B2": "blue"}, dates=("2024-03-01", "2024-10-31")).dates
    (np.datetime64('2024-03-01'), np.datetime64('2024-10-31'))
    """

    path: str | None = None
    """File or folder, with `::PART` and `@DATE` as in `MODALITY=PATH`, or the address of one GeoTIFF. Either this or
    `stac`."""
    stac: str | None = None
    """STAC catalog, collection, item or list of items (a JSON file or its address), or the address of a STAC API."""
    collection: tuple[str, ...] = ()
    """Collections of a STAC catalog to use; required if it has several."""
    bands: Mapping[str, str] | tuple[str, ...] = field(default_factory=dict)
    """Band, asset or variable for each band of the modality, such as `{B2: blue}`, or the names of all stored bands in
    their order, such as `[R, G, B, NIR]`. Bands that are not given are matched by the names in the metadata."""
    units: str | Mapping[str, str] = field(default_factory=dict)
    """Unit of all bands, or of each band. Takes precedence over the metadata."""
    scale: float | None = None
    """A value is the stored number times `scale` plus `offset`. Giving one of them replaces both in the metadata, and
    the rule for Sentinel-2 since 2022."""
    offset: float | None = None
    """See `scale`. -1000 for Sentinel-2 numbers of processing baseline 04.00 and later that were not shifted."""
    offset_from: np.datetime64 | None = None
    """First day for which `offset` holds; None for all. For Sentinel-2 as delivered at the time: 2022-01-25."""
    nodata: float | None = None
    """Stored number that means "no data", instead of that in the metadata."""
    quality: Quality | None = None
    """Layer that marks clouds and other invalid pixels; None masks nothing."""
    dates: Between | None = None
    """First and last day to use, both included."""

    def __post_init__(self) -> None:
        one_place = "either a path or a STAC address, not both"
        if self.path is not None and self.stac is not None:
            raise RecordError("path", self.path, one_place)
        for name in ("path", "stac"):
            if getattr(self, name) is not None and not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise RecordError(name, getattr(self, name), "text that is not empty")
        for name, value in (("collection", _names(self.collection)), ("dates", _between(self.dates)),
                            ("bands", _bands(self.bands)), ("quality", as_quality(self.quality))):  # fmt: skip
            object.__setattr__(self, name, value)
        if self.offset_from is not None:
            object.__setattr__(self, "offset_from", _day("offset_from", self.offset_from))
        if self.collection and self.stac is None:
            raise RecordError("collection", self.collection, "nothing, since `stac` is not given")
        if self.stac is not None and self.bands and not isinstance(self.bands, Mapping):
            raise RecordError("bands", self.bands, "assets by band, as {B2: blue}; a list is only for a `path`")
        if self.offset_from is not None and not self.offset:
            raise RecordError("offset_from", self.offset_from, "an `offset` that holds from that day")
        for name in ("scale", "offset", "nodata"):
            _check_number(name, getattr(self, name))
        given = self.units.values() if isinstance(self.units, Mapping) else [self.units]
        for unit in given:
            if unit not in UNITS:
                raise UnknownNameError("unit", unit, UNITS)

    @property
    def where(self) -> str:
        """Its path or address without signature, for messages and metadata."""
        return unsigned(self.path or self.stac or "data")

    @property
    def file(self) -> str:
        """File or folder without part and date, or address of a catalog; empty for data in memory."""
        return self.stac or ("" if self.path is None else InputPath.parse(f"input={self.path}").path)

    @property
    def scaling(self) -> tuple[float, float] | None:
        """Scale and offset, if one of them is given."""
        if self.scale is None and self.offset is None:
            return None
        return 1.0 if self.scale is None else float(self.scale), float(self.offset or 0)

    def of_folder(self, folder: Path) -> SourceDescription:
        """Return the description with paths relative to a folder resolved."""
        quality = self.quality
        if quality is not None and quality.layer is not None and (folder / quality.layer.partition("::")[0]).exists():
            quality = replace(quality, layer=str(folder / quality.layer))
        path, stac = (
            place if place is None or is_remote(place) else str(folder / place) for place in (self.path, self.stac)
        )
        return replace(self, quality=quality, path=path, stac=stac)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values as in YAML, without empty fields. `from_dict` is the inverse."""
        return cast("dict[str, Any]", _plain(asdict(self)))

    @classmethod
    def from_dict(cls, record: Any, where: str = "source") -> SourceDescription:
        """Create a description from plain values, as in YAML: a path, or fields. Unknown fields are refused."""
        if isinstance(record, str):
            place = "stac" if is_stac(record) else "path"
            record = {place: record}
        values = _known(record, where, [field.name for field in fields(cls)])
        if values.get("path") is None and values.get("stac") is None:
            raise RecordError(where, dict(values), "a `path` or a `stac` (or, in Python, a `cube`)")
        return _of_values(values, where)


class DescribedCube(NamedTuple):
    """Data in memory with a description, given in Python as `{"cube": data, "quality": "scl"}`."""

    cube: Any
    """An xarray Dataset or DataArray with a reference system, or a list of STAC items.

    Dimensions are `time`, `band`, `y`, `x` in any order. Without `time`, the cube is one date; without `band`, each
    variable is a band. Lazy blocks stay lazy: a window computes those that it touches, in the calling thread. The
    attributes `scale_factor`, `add_offset`, `_FillValue` and `nodata` are understood as not yet applied.
    """
    description: SourceDescription
    """Everything else that is known about it, without a place."""


def _of_values(values: Mapping[str, Any], where: str) -> SourceDescription:
    try:
        return SourceDescription(**values)
    except RecordError as error:
        raise _within(where, error) from None


def _plain(value: Any) -> Any:
    """Convert a value to dictionaries, lists, texts and numbers, without empty entries."""
    if isinstance(value, Mapping):
        empty = [
            key for key, part in value.items() if part is None or (isinstance(part, (tuple, Mapping)) and not part)
        ]
        return {key: _plain(part) for key, part in value.items() if key not in empty}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, np.datetime64) else value


def as_quality(given: Any) -> Quality | None:
    """Create a quality layer from plain values: the name of a kind, or fields.

    Raises:
        UnknownNameError: There is no such kind or field.
    """
    if given is None or isinstance(given, Quality):
        return given
    if isinstance(given, str):
        return Quality(kind=given)
    return Quality(**_known(given, "quality", [field.name for field in fields(Quality)]))


def is_url(location: str) -> bool:
    """Whether a location is an address on the network."""
    return location.startswith(("http://", "https://"))


def is_stac(location: str) -> bool:
    """Whether a location is read as STAC: a JSON file, or an address without the suffix of a raster.

    >>> is_stac("https://host/v1"), is_stac("items.json"), is_stac("https://host/scene.tif?signature=x")
    (True, True, False)
    """
    suffix = suffix_of(location)
    return suffix in (".json", ".geojson") or (is_url(location) and suffix not in RASTERS)


def describe_sources(given: str | Path | Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the described sources by modality key.

    Args:
        given: Words `MODALITY=PATH` and YAML files, or a mapping. A value of the mapping is a path, a
            `SourceDescription`, its fields, data such as `DescribedCube.cube`, which is returned unchanged, or a `cube`
            with other fields, which becomes a `DescribedCube`. Paths in a YAML file are relative to its folder.

    Raises:
        RecordError: A modality is given twice, or a value is not possible.
        MissingFileError, UnknownNameError: There is no such YAML file, field, unit or kind.
    """
    if isinstance(given, Mapping):
        return {key: _described(value, str(key)) for key, value in given.items()}
    words = [str(given)] if isinstance(given, (str, Path)) else [str(word) for word in given]
    found: dict[str, Any] = {}
    for word in words:
        for key, description in _of_word(word).items():
            if key in found:
                raise RecordError("input", word, f"each modality once, and {key!r} is {found[key].where} already")
            found[key] = description
    if not found:
        raise RecordError("inputs", words, "at least one MODALITY=PATH, or a YAML file of sources")
    return found


def _of_word(word: str) -> dict[str, SourceDescription]:
    if "=" not in word and Path(word).suffix.lower() in (".yaml", ".yml"):
        return _of_yaml(Path(word))
    given = InputPath.parse(word)
    return {given.key: SourceDescription.from_dict(word.partition("=")[2])}


def _of_yaml(file: Path) -> dict[str, SourceDescription]:
    import yaml

    from anysat.yaml_files import parse_yaml

    if not file.is_file():
        raise MissingFileError(file, "a YAML file of sources")
    try:
        content = parse_yaml(file.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecordError(str(file), str(error), "valid YAML") from error
    if not isinstance(content, Mapping) or not content:
        raise RecordError(str(file), content, "modality keys with a path or fields, such as `s2: {path: cube.nc}`")
    return {
        str(key): SourceDescription.from_dict(value, f"{file}, {key}").of_folder(file.parent.absolute())
        for key, value in content.items()
    }


def _described(value: Any, key: str) -> Any:
    if isinstance(value, Mapping) and not hasattr(value, "dims") and "cube" in value:
        own = [one.name for one in fields(SourceDescription) if one.name not in ("path", "stac", "collection")]
        said = _known({name: part for name, part in value.items() if name != "cube"}, key, own)
        return DescribedCube(value["cube"], _of_values(said, key))
    if isinstance(value, (str, Mapping)) and not hasattr(value, "dims"):
        return SourceDescription.from_dict(value, key)
    return SourceDescription.from_dict(str(value), key) if isinstance(value, Path) else value


def _known(record: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise RecordError(where, record, f"a name or path, or fields among {', '.join(known)}")
    for name in record:
        if name not in known:
            raise UnknownNameError(f"field of {where}", name, known)
    return {name: value for name, value in record.items() if value is not None}


def _within(where: str, error: RecordError) -> RecordError:
    error.args = (f"{where}, {error}",)
    return error


def _names(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(name, str) and name for name in names):
        raise RecordError("collection", given, "a name or a list of names")
    return names


def _bands(given: Any) -> Mapping[str, str] | tuple[str, ...]:
    names = given.values() if isinstance(given, Mapping) else given
    if isinstance(given, str) or not isinstance(names, Iterable):
        raise RecordError("bands", given, "{modality band: stored band}, or a list of names")
    if isinstance(given, Mapping):
        if not all(isinstance(name, str) and name for name in (*given, *names)):
            raise RecordError("bands", dict(given), "a name for each band (numbers in quotes)")
        return given
    return tuple(SKIPPED if name is None else str(name) for name in names)


def _between(given: Any) -> Between | None:
    if given is None:
        return None
    days = () if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) else tuple(given)
    if len(days) != 2:
        raise RecordError("dates", given, "the first and the last day, as [2024-03-01, 2024-10-31]")
    first, last = (_day("dates", day) for day in days)
    if first > last:
        raise RecordError("dates", f"{first} to {last}", "a first day that is not after the last")
    return first, last


def _day(name: str, given: Any) -> np.datetime64:
    try:
        if isinstance(given, (datetime.date, np.datetime64)) or re.fullmatch(r"\d{4}-\d\d-\d\d", str(given)):
            return cast("np.datetime64", np.datetime64(given, "D"))
    except ValueError:
        pass
    raise RecordError(name, given, "a day such as 2024-03-01")


def _check_number(name: str, given: Any) -> None:
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise RecordError(name, given, "a number")
    if name == "scale" and given == 0:
        raise RecordError(name, given, "a number other than 0")
