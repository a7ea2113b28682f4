"""Run a predictor over an area, window by window. Where windows overlap, predictions are blended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.areas.job import Found, Period, Read, read_tile
from anysat.areas.units import UnitFiles, names_in, unreadable_in
from anysat.areas.windows import Blend, Seams, Windowing, fade
from anysat.batch import Batch, Tile
from anysat.data.targets import Target
from anysat.errors import EmptyTileError
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
        """Return the windows that touch a unit and the requested ground."""
        return [
            window for window in self.windowing.touching(self.area, self.span(unit)) if self.area.inside(window).any()
        ]

    def read(self, period: int, span: Span) -> Read:
        """Read the pixels of a window, including context modalities."""
        return read_tile(self.sources, self.area, self.periods[period], span, self.model.encoder.normaliser, None)

    def encode(self, period: int, span: Span, read: Read) -> Part:  # noqa: ARG002 - the same in all
        """Predict for a window: the mean over its variants, and their disagreement."""
        if read.tile is None or not self._looks_at(read.tile):
            return Part(span, None, None, read.unreadable)
        answers = [self._answered(read.tile, number, span.shape) for number in range(max(self.variants, 1))]
        found = [answer for answer in answers if answer is not None]
        if not found:
            return Part(span, None, None, read.unreadable)
        mean = _mean(np.stack(found))
        doubt = _disagreement(np.stack(found), self.target) if self.variants else None
        return Part(span, mean, doubt, read.unreadable)

    def _looks_at(self, tile: Tile) -> bool:
        """Return whether a tile has a modality that the predictor uses, and the dense one if it needs one."""
        view, seen = self.model.view, tile.observations
        return any(key in seen for key in view.modalities) and (view.dense is None or view.dense in seen)

    def _answered(self, tile: Tile, number: int, shape: tuple[int, int]) -> Floats | None:
        """Return probabilities or values (row col output) for a variant of a tile, flipped back; None if unseen."""
        flips = tuple(axis for axis, bit in ((-2, 1), (-1, 2)) if number & bit)
        variant = _variant(tile, flips, half=number >= 4, odd=number % 2)
        try:
            with multiplying(self.precision, self.model.device):
                found = self.model.predict(Batch.of([variant]).to(self.model.device))
        except EmptyTileError:  # not finite in the units of the statistics, or nothing on these dates
            return None
        values = found.answer[..., None] if found.probabilities is None else found.probabilities
        values = values[0].float().cpu().numpy()
        if np.isnan(values).all():  # nothing was seen on these dates
            return None
        if not self.per_patch:
            return np.broadcast_to(values.reshape(1, 1, -1), (*shape, self.num_outputs))
        values = values.reshape(shape[0] * self.side, shape[1] * self.side, self.num_outputs)
        return np.flip(values, tuple(axis + 2 for axis in flips)).copy() if flips else values

    def keep(self, unit: Unit, parts: Sequence[Part]) -> None:
        """Blend the windows of a unit, and store the result."""
        span, problems = self.span(unit), [problem for part in parts for problem in part.unreadable]
        arrays: dict[str, NDArray[Any]] = {}
        for name, depth in (("values", self.num_outputs), ("doubt", 1)):
            blend = Blend(span, depth, self.side)
            for window, values, doubt, _ in parts:
                found = values if name == "values" else None if doubt is None else doubt[..., None]
                if found is not None:
                    rows, cols = window.shape
                    inside = np.kron(self.area.inside(window), np.ones((self.side, self.side), bool))
                    blend.add(
                        window, found, np.isfinite(found).all(-1) & inside, fade((rows * self.side, cols * self.side))
                    )
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
