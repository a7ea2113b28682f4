"""Modalities of a user's own data as described in the YAML file: where their files are, and what they hold."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from anysat.data.base import Row
from anysat.data.own.columns import LONG_SUFFIXES
from anysat.data.own.days import TableColumns
from anysat.data.own.paths import State, as_pattern, fields_of, file_of, is_pattern, leads_out, parts_of, state_of
from anysat.data.own.sections import Section
from anysat.data.own.series import Series, read_series
from anysat.errors import MissingFileError, RecordError, UnknownNameError
from anysat.geo.read.descriptions import SKIPPED, InputPath, SourceDescription
from anysat.geo.read.quality import QUALITY_KINDS, Quality
from anysat.modalities import MODALITIES, UNITS, Modality, band_key, find_modality, read_modalities

if TYPE_CHECKING:
    from anysat.geo.read.source import Source

_SAID = ("nodata", "scale", "offset", "offset_from", "quality", "dates")
"""Keys that describe the numbers of a source, as in the YAML file of `anysat embed`."""
_KEYS = ("path", "table", "columns", "units", "bands", "optional", *_SAID)
_COLUMNS = tuple(field.name for field in fields(TableColumns))


@dataclass(frozen=True, kw_only=True)
class OwnModality:
    """Where the imagery of a modality is, and how its numbers are decoded."""

    record: Modality
    source: SourceDescription
    """Description of the files. Its paths are below the data folder, with columns of the table in braces."""
    is_optional: bool
    columns: TableColumns | None = None
    """In a table of pixel series, the columns that hold the id and the date of a row; None for files of imagery."""

    @property
    def key(self) -> str:
        """Key of the modality."""
        return self.record.key

    @property
    def path(self) -> str:
        """Path pattern of its files, with `::PART` and `@DATE` as in `anysat embed`."""
        assert self.source.path is not None, self.source
        return self.source.path

    @property
    def band_names(self) -> tuple[str, ...]:
        """Bands that its files should hold: those given that are read, or else all that are measured."""
        given = tuple(name for name in self.source.bands if name != SKIPPED)
        return given or tuple(band.name for band in self.record.bands if band.ratio_of is None)

    @property
    def quality_path(self) -> str | None:
        """Path pattern of the raster that masks it; None if that is not a file of its own."""
        if self.columns is not None:
            return None
        layer = None if self.source.quality is None else self.source.quality.layer
        return layer if layer is not None and (fields_of(layer) or "/" in layer) else None

    @property
    def patterns(self) -> tuple[str, ...]:
        """Path patterns of its files, with columns of the table of tiles; none for a table of series."""
        if self.columns is not None:
            return ()
        return (self.path,) if self.quality_path is None else (self.path, self.quality_path)

    @property
    def said(self) -> dict[str, Any]:
        """What is said about its files except paths and days, as plain values; empty for a table of series."""
        return {} if self.columns is not None else replace(self.source, path=None, dates=None).to_dict()

    def series(self, root: Path) -> Series:
        """Read the series of its table below the data folder.

        Raises:
            MissingFileError, SourceError, UnknownNameError: The table is missing or cannot be read.
        """
        assert self.columns is not None, self.key
        path = root / self.path
        return _loaded(self, path, state_of(path))

    def open(self, row: Row, root: Path, *, is_read: bool = True) -> Source:
        """Open the imagery of one tile, limited to the days that count.

        Args:
            row: Row of the tile.
            root: The data folder.
            is_read: False if only the ground is needed; the raster that masks the imagery is then not opened.

        Raises:
            MissingFileError: The imagery, or the raster that masks it, is missing.
            RecordError: The day at the end of its path is not a date.
            EmptySourceError: There is nothing to read: an empty folder, or no day that counts.
            SourceError: The imagery cannot be read.
        """
        given, quality = self._input(row, root), self._quality(row, root) if is_read else None
        beside = None if quality is None or quality.layer is None else Path(quality.layer.partition("::")[0])
        return _opened(self, given, quality, (state_of(Path(given.path)), beside and state_of(beside)))

    def _input(self, row: Row, root: Path) -> InputPath:
        file, part, day = (piece.format(**row) for piece in parts_of(self.path))
        date = None
        if parts_of(self.path)[2]:
            with contextlib.suppress(ValueError):
                date = np.datetime64(day, "D") if re.fullmatch(r"\d{4}-\d\d-\d\d", day) else None
            if date is None:
                raise RecordError(f"the day at the end of the path of {self.key}", day, "one such as 2024-06-01")
        return InputPath(key=self.key, path=str(root / file), part=part or None, date=date)

    def _quality(self, row: Row, root: Path) -> Quality | None:
        """Return what masks one tile's files, with the path of its raster; None if nothing does."""
        if self.quality_path is None:
            return self.source.of_folder(root).quality
        assert self.source.quality is not None, self.key
        layer = root / self.quality_path.format(**row)
        if not (root / file_of(self.quality_path).format(**row)).exists():
            raise MissingFileError(layer, f"the quality layer of {self.key!r}")
        return replace(self.source.quality, layer=str(layer))

    def __hash__(self) -> int:  # some fields are mappings, which have none
        return hash((self.key, self.path))


