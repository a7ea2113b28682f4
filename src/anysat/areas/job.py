"""The two steps of the work for a shard: the tokens of its patches, block by block, and the fusion of windows.

A job holds everything that the steps need, and is sent to the workers of a cluster. The results of the first step are
stored on disk, so that either step can be repeated anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from anysat.areas.growing import Growing, encode_growing
from anysat.areas.tokens import Flags, Floats, Tokens, encode, joined, read_sub, read_tokens, stacked
from anysat.areas.units import UnitFiles
from anysat.areas.windows import Blend, Seams, Windowing, fade
from anysat.batch import Batch, Tile
from anysat.errors import EmptyTileError, SourceError
from anysat.geo.area import Area, Span
from anysat.geo.read.source import Source
from anysat.geo.stores.store import Unit
from anysat.model.checkpoint import save
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.model.precision import Precision, multiplying
from anysat.model.steps import SeenPatches
from anysat.model.validity import pool_valid
from anysat.normalise import Normaliser
from anysat.observation import Observation

TOKENS_AT_ONCE = 4096
"""Number of tokens that are fused at once, in windows of one shape."""
PAIRS_AT_ONCE = 1 << 22
"""Number of pairs of place and token to compute at once, so that large windows need little more memory than small."""
RETRIES, RETRY_AFTER_S = 2, 0.5
"""How often reading an input is retried, and after how many seconds, doubled each time."""


Period = tuple[np.datetime64, np.datetime64]
"""First and last day of a period, for which each place gets one embedding."""


class Read(NamedTuple):
    """What was read for a block."""

    tile: Tile | None
    """The observations; None if no source has any."""
    unreadable: tuple[str, ...] = ()
    """What could not be read, and why. Its pixels are nodata."""


@dataclass(frozen=True)
class Found:
    """Facts about a finished unit, stored with it."""

    seams: Seams = field(default_factory=Seams)
    """Differences between patches at the borders of windows and elsewhere."""
    unreadable: tuple[str, ...] = ()
    """Inputs that could not be read, and why. Their pixels are nodata."""
    num_patches: int = 0
    """Number of valid patches."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Found:
        """Create it from plain values."""
        return cls(Seams(**values["seams"]), tuple(values["unreadable"]), values["num_patches"])

    def __add__(self, other: Found) -> Found:
        problems = dict.fromkeys(self.unreadable + other.unreadable)
        return Found(self.seams + other.seams, tuple(problems), self.num_patches + other.num_patches)


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """The work of embedding an area."""

    model: AnySat
    sources: Mapping[str, Source]
    area: Area
    periods: tuple[Period, ...]
    windowing: Windowing
    dense: str | None
    """Modality that gets one dense embedding per sub-patch, or None."""
    block: int
    """Number of patches along a side of a block, which is read and encoded at once. It divides `area.shard`."""
    kept: UnitFiles
    """Storage of tokens, the result of the first step, until they are no longer needed."""
    places: Floats | None = None
    """Place corrections: what each place in a window adds to its fused token, (row col dim). They are subtracted. None
    for none."""
    dataset: str | None = None
    """Dataset whose statistics standardise the values."""
    precision: Precision = "float32"
    growing: Growing | None = None
    """What is stored so that later dates can be added; None for nothing."""

    @property
    def units(self) -> list[Unit]:
        """All units of the work, in the order in which they are done."""
        rows, cols = self.area.shards
        return [Unit(p, r, c) for p in range(len(self.periods)) for r in range(rows) for c in range(cols)]

    @property
    def context(self) -> dict[str, Source]:
        """Sources of context modalities, which are encoded with a whole window instead of patch by patch."""
        return {key: source for key, source in self.sources.items() if source.modality.covers_tile}

    def span(self, unit: Unit) -> Span:
        """Return the patches of a unit."""
        return self.area.shard_span(unit.row, unit.col)

    def needs(self, unit: Unit) -> list[Unit]:
        """Return the units whose first step the second step of a unit needs: those with tokens in its windows.

        They include this unit. The relation is symmetric: each of them needs this unit, too.
        """
        around, side = self.windowing.around(self.area, self.span(unit)), self.area.shard
        rows = range(around.top // side, (around.bottom - 1) // side + 1)
        cols = range(around.left // side, (around.right - 1) // side + 1)
        return [Unit(unit.period, row, col) for row in rows for col in cols]

    def blocks(self, unit: Unit) -> list[Span]:
        """Return the blocks of a unit that touch the requested ground."""
        return [span for span in self.span(unit).cut(self.block) if self.area.inside(span).any()]

    def read(self, period: int, span: Span, keys: Sequence[str] | None = None) -> Read:
        """Read the pixels of a block, of the sources named by `keys`, or of all except context modalities.

        If the block continues what an earlier run stored, only the new dates are read. Several threads may call this.
        """
        all_sources = self.sources
        if keys is None and self.growing is not None and self.growing.goes_on(period, span):
            all_sources = self.growing.new[period]
        sources = {key: source for key, source in all_sources.items() if keys is None or key in keys}
        if keys is None:
            sources = {key: source for key, source in sources.items() if key not in self.context}
        return read_tile(sources, self.area, self.periods[period], span, self.model.normaliser, self.dataset)

    def encode(self, period: int, span: Span, read: Read) -> Tokens:
        """Encode a block: return its tokens."""
        size_m, inside = self.area.patch_size_m, self.area.inside(span)
        with torch.inference_mode(), multiplying(self.precision, self.model.device):
            if self.growing is not None:
                return encode_growing(
                    self.model, read.tile, size_m, span, inside, self.dense, self.growing, period, read.unreadable
                )
            if read.tile is None:
                return Tokens(span, unreadable=read.unreadable)
            found = encode(self.model, read.tile, size_m, span, inside, self.dense)
        return replace(found, unreadable=read.unreadable)

    def make(self, unit: Unit) -> Tokens:
        """Do the whole first step: read and encode all blocks of a unit."""
        parts = [self.encode(unit.period, span, self.read(unit.period, span)) for span in self.blocks(unit)]
        return joined(self.span(unit), parts)

    def keep(self, unit: Unit, parts: Sequence[Tokens]) -> None:
        """End the first step: store the tokens of a unit, from those of its blocks."""
        tokens = joined(self.span(unit), parts)
        self.kept.write(unit, tokens.arrays(), tokens.unreadable)

    def finish(self, unit: Unit) -> tuple[dict[str, tuple[Floats, Flags]], Found]:
        """Do the second step: return the arrays of a unit and facts about them. All tokens it needs must be stored."""
        around = self.windowing.around(self.area, self.span(unit))
        parts = [read_tokens(self.kept, other, self.span(other), around) for other in self.needs(unit)]
        return self.fuse(unit, parts, read_sub(self.kept, unit) if self.dense else None)

    def fuse(
        self, unit: Unit, parts: Sequence[Tokens], sub: tuple[Floats, Flags] | None
    ) -> tuple[dict[str, tuple[Floats, Flags]], Found]:
        """Return the arrays of a unit, from the tokens of the units it needs, in order, and its sub-patch tokens."""
        span, windows = self.span(unit), self.windowing.touching(self.area, self.span(unit))
        tokens, blend = joined(self.windowing.around(self.area, span), parts), Blend(span, self.model.config.dim)
        problems = self._blend(unit.period, tokens, windows, blend)
        vectors, seen = blend.result()
        arrays = {"patch": (vectors, seen)}
        if self.dense is not None:
            arrays["dense"] = self._dense(sub, vectors, seen)
        own = next(part for part, other in zip(parts, self.needs(unit), strict=True) if other == unit)
        seams = Seams.of(vectors, seen, span, self.area, self.windowing)
        return arrays, Found(seams, (*own.unreadable, *problems), int(seen.sum()))

    def fuse_window(self, period: int, tokens: Tokens) -> dict[str, tuple[Floats, Flags]]:
        """Embed one window separately, from its tokens. The result is empty if nothing was observed."""
        context, _ = self._context(period, [tokens.span])
        if not tokens.patch and not context:
            return {}
        fused, flags = self._fuse(tokens, [tokens.span], context)
        arrays = {"patch": (fused[0], flags[0])}
        if self.dense is not None:
            arrays["dense"] = self._dense(tokens.sub, fused[0], flags[0])
        return arrays

    def save_model(self, path: Path) -> None:
        """Write the weights and their statistics to a file."""
        save(self.model, path)

    @property
    def load_model(self) -> Callable[..., AnySat]:
        """The function that reads what `save_model` writes."""
        return load

    def _blend(self, period: int, tokens: Tokens, windows: Sequence[Span], blend: Blend) -> tuple[str, ...]:
        """Fuse windows, several at once within bounded memory, and average them."""
        weight, valid = fade(self.windowing.shape(self.area)), tokens.valid
        problems: list[str] = []
        if not all(source.modality.covers_tile for source in self.sources.values()):
            windows = [window for window in windows if valid[window.within(tokens.span)].any()]
        count = max(1, TOKENS_AT_ONCE // (max(len(tokens.patch), 1) * weight.size))
        for first in range(0, len(windows), count):
            some = list(windows[first : first + count])
            filled = some + some[:1] * (count - len(some))  # one shape of batch, and so the same sums, at every start
            context, unreadable = self._context(period, some)
            problems += unreadable
            fused, flags = self._fuse(tokens, filled, context)
            for window, vectors, seen in zip(some, fused, flags, strict=False):
                blend.add(window, vectors, seen, weight)
        return tuple(dict.fromkeys(problems))

    def _fuse(
        self, tokens: Tokens, windows: Sequence[Span], context: Mapping[str, SeenPatches]
    ) -> tuple[Floats, Flags]:
        """Return the fused tokens (window row col dim), and which of them are valid (window row col)."""
        device, (rows, cols) = self.model.device, windows[0].shape
        seen = {key: _for_all(found, len(windows)) for key, found in context.items()}
        for key, (some, flags) in stacked(tokens, windows).items():
            seen[key] = SeenPatches(
                some.to(device, self.model.dtype), None if flags is None else flags.to(device), None, None
            )
        with torch.inference_mode(), multiplying(self.precision, device):
            _, fused = self.model.fuse(seen, (rows, cols), self.area.patch_size_m, max_pairs=PAIRS_AT_ONCE)
        if tokens.patch:
            valid = np.stack([tokens.valid[window.within(tokens.span)] for window in windows])
        else:  # nothing but context
            pooled = [pool_valid(one.patch_valid, rows, cols) for one in seen.values()]
            whole = np.ones((len(windows), rows, cols), bool)
            valid = np.logical_or.reduce([whole if flag is None else flag.cpu().numpy() for flag in pooled])
            valid &= np.stack([self.area.inside(window) for window in windows])
        vectors = fused.float().cpu().numpy().reshape(len(windows), rows, cols, -1)
        return vectors if self.places is None else vectors - self.places, valid

    def _context(self, period: int, windows: Sequence[Span]) -> tuple[dict[str, SeenPatches], tuple[str, ...]]:
        """Return the tokens of context modalities, each on a grid of its own pixels."""
        found: dict[str, SeenPatches] = {}
        problems: list[str] = []
        for key, source in self.context.items():
            read = [self.read(period, window, [key]) for window in windows]
            problems += [problem for one in read for problem in one.unreadable]
            some = next((one.tile for one in read if one.tile is not None), None)
            if some is None:
                continue
            batch = Batch.of([_emptied(some) if one.tile is None else one.tile for one in read])
            try:
                with torch.inference_mode(), multiplying(self.precision, self.model.device):
                    inputs, _ = self.model.prepare(batch, source.modality.gsd_m)
                    found |= self.model.see(inputs, source.modality.gsd_m)
            except EmptyTileError:  # finite in the file, not so in the units of the statistics
                continue
        return found, tuple(problems)

    def _dense(self, found: tuple[Floats, Flags] | None, vectors: Floats, seen: Flags) -> tuple[Floats, Flags]:
        """Return for each sub-patch the fused token of its patch and its own token (sub_row sub_col 2*dim)."""
        assert self.dense is not None
        side = round(self.area.patch_size_m / self.sources[self.dense].modality.subpatch_m)
        over = np.repeat(np.repeat(vectors, side, axis=0), side, axis=1)
        if found is None:
            return np.full((*over.shape[:2], 2 * over.shape[-1]), np.nan, np.float32), np.zeros(over.shape[:2], bool)
        valid = found[1] & np.repeat(np.repeat(seen, side, axis=0), side, axis=1)
        return np.where(valid[..., None], np.concatenate([over, found[0]], axis=-1), np.float32(np.nan)), valid


def read_tile(
    sources: Mapping[str, Source], area: Area, period: Period, span: Span, normaliser: Normaliser | None,
    dataset: str | None,
) -> Read:  # fmt: skip
    """Read a span from several sources, in the units of the statistics.

    Reading a file is retried a few times. If it still fails, the file is left out and reported.

    Args:
        normaliser: Statistics whose units the values are converted to; None for no conversion.
    """
    observations: dict[str, Observation] = {}
    problems: list[str] = []

    def patiently(read: Callable[[], Any]) -> Any:
        for attempt in range(RETRIES + 1):
            try:
                return read()
            except SourceError as error:
                if attempt == RETRIES:
                    problems.append(str(error))
                else:
                    time.sleep(RETRY_AFTER_S * 2**attempt)
        return None

    for key, source in sources.items():
        grid = area.covering(span, source.modality)
        days = period if source.modality.is_temporal else None
        seen, _ = source.observe(grid, between=days, attempt=patiently)
        if seen.valid.any():
            observations[key] = seen
    if not observations:
        return Read(None, tuple(problems))
    tile = Tile(observations=observations, id=f"{span.top},{span.left}", dataset=dataset)
    return Read(tile if normaliser is None else normaliser.in_units(tile)[0], tuple(problems))


def _emptied(tile: Tile) -> Tile:
    """Return a tile with the same modalities, all invalid."""
    empty = {key: replace(o, valid=np.zeros_like(o.valid)) for key, o in tile.observations.items()}
    return replace(tile, observations=empty)


def _for_all(found: SeenPatches, count: int) -> SeenPatches:
    """Return tokens for a fixed number of windows, with those of the first in place of missing ones."""

    def filled(some: torch.Tensor | None) -> torch.Tensor | None:
        return None if some is None else torch.cat([some, some[:1].expand(count - len(some), *some.shape[1:])])

    patch = filled(found.patch)
    assert patch is not None
    return SeenPatches(patch, filled(found.patch_valid), None, None)
