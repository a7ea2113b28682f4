"""A table of samples, in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.errors import RecordError

Row = Mapping[str, Any]
"""One row of `Samples`: values by column."""


class Samples:
    """A table of samples, stored by column, always with the columns `id` and `split`.

    The columns are numpy arrays, so a million samples take megabytes, and worker processes share them.

    Raises:
        RecordError: The columns differ in length, or `id` or `split` is missing.

    >>> samples = Samples(id=["a", "b"], split=["train", "test"])
    >>> samples.of("test").row(0)["id"]
    'b'
    """

    def __init__(self, /, **columns: ArrayLike) -> None:
        self.columns: dict[str, NDArray[Any]] = {name: np.asarray(column) for name, column in columns.items()}
        lengths = {name: column.shape for name, column in self.columns.items()}
        if not {"id", "split"} <= set(lengths) or len(set(lengths.values())) != 1:
            raise RecordError("samples", lengths, "columns of one length, `id` and `split` among them")

    @classmethod
    def of_rows(cls, rows: Sequence[Row], columns: Sequence[str] = ("id", "split")) -> Samples:
        """Create a table from rows with the same columns. Without rows, the table has the given `columns`."""
        names = list(rows[0]) if rows else columns
        return cls(**{name: np.array([row[name] for row in rows]) for name in names})

    def __len__(self) -> int:
        return len(self.columns["id"])

    def row(self, index: int) -> dict[str, Any]:
        """Return one sample, as plain values."""
        return {name: column[index].item() for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.row(index) for index in range(len(self)))

    def take(self, indices: ArrayLike) -> Samples:
        """Return a table of some samples, chosen by number or by a mask."""
        chosen = np.asarray(indices)
        chosen = chosen if chosen.size else chosen.astype(int)
        return Samples(**{name: column[chosen] for name, column in self.columns.items()})

    def of(self, *splits: str) -> Samples:
        """Return a table of the samples of some splits."""
        return self.take(np.isin(self.columns["split"], splits))

    def with_columns(self, /, **columns: ArrayLike) -> Samples:
        """Return the table with columns added or replaced."""
        return Samples(**{**self.columns, **columns})
