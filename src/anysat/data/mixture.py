"""Mixtures: several datasets as one endless stream of batches, determined by seed and step alone.

Every batch is of one dataset and one patch size. There is no state to save: neither a restart at any step nor another
number of workers changes the batches (`docs/decisions/stream.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Batch, Tile
from anysat.data.base import Tiles
from anysat.data.loader import Draw, Loader, Plan
from anysat.data.transforms import Augmentation, augment
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.patches import centimetres

SAMPLERS = ("shuffle", "sqrt_frequency")
MAX_BLOCK = 10_000
"""Largest number of steps after which every dataset has had its exact share. Weights that need more are refused."""
ENDLESS = 2**62
_SCHEDULE, _PATCH_SIZE, _ORDER, _AUGMENT = range(4)  # purposes of random numbers; never renumber them


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One dataset of a mixture, and how it is sampled.

    Raises:
        InputError: The dataset has no samples.
        RecordError, UnknownNameError: A field has a value that is not possible, or a patch size does not fit.
    """

    tiles: Tiles
    """The dataset, opened with the modalities to read."""
    batch_size: int
    """Tiles per step on each rank."""
    weight: float | Fraction = 1
    """Share of the steps, relative to the other parts; a ratio of small integers."""
    patch_sizes_m: tuple[float, ...]
    """Patch sizes in metres. One is drawn for each step."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of each tile; none by default."""
    sampler: str = "shuffle"
    """`shuffle` draws every sample once per epoch. `sqrt_frequency` draws a class with a probability proportional to
    the square root of its frequency, then any of its samples (as published for PLANTED). It never draws samples without
    a class, whose number is below 0."""

    def __post_init__(self) -> None:
        where = f"part {self.tiles.name!r}"
        if not len(self.tiles):
            raise InputError(where, "at least one sample", "none")
        if self.batch_size < 1:
            raise RecordError(f"{where}, batch_size", self.batch_size, "at least one tile")
        crop_m = self.augmentation.crop_m
        if not self.patch_sizes_m:
            raise RecordError(f"{where}, patch_sizes_m", self.patch_sizes_m, "at least one patch size")
        for patch_size_m in self.patch_sizes_m:
            size = centimetres(patch_size_m, f"{where}, patch_sizes_m")
            for side_m in [crop_m] if crop_m else sides_m(self.tiles):
                if centimetres(side_m, where) % size:
                    expected = f"sizes that divide the {side_m:g} m of a {'crop' if crop_m else 'tile'}"
                    raise RecordError(f"{where}, patch_sizes_m", patch_size_m, expected)
        if self.sampler not in SAMPLERS:
            raise RecordError(f"{where}, sampler", self.sampler, f"one of {', '.join(SAMPLERS)}")
        _ratio(self.weight, where)
        there = getattr(self.tiles, "modalities", None)
        for option in ("max_dates_of", "keep_dates_frac_of"):
            for key in getattr(self.augmentation, option):
                if there is not None and key not in there:
                    raise UnknownNameError(f"modality of {where}, {option}", key, there)


