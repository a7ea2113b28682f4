"""The values that flow: Tile and Batch in, Embeddings out; padding and collation.

Arrays are numpy up to the tile, torch from the batch on. All hold source values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anysat.errors import ExtentError, InputError
from anysat.modalities import Modality
from anysat.observation import Observation
from anysat.patches import PatchGrid

NO_DAY = int(np.iinfo(np.int64).min)
"""Where there is no date: numpy's NaT."""
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes an empty tensor of a shape and type."""


def _allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")  # where numpy fills it, whatever torch makes by default


@dataclass(frozen=True, eq=False, kw_only=True)
class Tile:
    """One sample: observations of the same ground."""

    observations: Mapping[str, Observation]
    """Observation of each modality, by its key."""
    id: str = "tile"
    """Name used in messages and outputs."""
    dataset: str | None = None
    """Name under which statistics are looked up; None when there is only one set."""
    geobox: Any = None
    """Georeference of the ground (an `odc.geo.GeoBox`), or None."""
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Labels by name."""

    @classmethod
    def of(cls, *observations: Observation, **options: Any) -> Tile:
        """A tile of these observations; `options` are the other fields.

        Raises:
            InputError: they are no observations, or two of one modality; the tile cannot be.
        """
        for observation in observations:
            if not isinstance(observation, Observation):
                raise InputError(
                    "tile", "observations one by one, such as Tile.of(s2, aerial)", type(observation).__name__
                )
        keys = [observation.modality.key for observation in observations]
        if len(set(keys)) < len(keys):
            raise InputError("tile", "one observation of each modality", ", ".join(keys))
        return cls(observations={observation.modality.key: observation for observation in observations}, **options)

    def __post_init__(self) -> None:
        if not self.observations:
            raise InputError(f"tile {self.id!r}", "at least one modality", "none")
        for key, observation in self.observations.items():
            if key != observation.modality.key:
                raise InputError(f"tile {self.id!r}", f"the observation of {key!r} under that key", observation)
        extents = self._extents_m
        if len({*map(_rounded, extents.values())}) > 1:
            raise ExtentError(extents, f"crop the observations of tile {self.id!r} to the ground they share")

    @property
    def _extents_m(self) -> dict[str, tuple[float, float]]:
        """Height and width of what each modality that lies in patches covers."""
        return {
            key: (o.shape_px[0] * o.modality.gsd_m, o.shape_px[1] * o.modality.gsd_m)
            for key, o in self.observations.items()
            if not o.modality.covers_tile
        }

    def __repr__(self) -> str:
        return f"Tile({self.id!r}, {', '.join(repr(o) for o in self.observations.values())})"


@dataclass(frozen=True, eq=False, kw_only=True)
class StackedObservation:
    """One modality of a batch."""

    modality: Modality
    values: Tensor
    """(batch band row col) or (batch time band row col), source values."""
    valid: Tensor
    """Same shape, boolean. Padded dates and absent tiles are False."""
    units: tuple[str, ...]
    """Unit of each band."""
    dates: Tensor | None = None
    """(batch time) days since 1970-01-01, integers; `NO_DAY` where padded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Stacked tiles: same ground size, ragged dates padded under the valid mask.

    Examples:
        >>> from anysat.modalities import MODALITIES
        >>> s2 = Observation.of(MODALITIES["s2"], np.ones((1, 10, 6, 6)), dates=["2020-06-01"])
        >>> Batch.of([Tile.of(s2)]).observations["s2"].values.shape
        torch.Size([1, 1, 10, 6, 6])
    """

    observations: Mapping[str, StackedObservation]
    ids: tuple[str, ...]
    dataset: str | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, tiles: Sequence[Tile], allocate: Allocate = _allocate) -> Batch:
        """Stack tiles. A modality that some tiles lack is wholly invalid there.

        Args:
            tiles: of one dataset and one size.
            allocate: where the tensors are to lie; in ordinary memory when not given.

        Raises:
            InputError: no tiles; tiles of different sizes, units, datasets or targets.
        """
        if not isinstance(tiles, Sequence) or not all(isinstance(tile, Tile) for tile in tiles):
            raise InputError("batch", "a list of tiles", type(tiles).__name__)
        if not tiles:
            raise InputError("batch", "at least one tile", "none")
        datasets = {tile.dataset for tile in tiles}
        if len(datasets) > 1:
            raise InputError("batch", "tiles of one dataset", ", ".join(sorted(map(str, datasets))))
        names = {tuple(sorted(tile.targets)) for tile in tiles}
        if len(names) > 1:
            raise InputError("batch", "the same targets in every tile", sorted(names))
        keys = dict.fromkeys(key for tile in tiles for key in tile.observations)
        observations = {key: _stack(key, tiles, allocate) for key in keys}
        sizes = {_rounded(extent): extent for tile in tiles for extent in tile._extents_m.values()}
        if len(sizes) > 1:  # of tiles that share no modality
            got = ", ".join(f"{height:g} x {width:g} m" for height, width in sizes.values())
            raise InputError("batch", "tiles of one size", got)
        return cls(
            observations=observations,
            ids=tuple(tile.id for tile in tiles),
            dataset=tiles[0].dataset,
            targets={name: _stack_targets(name, tiles, allocate) for name in tiles[0].targets},
        )

    def having(self, modality: Modality) -> Batch:
        """The same batch; a modality that no tile has is there, wholly invalid, as where other tiles have it.

        Raises:
            InputError: its pixels do not fill the ground, or only modalities that cover the tile say what that is.
        """
        tiling = [seen for seen in self.observations.values() if not seen.modality.covers_tile]
        if modality.key in self.observations:
            return self
        sides_m = [side * seen.modality.gsd_m for seen in tiling[:1] for side in seen.values.shape[-2:]]
        rows, cols = (round(side / modality.gsd_m) for side in sides_m) if sides_m else (0, 0)
        if not sides_m or any(
            abs(n * modality.gsd_m - side) > 0.01 for n, side in zip((rows, cols), sides_m, strict=True)
        ):
            raise InputError("batch", f"the modality {modality.key}", ", ".join(self.observations))
        like = tiling[0].values
        values = like.new_zeros(len(self), *((1,) if modality.is_temporal else ()), len(modality.bands), rows, cols)
        dates = torch.full((len(self), 1), NO_DAY, device=like.device) if modality.is_temporal else None
        nothing = StackedObservation(modality=modality, values=values, valid=torch.zeros_like(values, dtype=torch.bool),
                                     units=modality.units, dates=dates)  # fmt: skip
        return replace(self, observations={**self.observations, modality.key: nothing})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed."""
        changed = {
            key: replace(
                o,
                values=change(o.values),
                valid=change(o.valid),
                dates=None if o.dates is None else change(o.dates),
            )
            for key, o in self.observations.items()
        }
        return replace(self, observations=changed, targets={name: change(t) for name, t in self.targets.items()})

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key} {tuple(o.values.shape)}" for key, o in self.observations.items())
        return f"Batch({len(self)} tiles, {shapes})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings:
    """What the encoder gives: tile, patch and dense vectors, channels last, rows before columns.

    Where nothing was seen, vectors are NaN and `valid` is False.
    """

    tile: Tensor
    """(batch dim)"""
    patch: Tensor
    """(batch patch_row patch_col dim)"""
    valid: Tensor
    """(batch patch_row patch_col), True where at least one modality saw the patch."""
    grid: PatchGrid
    """How the tile was cut."""
    dense: Tensor | None = None
    """(batch row col 2*dim), one vector per sub-patch of `dense_modality`: its patch's fused token, then its own."""
    dense_valid: Tensor | None = None
    """(batch row col), True where that modality saw the sub-patch."""
    dense_modality: Modality | None = None
    """Modality whose sub-patches the dense vectors stand for."""
    absent: Mapping[str, int] = field(default_factory=dict)
    """Modalities without a valid value, and in how many tiles of the batch."""

    AXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "tile": ("batch", "dim"),
        "patch": ("batch", "patch_row", "patch_col", "dim"),
        "valid": ("batch", "patch_row", "patch_col"),
        "dense": ("batch", "row", "col", "dim"),
        "dense_valid": ("batch", "row", "col"),
    }

    def __repr__(self) -> str:
        dense = f", dense {tuple(self.dense.shape)}" if self.dense is not None else ""
        return f"Embeddings(tile {tuple(self.tile.shape)}, patch {tuple(self.patch.shape)}{dense})"


