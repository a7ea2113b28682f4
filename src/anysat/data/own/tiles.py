"""Tiles of a user's own data: listing them, and reading one onto a common grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.absent import nothing_of
from anysat.data.base import Row, Samples
from anysat.data.layout import DatasetFolder
from anysat.data.own.content import OwnData, OwnTarget
from anysat.data.own.found import found_rows, unread_suffixes
from anysat.data.own.parcels import POLYGON, Parcel, check_parcels, find_parcel
from anysat.data.own.paths import SPLIT_CELL, as_written, empty_field, fields_of, leads_out, with_cell
from anysat.data.own.rasters import read_nearest
from anysat.data.own.series_tiles import lost_places, rows_of_series
from anysat.data.own.tables import PLACE, SPLIT, as_number, is_missing_word, is_no_id, is_no_label, read_table
from anysat.data.own.targets import is_unlabelled
from anysat.data.splits import ground_m, split_by_name, split_by_place
from anysat.errors import EmptySourceError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.geo.grid import plan_tile
from anysat.geo.zones import square_at
from anysat.observation import Observation

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from anysat.geo.grid import TileGrid
    from anysat.geo.read.source import Source

_SHOWN = 5
_MAX_VALUE = float(np.finfo(np.float32).max)
"""Largest value that a target can have."""


def list_tiles(data: OwnData, folder: DatasetFolder) -> Samples:
    """List all tiles with their columns and splits.

    Raises:
        SourceError: Two tiles have the same name, a place or split is missing, or a label is not a class.
    """
    rows, source = _rows(data, folder)
    if not rows and (suffixes := unread_suffixes(folder, data.first.key)):
        problem = f"files match the path, but their kind is not read: {', '.join(suffixes)}"
        raise SourceError(source, problem, "convert them to GeoTIFF (.tif); without a georeference is fine")
    if not rows:
        return Samples(id=[], split=[])
    for number, row in enumerate(rows, 1):
        _check_paths(data, row, number, source)
    twice = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if twice:
        raise SourceError(source, f"several tiles are called {twice[0]!r}", "give each its own id, "
                          "in a table where files of other folders have the same name")  # fmt: skip
    for own in data.targets:
        if own.column is not None:
            _check_labels(own, rows, source)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    _check_series(data, folder.root, columns["id"], source)
    if data.is_inside_only:
        columns[POLYGON] = np.array(check_parcels(source, data.id_column, columns["id"].tolist()))
    return Samples(**{**columns, "split": _split(data, columns, source)})


def _rows(data: OwnData, folder: DatasetFolder) -> tuple[list[dict[str, str]], Path]:
    path = data.table_path(folder.root)
    if path is not None:
        if not path.is_file():
            raise MissingFileError(path, f"the table of the tiles there, or beside {data.file}")
        fields = {name for pattern in data.patterns for name in fields_of(pattern)}
        fields |= {own.column for own in data.targets if own.column}
        if data.tables_of_tiles:
            rows = rows_of_series(data, folder.root, fields)
        else:
            separators = {own.column: own.separator for own in data.targets if own.column and own.separator}
            needed = ["id", *sorted(fields | {data.splits.column or "id"})]
            rows = read_table(path, needed, separators=separators, id_column=data.id_column)
        return [with_cell(row) for row in rows] if SPLIT in fields else rows, path
    return found_rows(folder, data.first.key), folder.root / as_written(data.first.path)


def _check_series(data: OwnData, root: Path, ids: NDArray[np.str_], source: Path) -> None:
    """Refuse tiles without a row in a table of series that is not optional, and tables without a row of any tile."""
    for own in data.modalities:
        if own.columns is None:
            continue
        series = own.series(root)
        absent = ids[~series.has(ids)]
        if len(absent) and (len(absent) == len(ids) or not own.is_optional):
            other = "leave them out" if own.is_optional else f"leave them out, or give {own.key!r} `optional: true`"
            raise SourceError(
                series.path, f"{len(absent)} of {len(ids)} tiles of {source} have no row, such as {str(absent[0])!r}; "
                f"its own ids are such as {series.ids[0]!r}", other,
            )  # fmt: skip


def _check_paths(data: OwnData, row: Row, number: int, source: Path) -> None:
    """Refuse invalid ids, cells that lead a path out of the data folder, and empty cells that a path needs."""
    name = row["id"]
    if is_no_id(name) or name in (".", "..") or set("/\\") & set(name):
        raise SourceError(source, f"row {number} has the id {name!r}", "give each tile a name without slashes")
    for pattern in data.patterns:
        path = pattern.format(**row)
        if leads_out(path):
            problem = f"row {number}, tile {name!r}, makes {as_written(pattern)!r} the path {path!r}"
            raise SourceError(source, problem, "correct its cells: files lie below the data folder")
    for own in data.modalities:
        for pattern in () if own.is_optional and empty_field(own.path, row) else own.patterns:
            if column := empty_field(pattern, row):
                where = f"row {number}, tile {name!r}"
                advice = "" if own.is_optional else f"; where some tiles lack {own.key!r}, give it `optional: true`"
                raise SourceError(
                    source, f"{where}, has nothing in column {column!r}, which {as_written(pattern)!r} needs",
                    f"fill it in, or leave the tile out{advice}",
                )  # fmt: skip


def _check_labels(own: OwnTarget, rows: Sequence[Row], source: Path) -> None:
    for row in rows:
        try:
            label_of(own, row)
        except (ValueError, KeyError) as error:
            advice = f"; its classes are {', '.join(own.target.classes[:_SHOWN])} …" if own.target.classes else ""
            problem = f"tile {row['id']!r} has {_cell(own, row)!r} in column {own.column!r}{advice}"
            raise SourceError(source, problem, _label_advice(own, row)) from error


def _label_advice(own: OwnTarget, row: Row) -> str:
    if not own.target.classes:
        return "write a number, or leave the cell empty"
    if any(map(is_missing_word, _cell(own, row).split(own.separator))):
        needs_ignore = own.target.is_multiclass and own.target.ignore is None
        return "leave cells without a label empty" + (" and give `ignore`" if needs_ignore else "")
    return "correct it, or give `ignore` for cells without a label"


def _cell(own: OwnTarget, row: Row) -> str:
    """Return the text of a target's cell. For a column `split` it is the table's own, whatever split is drawn."""
    name = own.column or ""
    return str(row.get(SPLIT_CELL, row[name]) if name == SPLIT else row[name])


def label_of(own: OwnTarget, row: Row) -> NDArray[Any]:
    """Return a tile's target from its cell in the table; NaN or `ignore` if the cell has no label."""
    text, target = _cell(own, row), own.target
    if not target.classes:
        if text and not abs(float(text)) <= _MAX_VALUE:
            raise ValueError("neither infinite nor NaN")
        return np.array(float(text) if text else np.nan, np.float32)
    numbers = {name: number for number, name in enumerate(target.classes)}
    if target.is_multilabel:
        found = [numbers[name.strip()] for name in text.split(own.separator) if not is_no_label(name)]
        return np.isin(np.arange(len(numbers)), found).astype(np.int64)
    is_none = is_unlabelled(text, own.ignore) and target.ignore is not None
    return np.array(target.ignore if is_none else numbers[text], np.int64)


