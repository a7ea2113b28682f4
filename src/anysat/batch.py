"""Tiles and batches, the input of the encoder, and embeddings, its output.

Tiles hold numpy arrays, batches hold torch tensors. Both are in source values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from anysat.errors import ExtentError, InputError
from anysat.modalities import Modality
from anysat.observation import Observation
from anysat.patches import PatchGrid

if TYPE_CHECKING:  # tiles do without torch
    import torch
    from torch import Tensor

NO_DAY = int(np.iinfo(np.int64).min)
"""The integer that stands for "no date": numpy's NaT."""
Allocate = Callable[[tuple[int, ...], "torch.dtype"], "Tensor"]
"""A function that allocates a tensor of a given shape and type."""


def _allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    import torch

    return torch.empty(shape, dtype=dtype, device="cpu")  # numpy fills it, whatever torch's default device is


@dataclass(frozen=True, eq=False, kw_only=True)
class Tile:
    """One sample: observations of the same rectangle of ground by one or more modalities.

    Raises:
        InputError: There is no observation, one lies under another modality's key, or is something else.
        ExtentError: The observations do not cover the same ground. Context modalities (MODIS) are exempt.
    """

    observations: Mapping[str, Observation]
    """One observation per modality, by the modality's key."""
    id: str = "tile"
    """Name used in messages and outputs."""
    dataset: str | None = None
    """Dataset whose statistics standardise the tile. None if the model has the statistics of one dataset only."""
    geobox: Any = None
    """Georeference of the ground (an `odc.geo.GeoBox`), or None."""
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Targets by name."""

    @classmethod
    def of(cls, *observations: Observation, **options: Any) -> Tile:
        """Create a tile from observations.

        Args:
            *observations: At most one per modality.
            **options: The other fields: `id`, `dataset`, `geobox`, `targets`.

        Raises:
            InputError: An argument is not an observation, two are of one modality, or there are none.
            ExtentError: The observations do not cover the same ground.
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
        where, given = f"tile {self.id!r}", self.observations
        if not isinstance(given, Mapping) or not all(isinstance(one, Observation) for one in given.values()):
            odd = [type(one).__name__ for one in given.values()] if isinstance(given, Mapping) else []
            got = type(given).__name__ + (f" of {', '.join(odd)}" if odd else "")
            raise InputError(where, "observations by modality key", got, "Tile.of(s2, aerial) takes them one by one")
        if not given:
            raise InputError(where, "at least one modality", "none")
        for key, observation in self.observations.items():
            if key != observation.modality.key:
                raise InputError(where, f"the observation of {key!r} under that key", observation)
        extents = self._extents_m
        if len({*map(_rounded, extents.values())}) > 1:
            raise ExtentError(extents, f"crop the observations of tile {self.id!r} to the ground they share")

    @property
    def _extents_m(self) -> dict[str, tuple[float, float]]:
        """Height and width in metres covered by each modality, without context modalities."""
        return {
            key: (o.shape_px[0] * o.modality.gsd_m, o.shape_px[1] * o.modality.gsd_m)
            for key, o in self.observations.items()
            if not o.modality.covers_tile
        }

    def __repr__(self) -> str:
        return f"Tile({self.id!r}, {', '.join(repr(o) for o in self.observations.values())})"


