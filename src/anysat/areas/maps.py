"""Run a predictor over the windows of an area, block by block. Where windows overlap, predictions are blended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.areas.job import Found, Period, Read, read_tile
from anysat.areas.units import UnitFiles, names_in, unreadable_in
from anysat.areas.windows import Blend, Seams, Windowing, fade
from anysat.batch import Batch, Tile
from anysat.data.targets import Target
from anysat.geo.area import Area, Span
from anysat.geo.read.source import Source
from anysat.geo.stores.store import Unit
from anysat.model.precision import Precision, multiplying
from anysat.observation import Observation

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


class Part(NamedTuple):
    """Predictions for one window."""

    window: Span
    values: Floats | None
    """Predictions (row col output), NaN where nothing was seen; None if nothing was seen in the window."""
    doubt: Floats | None
    """Disagreement of variants of the same ground (row col); None if there are no variants, or nothing was seen."""
    unreadable: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class MapJob:
    """The work of predicting over an area."""

    model: Any
    """The predictor."""
    load_model: Callable[..., Any]
    """The function that reads the predictor, from a file written by its `save` and `device`."""
    sources: Mapping[str, Source]
    area: Area
    periods: tuple[Period, ...]
    windowing: Windowing
    target: Target
    """What is predicted."""
    per_patch: int
    """Number of predictions along a side of a patch; 0 if there is one for a whole window."""
    kept: UnitFiles
    """Storage of predictions until they are written."""
    across: int = 1
    """Largest number of windows along a side of a block, which is read and encoded at once."""
    precision: Precision = "float32"
    probabilities: bool = False
    """Whether probabilities are stored beside the classes."""
    variants: int = 0
    """Number of variants of each window (flips and halves of the dates). The prediction is their mean, and their
    disagreement is stored as uncertainty. 0 predicts only for the window as it is."""

    @property
    def side(self) -> int:
        """Number of map pixels along a side of a patch."""
        return max(self.per_patch, 1)

    @property
    def num_outputs(self) -> int:
        """Number of classes or labels; 1 for values."""
        return max(len(self.target.classes), 1)

    def span(self, unit: Unit) -> Span:
        """Return the patches of a unit."""
        return self.area.shard_span(unit.row, unit.col)

    def needs(self, unit: Unit) -> list[Unit]:
        """Return the units whose first step a unit needs: only itself."""
        return [unit]

    def blocks(self, unit: Unit) -> list[Span]:
        """Return the blocks of the windows that touch a unit and the requested ground."""
        blocks = self.windowing.cut(self.windowing.around(self.area, self.span(unit)), self.across)
        return [block for block in blocks if self.windows(block)]

    def windows(self, block: Span) -> list[Span]:
        """Return the windows of a block that touch the requested ground."""
        inside = self.area.inside(block)
        return [window for window in self.windowing.cut(block) if inside[window.within(block)].any()]

    def read(self, period: int, block: Span) -> list[Read]:
        """Read the pixels of a block once, and context modalities for each window: return what each window holds.

        A window has no tile if nothing of it can be predicted.
        """
        days, context = self.periods[period], {k: s for k, s in self.sources.items() if s.modality.covers_tile}
        tiling = {key: source for key, source in self.sources.items() if key not in context}
        whole = read_tile(tiling, self.area, days, block, None, None)
        found = []
        for window in self.windows(block):
            around = read_tile(context, self.area, days, window, None, None)
            seen = {**_cut(whole.tile, block, window), **(around.tile.observations if around.tile is not None else {})}
            tile = Tile(observations=seen, id=f"{window.top},{window.left}") if self._looks_at(seen) else None
            if tile is not None and (normaliser := self.model.encoder.normaliser) is not None:
                tile = normaliser.in_units(tile)[0]
            found.append(Read(tile, whole.unreadable + around.unreadable))
        return found

    def encode(self, period: int, block: Span, reads: Sequence[Read]) -> list[Part]:  # noqa: ARG002 - the same in all
        """Predict for the windows of a block: the mean over the variants of each, and their disagreement.

        Windows that hold the same modalities are encoded as one batch.
        """
        windows = self.windows(block)
        parts = [Part(window, None, None, read.unreadable) for window, read in zip(windows, reads, strict=True)]
        alike: dict[tuple[str, ...], dict[int, Tile]] = {}
        for place, (tile, _) in enumerate(reads):
            if tile is not None:
                alike.setdefault(tuple(tile.observations), {})[place] = tile
        for tiles in alike.values():
            shape, numbers = parts[0].window.shape, range(max(self.variants, 1))
            answers = np.stack([self._answered([*tiles.values()], number, shape) for number in numbers])
            means = _mean(answers)
            doubts = _disagreement(answers, self.target) if self.variants else [None] * len(tiles)
            for place, mean, doubt in zip(tiles, means, doubts, strict=True):
                parts[place] = parts[place]._replace(values=mean, doubt=doubt)
        return parts

    def _looks_at(self, seen: Collection[str]) -> bool:
        """Return whether a window with these modalities has one that the predictor uses, and the dense one if needed.

        If the predictor uses inputs whose pixels lie in patches, context modalities do not suffice.
        """
        view = self.model.view
        used = [key for key in view.modalities if key in self.sources]
        used = [key for key in used if not self.sources[key].modality.covers_tile] or used
        return any(key in seen for key in used) and (view.dense is None or view.dense in seen)

    def _answered(self, tiles: Sequence[Tile], number: int, shape: tuple[int, int]) -> Floats:
        """Return probabilities or values (tile row col output) for a variant of tiles, flipped back; NaN if unseen."""
        flips = tuple(axis for axis, bit in ((-2, 1), (-1, 2)) if number & bit)
        batch = Batch.of(_variant(tile, flips, half=number >= 4, odd=number % 2) for tile in tiles)
        with multiplying(self.precision, self.model.device):
            found = self.model.predict(batch.to(self.model.device))
        values = (found.answer[..., None] if found.probabilities is None else found.probabilities).float().cpu().numpy()
        if not self.per_patch:
            return np.broadcast_to(values.reshape(len(tiles), 1, 1, -1), (len(tiles), *shape, self.num_outputs))
        values = values.reshape(len(tiles), shape[0] * self.side, shape[1] * self.side, self.num_outputs)
        return np.flip(values, tuple(axis - 1 for axis in flips))

    def keep(self, unit: Unit, blocks: Sequence[Sequence[Part]]) -> None:
        """Blend the windows of the blocks of a unit, and store the result."""
        span, parts = self.span(unit), [*chain.from_iterable(blocks)]
        problems = [problem for part in parts for problem in part.unreadable]
        around, cell = self.windowing.around(self.area, span), np.ones((self.side, self.side), bool)
        inside = self.area.inside(around)
        arrays: dict[str, NDArray[Any]] = {}
        for name, depth in (("values", self.num_outputs), ("doubt", 1)):
            blend = Blend(span, depth, self.side)
            for window, values, doubt, _ in parts:
                found = values if name == "values" else None if doubt is None else doubt[..., None]
                if found is not None:
                    valid = np.isfinite(found).all(-1) & np.kron(inside[window.within(around)], cell)
                    blend.add(window, found, valid, fade(valid.shape))
            if name == "values" or self.variants:
                arrays[name], arrays[f"{name}_valid"] = blend.result()
        self.kept.write(unit, arrays, tuple(dict.fromkeys(problems)))

    def finish(self, unit: Unit) -> tuple[dict[str, tuple[NDArray[Any], Flags]], Found]:
        """Do the second step: return the arrays of a unit, and facts about them."""
        with self.kept.opened(unit) as file:
            kept, problems = {name: file.get_tensor(name) for name in names_in(file)}, unreadable_in(file)
        values, seen = kept["values"], kept["values_valid"]
        made: dict[str, Callable[[], tuple[NDArray[Any], Flags]]] = {
            "class": lambda: (np.where(seen, np.nan_to_num(values).argmax(-1), 0), seen),
            "value": lambda: (values[..., 0], seen),
            "probability": lambda: (values, seen),
            "uncertainty": lambda: (kept["doubt"][..., 0], kept["doubt_valid"]),
        }
        arrays = {name: made[name]() for name in layers_of(self.target, self.probabilities, self.variants)}
        return arrays, Found(Seams(), problems, int(seen.sum()) // self.side**2)

    def save_model(self, path: Path) -> None:
        """Write the predictor to a file."""
        self.model.save(path)


def layers_of(target: Target, probabilities: bool, variants: int) -> list[str]:
    """Return the names of the layers of a map, the answers first.

    Args:
        target: What is predicted. Several labels per place are stored as probabilities only.
        probabilities: Whether probabilities are stored beside the classes.
        variants: Number of variants of each window, see `MapJob`.
    """
    found = [] if target.is_multilabel else ["class" if target.classes else "value"]
    return found + ["probability"] * (probabilities or target.is_multilabel) + ["uncertainty"] * bool(variants)


def _cut(tile: Tile | None, block: Span, window: Span) -> dict[str, Observation]:
    """Return what was seen of a block in one of its windows, without the dates on which nothing was."""
    seen = {}
    for key, one in ({} if tile is None else tile.observations).items():
        px = one.shape_px[0] // block.shape[0]
        rows, cols = (slice(part.start * px, part.stop * px) for part in window.within(block))
        values, valid, dates = one.values[..., rows, cols], one.valid[..., rows, cols], one.dates
        if dates is not None:
            kept = valid.any((1, 2, 3))
            values, valid, dates = values[kept], valid[kept], dates[kept]
        if valid.any():
            seen[key] = replace(one, values=values, valid=valid, dates=dates)
    return seen


def _variant(tile: Tile, flips: tuple[int, ...], *, half: bool, odd: int) -> Tile:
    """Return a tile flipped along some axes, and with `half`, with every other date, from the first or second on."""
    seen = {}
    for key, one in tile.observations.items():
        dates = slice(odd, None, 2) if half and one.dates is not None and len(one.dates) > 1 else slice(None)
        when = one.dates if one.dates is None else one.dates[dates]
        values, valid = one.values[dates], one.valid[dates]
        seen[key] = Observation(
            modality=one.modality, values=np.flip(values, flips).copy(), valid=np.flip(valid, flips).copy(),
            units=one.units, dates=when,
        )  # fmt: skip
    return Tile(observations=seen, id=tile.id, dataset=tile.dataset)


def _mean(found: Floats) -> Floats:
    """Return the mean over the first axis without NaN; it is NaN where there is nothing else."""
    seen = np.isfinite(found)
    count = seen.sum(0)
    return np.where(count > 0, np.where(seen, found, 0).sum(0) / np.maximum(count, 1), np.nan).astype(found.dtype)


def _disagreement(found: Floats, target: Target) -> Floats:
    """Return the disagreement (row col) of variants (variant row col output).

    It is the mutual information in nats, for labels its mean over the labels, and for values the standard deviation.
    Variants with NaN are ignored; it is NaN where all are NaN.
    """
    if not target.classes:
        return np.sqrt(_mean((found[..., 0] - _mean(found[..., 0])) ** 2))
    shares = np.stack([found, 1 - found], axis=-1) if target.is_multilabel else found

    def entropy(shares: Floats) -> Floats:
        return -np.where(shares == 0, 0, shares * np.log(np.maximum(shares, 1e-12))).sum(-1)

    told = entropy(_mean(shares)) - _mean(entropy(shares))
    return np.maximum(told.mean(-1) if target.is_multilabel else told, 0).astype(np.float32)