def _split(data: OwnData, columns: Mapping[str, NDArray[Any]], source: Path) -> NDArray[np.str_]:
    splits = data.splits
    column = SPLIT if not splits.is_given and SPLIT in columns else splits.column
    if column == SPLIT and splits.seed is not None:
        expected = (
            f"no value, because column {SPLIT!r} of {source} splits the tiles; to draw other splits, give `shares`"
        )
        raise RecordError(f"{data.file}, splits, seed", splits.seed, expected)
    if column is not None:
        known = [value for group in splits.members.values() for value in group]
        for value, first in zip(*np.unique(columns[column], return_index=True), strict=True):
            if value not in known:
                where = f"value of column {column!r} of {source}"
                why = f"Splits are listed in {data.file}" if splits.is_given else f"{data.file} gives no other `splits`"
                advice = f"Row {first + 1} has it, tile {str(columns['id'][first])!r}. {why}"
                raise UnknownNameError(where, str(value), known, advice)
        return columns[column]
    if splits.block_m is None:
        return split_by_name(columns["id"].tolist(), splits.shares, splits.seed or 0)
    lon, lat = (_degrees(name, columns, source) for name in PLACE)
    x_m, y_m = ground_m(lon, lat, splits.block_m)
    return split_by_place(x_m, y_m, splits.shares, splits.block_m, splits.seed or 0)