def sides_m(tiles: Tiles) -> list[float]:
    """Return the sides that tiles have, in metres; empty if unknown.

    They come from a column `extent_m` of the samples, or else from the dataset's record. The generated world has such a
    column, because `world.json` may set another side than that of the record.
    """
    samples, record = (getattr(tiles, name, None) for name in ("samples", "record"))
    column = None if samples is None else samples.columns.get("extent_m")
    if column is not None and column.dtype.kind in "iuf":
        return [float(side) for side in np.unique(column)]
    return [] if record is None else [record.tile_m]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """An endless sequence of batches from several datasets. A step has the same batch whenever it is drawn.

    Datasets take turns in blocks of steps; in each block every dataset has exactly its share. The samples of a part
    come in epochs, each sample once. The rest of an epoch starts a batch that the next epoch completes, so such a batch
    may hold a sample twice. Two ranks with batches of 4 together draw the same as one rank with batches of 8.

    Raises:
        InputError, RecordError: There are no parts, or a field has a value that is not possible.
    """

    parts: Sequence[Part]
    """The datasets of the mixture."""
    seed: int = 0
    rank: int = 0
    """Number of this process among those that train together."""
    world_size: int = 1
    """Number of processes that train together."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("mixture", "at least one part", "none")
        if self.seed < 0:
            raise RecordError("mixture, seed", self.seed, "0 or more")
        if not 0 <= self.rank < self.world_size:
            limits = f"0 to {self.world_size - 1}" if self.world_size > 0 else "a world_size of at least 1"
            raise RecordError("mixture, rank and world_size", (self.rank, self.world_size), limits)
        assert len(self._turns.block) <= MAX_BLOCK, self._turns.block
        assert len(self._orders) == len(self.parts), self._orders  # made before workers start

    def plan(self, step: int) -> Plan:
        """Return what a step reads on this rank: dataset, patch size, samples and seeds of their augmentation."""
        if step < 0:
            raise RecordError("mixture, step", step, "0 or more")
        number, batches_before = self._turns.find(step)
        part = self.parts[number]
        first = (batches_before * self.world_size + self.rank) * part.batch_size
        positions = np.arange(first, first + part.batch_size)
        sizes = part.patch_sizes_m
        drawn = np.random.default_rng((self.seed, _PATCH_SIZE, step)).integers(len(sizes))
        return Plan(
            step=step,
            part=number,
            dataset=part.tiles.name,
            patch_size_m=float(sizes[drawn]),
            indices=self._orders[number].at(positions),
            seeds=tuple((self.seed, _AUGMENT, number, int(position)) for position in positions),
        )

    def read(self, plan: Plan) -> list[Tile]:
        """Read the tiles of a plan, augmented."""
        part = self.parts[plan.part]
        tiles = []
        for index, seed in zip(plan.indices, plan.seeds, strict=True):
            generator = np.random.default_rng(seed)
            drawn = getattr(part.tiles, "drawn", None) if part.augmentation.cut_at_random else None
            tile = _tile(part.tiles, index) if drawn is None else drawn(int(index), generator)
            tiles.append(augment(tile, part.augmentation, generator))
        return tiles

    def draw(self, step: int) -> Draw:
        """Return the batch of a step, with its dataset and patch size."""
        return _draw(self, step)

    def loader(
        self, start_step: int = 0, num_steps: int | None = None, *, num_workers: int = 0, prefetch: int = 2,
        pin_memory: bool = False,
    ) -> Loader:  # fmt: skip
        """Return a loader of the batches from a step on, which worker processes read ahead.

        Args:
            start_step: First step. For a run that is resumed, the number of steps it has done.
            num_steps: Number of steps; None for no end.
            num_workers: Number of worker processes; 0 reads in this process.
            prefetch: Number of batches that each worker keeps ready.
            pin_memory: Put batches in page-locked memory, for faster copies to a GPU.
        """
        stop = ENDLESS if num_steps is None else start_step + num_steps
        return Loader(source=self, start=start_step, stop=stop, num_workers=num_workers, prefetch=prefetch,
                      pin_memory=pin_memory)  # fmt: skip

    @cached_property
    def _turns(self) -> _Turns:
        ratios = [_ratio(part.weight, f"part {part.tiles.name!r}") for part in self.parts]
        whole = [int(ratio * math.lcm(*(r.denominator for r in ratios))) for ratio in ratios]
        counts = [count // math.gcd(*whole) for count in whole]
        if sum(counts) > MAX_BLOCK:
            weights = ", ".join(str(part.weight) for part in self.parts)
            raise RecordError("mixture, weights", weights, f"ratios that repeat within {MAX_BLOCK} steps; round them")
        return _Turns(counts, self.seed)

    @cached_property
    def _orders(self) -> list[_Order]:
        return [
            _Order(len(part.tiles), part.batch_size * self.world_size, (self.seed, _ORDER, number),
                   part.tiles.labels() if part.sampler == "sqrt_frequency" else None, part.tiles.name)
            for number, part in enumerate(self.parts)
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderedPass:
    """One pass over a dataset in its order, for validation. Nothing is augmented, dropped or repeated.

    Ranks take turns tile by tile. The last batch may be smaller. A rank that would get nothing of it has one step less.
    """

    tiles: Tiles
    """The dataset."""
    batch_size: int
    """Tiles per step on each rank."""
    patch_size_m: float
    """Patch size in metres of every step."""
    rank: int = 0
    """Number of this process among those that work together."""
    world_size: int = 1
    """Number of processes that work together."""

    def __len__(self) -> int:
        """Number of steps of this rank."""
        full, rest = divmod(len(self.tiles), self.batch_size * self.world_size)
        return full + (self.rank < rest)

    def plan(self, step: int) -> Plan:
        """Return what a step reads on this rank."""
        whole = self.batch_size * self.world_size
        indices = np.arange(step * whole + self.rank, min((step + 1) * whole, len(self.tiles)), self.world_size)
        return Plan(step=step, dataset=self.tiles.name, patch_size_m=self.patch_size_m, indices=indices)

    def read(self, plan: Plan) -> list[Tile]:
        """Read the tiles of a plan."""
        return [_tile(self.tiles, index) for index in plan.indices]

    def draw(self, step: int) -> Draw:
        """Return the batch of a step, with its dataset and patch size."""
        return _draw(self, step)

    def loader(self, *, num_workers: int = 0, prefetch: int = 2, pin_memory: bool = False) -> Loader:
        """Return a loader of all batches, which can be iterated several times. Arguments as of `Mixture.loader`."""
        return Loader(source=self, start=0, stop=len(self), num_workers=num_workers, prefetch=prefetch,
                      pin_memory=pin_memory)  # fmt: skip


def _tile(tiles: Tiles, index: np.int64) -> Tile:
    """Return a tile to be stacked, with values in the stored type if the dataset can give them."""
    as_stored = getattr(tiles, "as_stored", None)
    return tiles[int(index)] if as_stored is None else as_stored(int(index))


def _draw(source: Mixture | OrderedPass, step: int) -> Draw:
    plan = source.plan(step)
    batch = Batch.of(source.read(plan))
    return Draw(step=step, dataset=plan.dataset, patch_size_m=plan.patch_size_m, batch=batch)


def _ratio(weight: float | Fraction, where: str) -> Fraction:
    """Return a weight as an exact ratio."""
    if not math.isfinite(weight) or weight <= 0:
        raise RecordError(f"{where}, weight", weight, "a positive number")
    ratio = Fraction(weight).limit_denominator(1000)
    if abs(float(ratio) - float(weight)) > 1e-9 * float(weight):
        raise RecordError(f"{where}, weight", weight, f"a ratio of small integers, such as Fraction({str(ratio)!r})")
    return ratio


class _Turns:
    """The part of each step. A block of steps has a fixed number of steps of every part and is shuffled by itself."""

    def __init__(self, counts: Sequence[int], seed: int) -> None:
        self.counts, self.seed = counts, seed
        self.block = np.repeat(np.arange(len(counts)), counts)
        self._last: tuple[int, NDArray[np.int64]] = (-1, self.block)

    def find(self, step: int) -> tuple[int, int]:
        """Return the part of a step, and the number of its batches before this one."""
        block, place = divmod(step, len(self.block))
        if self._last[0] != block:
            shuffled = np.random.default_rng((self.seed, _SCHEDULE, block)).permutation(self.block)
            self._last = (block, shuffled)
        order = self._last[1]
        part = int(order[place])
        return part, block * self.counts[part] + int(np.count_nonzero(order[:place] == part))


class _Order:
    """The sample at each position of a part's endless sequence, one epoch after another."""

    def __init__(
        self, num_samples: int, batch: int, seed: tuple[int, ...], labels: NDArray[np.int64] | None, name: str
    ) -> None:
        self.num_samples, self.batch, self.seed = num_samples, batch, seed
        self._epochs: dict[int, NDArray[np.int32]] = {}
        self._classes: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None
        if labels is not None:
            labelled = np.flatnonzero(labels >= 0)
            if not len(labelled):
                raise InputError(f"part {name!r}, sampler sqrt_frequency", "samples with a class", "none has one")
            _, inverse, counts = np.unique(labels[labelled], return_inverse=True, return_counts=True)
            self._classes = labelled[np.argsort(inverse, kind="stable")].astype(np.int32), counts

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at some positions."""
        epochs, places = np.divmod(positions, self.num_samples)
        found = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._epoch(int(epoch))[places[here]]
        return found

    def _epoch(self, epoch: int) -> NDArray[np.int32]:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # a batch may lie in two epochs
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._draw(epoch) if self._classes is None else self._choose(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch: int) -> NDArray[np.int32]:
        generator = np.random.default_rng((*self.seed, epoch))
        return generator.permutation(self.num_samples).astype(np.int32)

    def _draw(self, epoch: int) -> NDArray[np.int32]:
        """Return a permutation whose start repeats no sample of the batch begun by the epoch before.

        Such samples are exchanged with others from the middle, so that the end of every epoch stays as it was drawn.
        """
        order, begun = self._shuffled(epoch), epoch * self.num_samples % self.batch
        if not (epoch and begun) or self.num_samples < 3 * self.batch:
            return order
        taken = self._shuffled(epoch - 1)[-begun:]
        twice = np.flatnonzero(np.isin(order[: self.batch - begun], taken))
        middle = np.flatnonzero(~np.isin(order[self.batch : -self.batch], taken))[: len(twice)] + self.batch
        twice = twice[: len(middle)]
        order[twice], order[middle] = order[middle], order[twice]
        return order

    def _choose(self, epoch: int) -> NDArray[np.int32]:
        """Draw samples with the square root of their class's frequency."""
        assert self._classes is not None, self.seed
        generator = np.random.default_rng((*self.seed, epoch))
        members, counts = self._classes
        shares = np.sqrt(counts)
        drawn = generator.choice(len(counts), self.num_samples, p=shares / shares.sum())
        starts = np.cumsum(counts) - counts
        return members[starts[drawn] + generator.integers(counts[drawn])]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a dataset in the published pretraining, from the published code and from the paper."""

    modalities: tuple[str, ...]
    """Keys of the modalities."""
    weight: int
    """Share of the steps, relative to the other datasets."""
    batch_size: int
    """Tiles per step and GPU in the published code."""
    paper_batch_size: int
    """Tiles per step in the paper."""
    patch_sizes_m: tuple[float, ...]
    """Patch sizes in metres in the published code."""
    paper_patch_sizes_m: tuple[float, ...]
    """Patch sizes in metres in the paper."""
    max_dates: int | None = None
    """Largest number of dates kept of each series; None for all."""


GEOPLEX: Mapping[str, Recipe] = MappingProxyType({
    "treesatai_ts": Recipe(modalities=("aerial", "s2", "s1-asc"), weight=1, batch_size=128, paper_batch_size=384,
                           patch_sizes_m=(10, 20), paper_patch_sizes_m=(10, 20, 30)),
    "pastis_hd": Recipe(modalities=("spot", "s2", "s1"), weight=1, batch_size=1, paper_batch_size=8,
                        patch_sizes_m=(40, 80, 160), paper_patch_sizes_m=(40, 80, 160), max_dates=20),
    "flair": Recipe(modalities=("aerial-flair", "s2"), weight=1, batch_size=32, paper_batch_size=96,
                    patch_sizes_m=(10, 20), paper_patch_sizes_m=(10, 20, 50)),
    "planted": Recipe(modalities=("s2", "s1", "l7", "alos", "modis"), weight=2, batch_size=256, paper_batch_size=2048,
                      patch_sizes_m=(30,), paper_patch_sizes_m=(30, 60)),
    "s2naip_urban": Recipe(modalities=("naip", "l8", "s2", "s1"), weight=4, batch_size=2, paper_batch_size=16,
                           patch_sizes_m=(40, 80, 160), paper_patch_sizes_m=(40, 80, 160)),
})  # fmt: skip
"""The five datasets of the published pretraining, by name. What the published code calls the global batch size is that
of one GPU. The paper's 384 and 96 are those of single datasets on 3 GPUs."""