@lru_cache(maxsize=8)
def _loaded(own: OwnModality, path: Path, _: State) -> Series:
    """Read the table of a modality, once per process while the file stays as it is."""
    assert own.columns is not None, own.key
    return read_series(path, own.columns, own.record, own.source)


@lru_cache(maxsize=16)
def _opened(own: OwnModality, given: InputPath, quality: Quality | None, _: Any) -> Source:
    """Open files, once per process while they stay as they are: many tiles may lie in one. None is left open."""
    from anysat.geo.read.sources import open_source

    description = replace(own.source, path=None, quality=quality)
    return open_source(given, own.record, description=description, may_float=True)


def read_own_modalities(top: Section, file: Path) -> tuple[OwnModality, ...]:
    """Read the modalities of a YAML file.

    Raises:
        MissingFileError: The file of modality records that it names is missing.
        RecordError, UnknownNameError: A key is unknown or missing, or has an impossible value.
    """
    known = dict(MODALITIES)
    if top.has("modality_records"):
        known |= {record.key: record for record in read_modalities(file.parent / top.text("modality_records"))}
    given = top.get("modalities", dict, "at least one modality, such as `s2: {path: ...}`")
    if not given:
        raise top.refuse("modalities", "at least one modality")
    found = []
    for key, content in given.items():
        record = find_modality(key, known.values())
        section = Section(content, f"{top.where}, modalities.{key}", _KEYS)
        found.append(
            OwnModality(
                record=record,
                source=_source(section, record),
                is_optional=bool(section.get("optional", bool, "true or false", False)),
                columns=_columns(section, record),
            )
        )
    if all(modality.is_optional for modality in found):
        raise top.refuse("modalities", "one that every tile has (not optional), by which tiles are found")
    return tuple(found)


def _source(section: Section, record: Modality) -> SourceDescription:
    """Return where the files are and how their numbers are decoded, like one source of `anysat embed`."""
    said = {key: section.content[key] for key in _SAID if section.has(key)}
    quality = said.get("quality")
    if isinstance(quality, str) and quality not in QUALITY_KINDS:
        raise UnknownNameError(f"kind of quality layer in {section.where}", quality, QUALITY_KINDS)
    if isinstance(quality, Mapping):
        section.part("quality", [field.name for field in fields(Quality)])
    if section.has("path") == section.has("table"):
        raise section.refuse("path", "either the `path` of its files or a `table` of pixel series")
    if "dates" in said and not record.is_temporal:
        raise section.refuse("dates", f"no value, because {record.key!r} is a single image, read whatever its day")
    is_table = section.has("table")
    place = _table(section) if is_table else section.path()
    bands = (_band_columns if is_table else _bands)(section, record)
    given = {"path": place, "bands": bands, "units": _units(section, record), **said}
    source = SourceDescription.from_dict(given, section.where)
    if is_table or source.quality is None or source.quality.layer is None:
        return source
    layer = source.quality.layer
    if leads_out(layer) or not is_pattern(layer):
        raise section.refuse("quality", "a layer below the data folder, with columns in braces")
    return replace(source, quality=replace(source.quality, layer=as_pattern(layer)))


