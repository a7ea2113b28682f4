"""Long tables, CSV or Parquet, read by column through pyarrow, without a loop over rows."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.data.own.tables import as_number, as_text
from anysat.errors import MissingFileError, SourceError, UnknownNameError
from anysat.geo.read.layers import reading

LONG_SUFFIXES = (".csv", ".parquet")
"""Suffixes of tables that can be read by column."""
_LONGEST = 1 << 20
"""Largest number of bytes read of a first line."""


class Cells(NamedTuple):
    """A column, as its distinct cells and a code per row."""

    names: list[Any]
    """The distinct cells."""
    codes: NDArray[np.int64]
    """(row) Index of each row's cell in `names`."""

    def first_row(self, place: int) -> int:
        """Return the number, from 1, of the first row that holds a cell."""
        return int(np.argmax(self.codes == place)) + 1


def column_names(path: Path) -> tuple[str, ...]:
    """Return the names of the columns that hold numbers, text or dates.

    Raises:
        MissingFileError: There is no such file.
        SourceError: The file cannot be read, or two columns have the same name.
        UnknownNameError: The file has another suffix.
    """
    if path.suffix.lower() not in LONG_SUFFIXES:
        raise UnknownNameError(f"kind of table {path}", path.suffix, LONG_SUFFIXES)
    if not path.is_file():
        raise MissingFileError(path, "a table of pixel series, CSV or Parquet")
    if path.suffix.lower() == ".csv":
        names = tuple(name.strip() for name in _header(path))
    else:
        from pyarrow import parquet, types

        with reading(path):
            schema = parquet.read_schema(path)
        names = tuple(f.name for f in schema if not (types.is_nested(f.type) or types.is_binary(f.type)))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SourceError(path, f"the header has {twice!r} twice", "give each column its own name")
    return names


def _header(path: Path) -> list[str]:
    """Return the names of the columns of a CSV, as stored."""
    from pyarrow import csv

    with _reading_csv(path):
        with path.open("rb") as file:
            start = next((line for line in iter(lambda: file.readline(_LONGEST), b"") if line.strip()), b"")
        if b";" in start and b"," not in start:  # before the rows, whose numbers may have commas
            raise SourceError(
                path, "its columns are separated by semicolons", "save it with commas, and decimal points"
            )
        getincrementaldecoder("utf-8")().decode(start)  # which may end within a letter
        with csv.open_csv(path) as opened:
            names: list[str] = opened.schema.names
    return names


@contextmanager
def _reading_csv(path: Path) -> Iterator[None]:
    """Turn errors about a CSV into a `SourceError` that names it, and says if it is not in UTF-8."""
    try:
        with reading(path):
            yield
    except SourceError as error:
        if "utf8" in str(error.__cause__).lower().replace("-", ""):
            problem = f"it is not in UTF-8 ({error.__cause__})"
            raise SourceError(path, problem, "save it as CSV in UTF-8") from error.__cause__
        raise


def check_column(path: Path, column: str, names: Sequence[str]) -> None:
    """Refuse a column that is not among the names from `column_names`.

    Raises:
        SourceError: It is in the file, but holds something else than numbers, text or dates.
        UnknownNameError: It is not in the file.
    """
    if column in names:
        return
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        with reading(path):
            schema = parquet.read_schema(path)
        if column in schema.names:
            problem = f"column {column!r} holds {schema.field(column).type}"
            raise SourceError(path, problem, "write one number, text or date in each cell")
    raise UnknownNameError(f"column of {path}", column, names)


def read_items(path: Path, column: str) -> list[str]:
    """Read the distinct items of a column of lists in a Parquet file, as texts.

    Raises:
        SourceError: The file cannot be read.
    """
    from pyarrow import compute

    lists = _read(path, [column], None)[column]
    return [as_text(item) for item in compute.unique(compute.list_flatten(lists)).to_pylist()]


def read_cells(path: Path, columns: Sequence[str]) -> dict[str, Cells]:
    """Read columns as distinct cells: text in a CSV, the stored values in a Parquet file.

    Raises:
        SourceError: The file cannot be read.
    """
    import pyarrow as pa

    table = _read(path, columns, pa.string())
    return {name: _cells(table[name]) for name in columns}


def read_texts(path: Path, columns: Sequence[str]) -> dict[str, Cells]:
    """Read columns as distinct texts in order; surrounding spaces are removed, and a missing value is empty text.

    Raises:
        SourceError: The file cannot be read.
    """
    found = {}
    for column, cells in read_cells(path, columns).items():
        names, places = np.unique(np.array([as_text(name) for name in cells.names], str), return_inverse=True)
        found[column] = Cells(names.tolist(), places[cells.codes])
    return found


def read_numbers(path: Path, columns: Sequence[str]) -> NDArray[np.float32]:
    """Read columns of numbers (row column); NaN where a cell is empty or says so, such as NA or null.

    Raises:
        SourceError: The file cannot be read, or a cell is not a number. The message names the column and, in a CSV, row
            and cell.
    """
    import pyarrow as pa

    try:
        table = _read(path, columns, pa.float64())
    except pa.ArrowInvalid as error:
        _refuse_words(path, columns)
        raise SourceError(path, f"it cannot be read ({error})", "check that the file is complete") from error
    found = np.empty((len(table), len(columns)), np.float32)
    with np.errstate(over="ignore"):  # numbers too large for float32 stand for no data
        for place, name in enumerate(columns):
            kind = table.schema.field(name).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
                raise SourceError(path, f"column {name!r} holds {kind}", "save the band as numbers")
            found[:, place] = table[name].cast(pa.float64()).to_numpy()
    return found


def _read(path: Path, columns: Sequence[str], kind: Any) -> Any:
    """Read columns of a table, those of a CSV as one type. Errors of pyarrow when converting are raised unchanged."""
    import pyarrow as pa

    if path.suffix.lower() != ".csv":
        from pyarrow import parquet

        with reading(path):
            return parquet.read_table(path, columns=list(columns))
    from pyarrow import csv

    stored = {name.strip(): name for name in _header(path)}
    names = [stored[column] for column in columns]
    options = csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, kind))
    with _reading_csv(path) if kind == pa.string() else nullcontext():
        return csv.read_csv(path, convert_options=options).rename_columns(list(columns))


def _cells(column: Any) -> Cells:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not len(column):
        return Cells([], np.zeros(0, np.int64))
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return Cells(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64))


def _refuse_words(path: Path, columns: Iterable[str]) -> None:
    """Raise an error that names the first cell of these CSV columns that is not a number."""
    from pyarrow import csv

    missing = {*csv.ConvertOptions().null_values, ""}
    for column, cells in read_cells(path, list(columns)).items():
        for place, cell in enumerate(cells.names):
            with suppress(TypeError):
                if cell not in missing and np.isnan(as_number(cell)):
                    raise SourceError(path, f"row {cells.first_row(place)} has {cell!r} in column {column!r}",
                                      "write a number with a decimal point, or leave the cell empty")  # fmt: skip
