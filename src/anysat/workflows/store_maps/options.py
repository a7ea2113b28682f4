"""Options of commands that make maps of stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from anysat.errors import RecordError, UnknownNameError
from anysat.geo.write.outputs import STORE, Result, check_output, named, suffixes


@dataclass(frozen=True, kw_only=True)
class StoreMapOptions:
    """Stores to read, and the map to write."""

    store: list[str] = field(
        metadata={
            "positional": "STORE",
            "help": "NAME.zarr, written by `anysat embed`. For an area in several UTM zones, NAME.zarr stands for the "
            "stores of all zones, and there is a map for each. You can also list several stores of one kind.",
        }
    )
    out: str = field(metadata={"help": f"Map to write: {named(Result.AREA)}; a picture NAME.png is written beside it."})
    """Map to write."""
    also: str | None = field(
        default=None,
        metadata={
            "help": f"Formats to write besides NAME{STORE}: {named(Result.CLASSES, besides=STORE, name='')} "
            "(polygons, for class maps only); several separated by commas."
        },
    )
    """Formats to write besides a store."""
    group: str | None = None
    """Which embeddings of the store, such as dense; null for those of patches."""
    overwrite: bool = False
    """Replace existing outputs."""

    made: ClassVar[Result] = Result.AREA
    """Kind of result."""

    def __post_init__(self) -> None:
        check_map(self.out, self.also, self.made)


def check_map(out: str | Path, also: str | None, made: Result) -> list[str]:
    """Return the suffixes of the formats to write, after checking that they can hold the result.

    Raises:
        RecordError, UnknownNameError: They cannot, or more than one is asked for without a store.
    """
    check_output("--out", out, made)
    suffix, more = Path(out).suffix, [] if also is None else [word.strip() for word in also.split(",")]
    known = [one for one in suffixes(made) if one != STORE]
    for one in more:
        if one not in known:
            raise UnknownNameError("--also", one, known)
    if more and suffix != STORE:
        raise RecordError("--also", also, f"no value with --out {Path(out).name}; it needs --out NAME{STORE}")
    return [suffix, *dict.fromkeys(more)]