def _table(section: Section) -> str:
    """Return the value of the key `table`: a file below the data folder."""
    name: str = section.text("table")
    if leads_out(name) or set("{}") & set(name) or PurePosixPath(name).suffix.lower() not in LONG_SUFFIXES:
        raise section.refuse("table", f"one file below the data folder ({', '.join(LONG_SUFFIXES)}) for all tiles")
    return name


def _columns(section: Section, record: Modality) -> TableColumns | None:
    """Return which columns of a table hold the id and the date of a row; None for files."""
    if not section.has("table"):
        if section.has("columns"):
            raise section.refuse("columns", "no value, because only a `table` has columns")
        return None
    if not record.is_temporal:
        raise section.refuse("table", f"the `path` of files, because {record.key!r} is a single image, not a series")
    part = section.part("columns", _COLUMNS)
    zero = None
    if part.has("days_since"):
        with contextlib.suppress(ValueError):
            zero = np.datetime64(str(part.content["days_since"]), "D")
        if zero is None:
            raise part.refuse("days_since", "the day that number 0 stands for, such as 2020-01-01")
    return TableColumns(id=part.text("id", "id"), date=part.text("date", "date"), days_since=zero)


def _band_columns(section: Section, record: Modality) -> dict[str, str]:
    """Return the column of each band; empty to find columns by their names."""
    expected = f"a column for each band, such as {{{record.band_names[0]}: COLUMN}}"
    given = section.get("bands", dict, expected, {})
    found = {}
    for band, column in given.items():
        if not isinstance(column, (str, int)) or isinstance(column, bool):
            raise section.refuse("bands", expected)
        found[record.band_names[_find_band(section, "bands", record, band)]] = str(column)
    if len(set(found.values())) < len(given):
        raise section.refuse("bands", "each band and each column once")
    return found


def _bands(section: Section, record: Modality) -> tuple[str, ...]:
    """Return the names of the stored bands, with `SKIPPED` for those not to read; empty if not given."""
    given = section.listed("bands", (str, type(None)), f"a list of names, null or {SKIPPED!r} for a band not to read")
    names = tuple(SKIPPED if name is None else name for name in given)
    read = [_find_band(section, "bands", record, name) for name in names if name != SKIPPED]
    if names and not read:
        raise section.refuse("bands", f"at least one band of {record.key}")
    if len(set(read)) < len(read):
        raise section.refuse("bands", "each band once")
    return names


def _find_band(section: Section, key: str, record: Modality, name: Any) -> int:
    for index, band in enumerate(record.bands):
        if isinstance(name, str) and band_key(name) in band.match_keys:
            return index
    known = {name for band in record.bands for name in (band.name, band.common_name) if name}
    advice = f"Write null or {SKIPPED!r} for a band that is not to be read" if key == "bands" else ""
    raise UnknownNameError(f"band of {section.where}, {key}", name, known, advice)


def _units(section: Section, record: Modality) -> str | dict[str, str]:
    """Return the unit of all bands, or units by the names of bands in the record; empty if not given."""
    given = section.content.get("units") or {}
    if not isinstance(given, (str, Mapping)):
        raise section.refuse("units", "a unit, or a unit for each band")
    for unit in [given] if isinstance(given, str) else given.values():
        if unit not in UNITS:
            raise UnknownNameError(f"unit in {section.where}", unit, UNITS)
    if isinstance(given, str):
        return given
    return {record.band_names[_find_band(section, "units", record, band)]: unit for band, unit in given.items()}
