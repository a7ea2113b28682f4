"""Areas that grow: what is stored of each block so that later dates can be added, and how blocks are continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.areas.tokens import Flags, Tokens, prepared, read_sub, read_tokens, tokens_of
from anysat.areas.units import UnitFiles, names_in, unreadable_in
from anysat.batch import Tile
from anysat.errors import SourceError
from anysat.geo.area import Span
from anysat.geo.read.source import Source
from anysat.geo.stores.store import Unit
from anysat.model.encoder import CHUNK_ROWS, AnySat
from anysat.model.growth import Keep, Remembered, find_kind, grow
from anysat.model.steps import SeenPatches


@dataclass(frozen=True, eq=False, kw_only=True)
class Growing:
    """What is stored of an area for later updates, and what an earlier run stored."""

    files: UnitFiles
    """Files of this run. The unit of a block is its period, and its first row and column of patches."""
    keep: Keep
    earlier: UnitFiles | None = None
    """Files of the earlier run, with the same blocks; None in the first run."""
    was: Mapping[int, int] = field(default_factory=dict)
    """For each period that continues one of the earlier run, the number of that one."""
    new: Mapping[int, Mapping[str, Source]] = field(default_factory=dict)
    """For each of these periods, the sources with only their new dates. Sources without new dates are left out."""

    def goes_on(self, period: int, span: Span) -> bool:
        """Return whether a block can be continued from what the earlier run stored, with new dates only."""
        if self.earlier is None or period not in self.was:
            return False
        unit = Unit(self.was[period], span.top, span.left)
        if not self.earlier.is_there(unit):
            raise SourceError(
                self.earlier.folder, f"the data of the block at row {span.top}, column {span.left} are missing",
                "embed the area again with --overwrite",
            )  # fmt: skip
        with self.earlier.opened(unit) as file:
            return not unreadable_in(file)  # if inputs were unreadable then, all dates are read again


def encode_growing(
    model: AnySat, tile: Tile | None, patch_size_m: float, span: Span, inside: Flags, dense: str | None,
    growing: Growing, period: int, unreadable: tuple[str, ...],
) -> Tokens:  # fmt: skip
    """Encode a block from what the earlier run stored and the dates in the tile; store the result for later updates.

    If nothing was stored, the tile has all dates.
    """
    unit, inputs = Unit(period, span.top, span.left), {} if tile is None else prepared(model, tile, patch_size_m)
    before = Tokens(span)
    series: dict[str, Remembered] = {}
    if growing.goes_on(period, span):
        assert growing.earlier is not None, period
        old = Unit(growing.was[period], span.top, span.left)
        before = replace(read_tokens(growing.earlier, old, span, span), sub=read_sub(growing.earlier, old))
        if not inputs and not unreadable:
            growing.files.adopt(unit, growing.earlier, old)
            return before
        series = _read_series(growing.earlier, old)
    seen: dict[str, SeenPatches] = {}
    for key, pixels in inputs.items():
        projector: Any = model.projectors[key]
        modality = model.config.modality(key)
        if modality.is_temporal:
            seen[key], series[key] = grow(
                projector, model.spatial, model.config, modality, series.get(key), pixels, patch_size_m,
                kind=find_kind(projector, growing.keep), keep_sub=key == dense, chunk_rows=CHUNK_ROWS,
            )  # fmt: skip
        else:
            kept = (dense,) if key == dense else ()
            seen |= model.see({key: pixels}, patch_size_m, kept, chunk_rows=CHUNK_ROWS)
    found = tokens_of(seen, span, inside, dense)
    sub = before.sub if found.sub is None else found.sub
    tokens = replace(found, patch={**before.patch, **found.patch}, sub=sub, unreadable=unreadable)
    growing.files.write(unit, {**tokens.arrays(), **_arrays(series)}, unreadable)
    return tokens


def _arrays(series: Mapping[str, Remembered]) -> dict[str, NDArray[Any]]:
    found = {}
    for key, kept in series.items():
        for name, part in {"days": kept.days, **kept.parts}.items():
            found[f"series.{key}.{name}"] = part.cpu().numpy()
    return found


def _read_series(files: UnitFiles, unit: Unit) -> dict[str, Remembered]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    with files.opened(unit) as file:
        for name in names_in(file):
            if name.startswith("series."):
                key, part = name.removeprefix("series.").rsplit(".", 1)
                found.setdefault(key, {})[part] = torch.from_numpy(np.array(file.get_tensor(name)))
    return {key: Remembered(parts.pop("days"), parts) for key, parts in found.items()}