def _degrees(name: str, columns: Mapping[str, NDArray[Any]], source: Path) -> NDArray[np.float64]:
    """Return a coordinate of every tile, in degrees."""
    texts = columns.get(name, np.full(len(columns["id"]), ""))
    found = np.array([as_number(text) for text in texts.tolist()])
    limit = 180 if name == PLACE[0] else 90
    if not (np.abs(found) <= limit).all():
        first = str(columns["id"][np.argmin(np.abs(found) <= limit)])
        raise SourceError(source, f"tile {first!r} has no {name} in degrees", "its place is needed for block_m and "
                          "`centre: table`: columns lon and lat, or geometries of the table")  # fmt: skip
    return found


def read_tile(data: OwnData, folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile: every modality on a grid over the same ground, and its targets.

    The ground does not depend on which modalities are asked for.
    """
    sources, _ = _open_sources(data, folder, row, modalities)
    series, _ = _read_series(data, folder.root, row, modalities)
    grid = _plan(data, folder, row, sources)
    table = data.table_path(folder.root)
    parcel = find_parcel(table, data.id_column, str(row["id"])) if data.is_inside_only and table is not None else None
    observations = []
    for own in data.modalities:
        if own.key in series:
            observations.append(series[own.key])
        elif own.key in modalities and own.key in sources:
            assert grid is not None, own.key
            seen = sources[own.key].observe(geobox := grid.of(own.record))[0]
            observations.append(seen if parcel is None else parcel.mask(seen, geobox))
    if not observations:
        record = next(own.record for own in data.modalities if own.key == modalities[0])
        observations = [nothing_of(record, data.tile_m)]
    targets = {}
    for wanted in data.targets:
        target = wanted.target
        if not folder.wants(target.name):
            continue
        if wanted.path is None:
            targets[target.name] = label_of(wanted, row)
        else:
            assert grid is not None and target.gsd_m is not None, target  # noqa: PT018
            path, geobox = folder.root / wanted.path.format(**row), grid.at(target.gsd_m)
            targets[target.name] = _raster(wanted, path, geobox, parcel)
    place = _square(data, row) if grid is None or grid.geobox.crs is None else grid.geobox
    return Tile.of(*observations, targets=targets, geobox=place)


def _plan(data: OwnData, folder: DatasetFolder, row: Row, sources: Mapping[str, Source]) -> TileGrid | None:
    """Return the grid over the ground that a tile's files share; None if only tables of series hold the tile."""
    place = None
    if data.is_centred_on_table:
        columns = {name: np.array([row.get(name, "")]) for name in ("id", *PLACE)}
        lon, lat = (_degrees(name, columns, data.table_path(folder.root) or data.file) for name in PLACE)
        place = float(lon[0]), float(lat[0])
    if sources:
        grid = plan_tile([source.footprint for source in sources.values()], data.tile_m, place)
        if data.is_inside_only and grid.geobox.crs is None:
            problem = f"no file of tile {row['id']!r} has a georeference, so its polygon has no place in the tile"
            raise SourceError(folder.root, problem, "give files with one, or leave `inside_only` out")
        return grid
    if any(own.columns is not None for own in data.modalities) and all(own.path is None for own in data.targets):
        return None
    expected = " or ".join(own.path.format(**row) for own in data.modalities if own.columns is None)
    raise MissingFileError(folder.root, f"a file of tile {row['id']!r}: {expected}")


def _square(data: OwnData, row: Row) -> GeoBox | None:
    """Return the ground around a tile's place in the table; None if the place is unknown."""
    lon, lat = (as_number(row.get(name, "")) for name in PLACE)
    return square_at(lon, lat, data.tile_m) if abs(lon) <= 180 and abs(lat) <= 90 else None


def read_notes(data: OwnData, folder: DatasetFolder, row: Row) -> dict[str, tuple[str, ...]]:
    """Return notes from opening a tile's imagery, by modality: bands that are not used, where units come from."""
    keys = [own.key for own in data.modalities]
    sources, absent = _open_sources(data, folder, row, keys)
    seen, lacking = _read_series(data, folder.root, row, keys)
    told = {key: (f"counts as absent: {why}",) for key, why in (absent | lacking).items()}
    tables = {own.key: own.series(folder.root).notes for own in data.modalities if own.key in seen}
    for own in data.tables_of_tiles:
        if own.key in tables:
            tables[own.key] += lost_places(own.series(folder.root), row)
    return {key: source.notes for key, source in sources.items()} | tables | told


def _open_sources(
    data: OwnData, folder: DatasetFolder, row: Row, modalities: Sequence[str]
) -> tuple[dict[str, Source], dict[str, str]]:
    """Open the files that a tile has, and say why others count as absent.

    Files with nothing to read count as absent, unless their modality is asked for and not optional.
    """
    sources: dict[str, Source] = {}
    absent: dict[str, str] = {}
    for own in (own for own in data.modalities if own.columns is None):
        is_read = own.key in modalities
        is_there = empty_field(own.path, row) is None and folder.path(own.key, **row).exists()
        if is_there or (is_read and not own.is_optional):
            try:
                sources[own.key] = own.open(row, folder.root, is_read=is_read)
            except EmptySourceError as error:
                if is_read and not own.is_optional:
                    raise
                absent[own.key] = error.problem
    return sources, absent


def _read_series(
    data: OwnData, root: Path, row: Row, modalities: Sequence[str]
) -> tuple[dict[str, Observation], dict[str, str]]:
    """Read a tile's series of the modalities asked for, and say why optional ones are absent."""
    seen: dict[str, Observation] = {}
    absent: dict[str, str] = {}
    for own in data.modalities:
        if own.columns is not None and own.key in modalities:
            try:
                seen[own.key] = own.series(root).observe(str(row["id"]))
            except EmptySourceError as error:
                if not own.is_optional:
                    raise
                absent[own.key] = error.problem
    return seen, absent


def list_classes(data: OwnData, own: OwnTarget, _folder: DatasetFolder, samples: Samples) -> NDArray[np.int64]:
    """Return the class number of every tile for a target in the table; -1 without a label."""
    if own.column not in samples.columns:
        raise RecordError(f"{data.file}, targets.{own.target.name}", own.column, "a column of the table")
    column = SPLIT_CELL if own.column == SPLIT and SPLIT_CELL in samples.columns else own.column
    found = np.array([label_of(own, {own.column: text}) for text in samples.columns[column].tolist()], np.int64)
    return found if own.target.ignore is None else np.where(found == own.target.ignore, -1, found)


def _raster(own: OwnTarget, path: Path, geobox: GeoBox, parcel: Parcel | None) -> NDArray[Any]:
    """Read a label raster onto a grid, taking the stored pixel under each pixel's centre; no label outside a parcel."""
    if not path.is_file():
        raise MissingFileError(path, f"the raster of target {own.target.name!r}")
    values = read_nearest(path, geobox)
    if parcel is not None:
        values[~parcel.holds(geobox)] = np.nan
    if not own.target.classes:
        if (np.abs(values) > _MAX_VALUE).any():
            problem = f"it holds {np.nanmax(np.abs(values)):g}, which is not a value of {own.target.name!r}"
            raise SourceError(path, problem, "pixels without a value are NaN or nodata")
        return values.astype(np.float32)
    fill = own.target.ignore if own.target.ignore is not None else -1
    seen = ~np.isnan(values) & (values != (fill if own.ignore is None else own.ignore))
    stored = np.array(own.values)
    order = np.argsort(stored)
    place = np.searchsorted(stored[order], values[seen]).clip(0, len(stored) - 1)
    wrong = stored[order][place] != values[seen]
    if wrong.any():
        found = ", ".join(f"{value:g}" for value in np.unique(values[seen][wrong])[:_SHOWN])
        raise SourceError(
            path, f"it holds {found}, which is not a class of {own.target.name!r}",
            f"its classes are {', '.join(map(str, own.values))}; pixels without a label are {own.ignore} or nodata",
        )  # fmt: skip
    classes = np.full(values.shape, fill, np.int64)
    classes[seen] = order[place]
    return classes
