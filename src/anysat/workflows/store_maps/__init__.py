"""Maps that are computed from the embeddings of finished stores, without encoding anything: their options."""

from __future__ import annotations

from dataclasses import dataclass, field

from anysat.geo.write.outputs import Result, named


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
    group: str | None = None
    """Which embeddings of the store, such as dense; null for those of patches."""
    overwrite: bool = False
    """Replace existing outputs."""