@dataclass(frozen=True, eq=False, kw_only=True)
class StackedObservation:
    """The observations of one modality in a batch."""

    modality: Modality
    values: Tensor
    """(batch band row col) or (batch time band row col), source values."""
    valid: Tensor
    """Same shape as `values`, boolean. False for padded dates and for tiles that lack the modality."""
    units: tuple[str, ...]
    """Unit of each band."""
    dates: Tensor | None = None
    """(batch time) whole days since 1970-01-01; `NO_DAY` where padded. None for single images."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Several tiles of one ground size, stacked.

    Series are padded to the longest one in the batch; padded dates are invalid and do not change the embeddings.

    Examples:
        >>> from anysat.modalities import MODALITIES
        >>> s2 = Observation.of(MODALITIES["s2"], np.ones((1, 10, 6, 6)), dates=["2020-06-01"])
        >>> Batch.of([Tile.of(s2)]).observations["s2"].values.shape
        torch.Size([1, 1, 10, 6, 6])
    """

    observations: Mapping[str, StackedObservation]
    """One stacked observation per modality, by the modality's key."""
    ids: tuple[str, ...]
    """Name of each tile."""
    dataset: str | None = None
    """Dataset of the tiles, whose statistics standardise them."""
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    """Stacked targets by name, with a batch axis first."""
    geoboxes: tuple[Any, ...] = ()
    """Geobox of each tile, None for a tile without one; empty if none are known."""

    @classmethod
    def of(cls, tiles: Iterable[Tile], allocate: Allocate = _allocate) -> Batch:
        """Stack tiles into a batch.

        The tiles may have different modalities; one that a tile lacks is invalid there.

        Args:
            tiles: Tiles of one dataset and one ground size, with the same targets and units: a list, or a dataset.
            allocate: Allocates the tensors; by default in ordinary memory.

        Raises:
            InputError: There are no tiles, or they differ in size, units, datasets or targets.
        """
        if not any(hasattr(tiles, name) for name in ("__iter__", "__getitem__")):  # torch's subsets have the latter
            raise InputError("batch", "a list of tiles", type(tiles).__name__)
        tiles = list(tiles)
        if odd := [tile for tile in tiles if not isinstance(tile, Tile)]:
            raise InputError("batch", "a list of tiles", f"one with {type(odd[0]).__name__}")
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
        if len(sizes) > 1:  # tiles without a common modality have not been compared yet
            got = ", ".join(f"{height:g} x {width:g} m" for height, width in sizes.values())
            raise InputError("batch", "tiles of one size", got)
        return cls(
            observations=observations,
            ids=tuple(tile.id for tile in tiles),
            dataset=tiles[0].dataset,
            targets={name: _stack_targets(name, tiles, allocate) for name in tiles[0].targets},
            geoboxes=tuple(tile.geobox for tile in tiles),
        )

    def tile(self, index: int) -> Tile:
        """Return one tile without padding dates. Its arrays may be views of the batch."""
        observations = {}
        for key, o in self.observations.items():
            dates = None if o.dates is None else o.dates[index].numpy().astype("datetime64[D]")
            kept = slice(None) if dates is None else ~np.isnat(dates)
            observations[key] = Observation(
                modality=o.modality, values=o.values[index].numpy()[kept], valid=o.valid[index].numpy()[kept],
                units=o.units, dates=None if dates is None else dates[kept],
            )  # fmt: skip
        return Tile(
            observations=observations, id=self.ids[index], dataset=self.dataset,
            geobox=self.geoboxes[index] if self.geoboxes else None,
            targets={name: target[index].numpy() for name, target in self.targets.items()},
        )  # fmt: skip

    def having(self, modality: Modality) -> Batch:
        """Return the batch with `modality` among its observations, all invalid if no tile has it.

        Raises:
            InputError: A whole number of its pixels does not fill the ground, or the batch has only context modalities,
                which do not determine the size of the ground.
        """
        import torch

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
        """Return the batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `change` applied to every tensor."""
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
    """The output of the encoder: tile, patch and dense embeddings, channels last and rows before columns.

    Where nothing was observed, embeddings are NaN and `valid` is False. `AXES` names the axes of each tensor.
    """

    tile: Tensor
    """(batch dim), one vector per tile."""
    patch: Tensor
    """(batch patch_row patch_col dim), one vector per patch."""
    valid: Tensor
    """(batch patch_row patch_col), True where at least one modality observed the patch."""
    grid: PatchGrid
    """How the tiles were divided into patches."""
    dense: Tensor | None = None
    """(batch row col 2*dim), one vector per sub-patch of `dense_modality`: the fused token of its patch, followed by
    the sub-patch's own token. None if no dense embeddings were requested."""
    dense_valid: Tensor | None = None
    """(batch row col), True where `dense_modality` observed the sub-patch."""
    dense_modality: Modality | None = None
    """Modality whose sub-patches the dense embeddings stand for."""
    absent: Mapping[str, int] = field(default_factory=dict)
    """Modalities without a single valid value, with the number of tiles of the batch where that is so."""

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
    """Height and width in whole centimetres, for comparison."""
    height_m, width_m = extent_m
    return round(100 * height_m), round(100 * width_m)


def _stack(key: str, tiles: Sequence[Tile], allocate: Allocate) -> StackedObservation:
    import torch

    present = [tile.observations[key] for tile in tiles if key in tile.observations]
    units = {observation.units for observation in present}
    if len(units) > 1:  # units of an observation without a valid value do not matter
        present.sort(key=lambda observation: not observation.valid.any())
        units = {observation.units for observation in present if observation.valid.any()}
    first = present[0]
    for observation in present[1:]:
        if observation.modality != first.modality:
            raise InputError(f"batch, {key}", *_differing(first.modality, observation.modality))
        if len(units) > 1:
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


def _differing(first: Modality, other: Modality) -> tuple[str, str]:
    """What is expected and what came, by the first field in which two records differ."""
    name = next(one.name for one in fields(first) if getattr(first, one.name) != getattr(other, one.name))
    return f"one record, with {name} {getattr(first, name)!r}", repr(getattr(other, name))


def _fill(row: NDArray[Any], seen: NDArray[Any], days: NDArray[Any] | None, observation: Observation) -> int:
    """Copy one observation into its place; return how many entries of the first axis were filled."""
    steps = len(observation.values)
    row[:steps], seen[:steps] = observation.values, observation.valid
    if days is not None and observation.dates is not None:
        days[:steps] = observation.dates.astype(np.int64)
    return steps


def _stack_targets(name: str, tiles: Sequence[Tile], allocate: Allocate) -> Tensor:
    import torch

    arrays = [np.asarray(tile.targets[name]) for tile in tiles]
    if len({array.shape for array in arrays}) > 1:
        raise InputError(f"target {name!r}", "one shape in every tile", [array.shape for array in arrays])
    like = torch.from_numpy(np.empty(0, np.result_type(*arrays)))
    stacked = allocate((len(arrays), *arrays[0].shape), like.dtype)
    np.stack(arrays, out=stacked.numpy())
    return stacked