def _rounded(extent_m: tuple[float, float]) -> tuple[int, int]:
    """In centimetres."""
    height_m, width_m = extent_m
    return round(100 * height_m), round(100 * width_m)


def _stack(key: str, tiles: Sequence[Tile], allocate: Allocate) -> StackedObservation:
    present = [tile.observations[key] for tile in tiles if key in tile.observations]
    units = {observation.units for observation in present}
    if len(units) > 1:  # where nothing is valid, no value has a unit
        present.sort(key=lambda observation: not observation.valid.any())
        units = {observation.units for observation in present if observation.valid.any()}
    first = present[0]
    for observation in present[1:]:
        if observation.modality != first.modality or len(units) > 1:
            raise InputError(f"batch, {key}", f"one record and units {first.units}", observation.units)
        if observation.shape_px != first.shape_px:
            raise InputError(f"batch, {key}", f"tiles of {first.shape_px} pixels", observation.shape_px)
    longest = max((len(o.dates) for o in present if o.dates is not None), default=0)
    shape = (len(tiles), *((longest,) if longest else ()), *first.values.shape[-3:])
    values, valid = allocate(shape, torch.float32), allocate(shape, torch.bool)
    dates = allocate((len(tiles), longest), torch.int64) if longest else None
    rows = zip(values.numpy(), valid.numpy(), [None] * len(tiles) if dates is None else dates.numpy(), strict=True)
    for tile, (row, seen, days) in zip(tiles, rows, strict=True):
        steps = _fill(row, seen, days, tile.observations[key]) if key in tile.observations else 0
        row[steps:], seen[steps:] = 0, False
        if days is not None:
            days[steps:] = NO_DAY
    return StackedObservation(modality=first.modality, values=values, valid=valid, units=first.units, dates=dates)


def _fill(row: NDArray[Any], seen: NDArray[Any], days: NDArray[Any] | None, observation: Observation) -> int:
    """Copy one observation into its place; how much of the first axis was filled."""
    steps = len(observation.values)
    row[:steps], seen[:steps] = observation.values, observation.valid
    if days is not None and observation.dates is not None:
        days[:steps] = observation.dates.astype(np.int64)
    return steps


def _stack_targets(name: str, tiles: Sequence[Tile], allocate: Allocate) -> Tensor:
    arrays = [np.asarray(tile.targets[name]) for tile in tiles]
    if len({array.shape for array in arrays}) > 1:
        raise InputError(f"target {name!r}", "one shape in every tile", [array.shape for array in arrays])
    like = torch.from_numpy(np.empty(0, np.result_type(*arrays)))
    stacked = allocate((len(arrays), *arrays[0].shape), like.dtype)
    np.stack(arrays, out=stacked.numpy())
    return stacked
