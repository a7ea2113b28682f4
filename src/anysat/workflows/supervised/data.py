"""Finding and opening labelled data: three splits with their target, without a tile in two of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.base import DatasetRecord, Target
from anysat.data.mixture import OrderedPass
from anysat.data.open import find_dataset, open_dataset
from anysat.data.splits import TEST, TRAIN, VAL, block_numbers, fold_numbers, ground_m, roles_of
from anysat.data.work import fingerprint
from anysat.errors import InputError, MissingFileError
from anysat.normalise import Normaliser
from anysat.workflows.ground_blocks import blocks, known_places, listed_places, places_of, unit_of
from anysat.workflows.made_data import made_data
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.config import LabelledData

if TYPE_CHECKING:
    from anysat.data.base import TileDataset


LOOKED_AT = 32
"""Number of training tiles that are read to find out which modalities tiles have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenData:
    """Labelled data, opened."""

    record: DatasetRecord
    target: Target
    train: Any
    val: Any
    test: Any
    normaliser: Normaliser | None = None
    """Statistics that came with the data, or None."""
    selected_on: str = "val"
    """What `val` is: the name of a split, or a share of the training tiles."""
    whole_train: Any = None
    """All training tiles if `train` is a share of them, else None."""

    @property
    def uncut(self) -> OpenData:
        """The same data with all training tiles, for work without labels, such as statistics."""
        return self if self.whole_train is None else replace(self, train=self.whole_train, whole_train=None)

    @property
    def splits(self) -> dict[str, Any]:
        """Tiles by role: `train`, `val` and `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def held(self) -> Mapping[str, float]:
        """Fraction of training tiles with a valid value of each modality that any has.

        It is from a sample spread over the split. A record names what a dataset may have; tiles of a generated world,
        or with an optional sensor, have less.
        """
        count = min(LOOKED_AT, len(self.train))
        found: Counter[str] = Counter()
        with progress_bar(f"modalities of {self.record.name}", count) as advance:
            for number in np.linspace(0, len(self.train) - 1, count).astype(int).tolist():
                seen = self.train[number].observations
                found.update(key for key, one in seen.items() if one.valid.any())
                advance(1)
        return {key: times / count for key, times in found.items()}


def open_data(data: LabelledData, seed: int) -> OpenData:
    """Find and open the three splits, or those of the first turn of `folds`. No tile is in two of them.

    Raises:
        InputError: There is no dataset or folder, no choice among several targets, an empty split, or a tile in two
            splits.
        UnknownNameError, MissingFileError, SourceError: See `open_dataset`.
    """
    if not data.dataset:
        raise InputError("--data.dataset", "the name of a dataset or a YAML file of your own data", "none",
                         "`anysat datasets list` lists the known ones")  # fmt: skip
    data = next(iter(data.turns().values()))
    record = find_dataset(data.dataset)
    target, (root, normaliser) = _target(record, data.target), place_of(data)

    def opened(split: str) -> Any:
        return open_dataset(data.dataset, root, split, modalities=data.modalities, targets=(target.name,))

    if data.fold is not None:
        found = _of_fold(data.fold, opened(data.every_split))
        return _with_share(OpenData(record=record, target=target, **found, normaliser=normaliser,
                                    selected_on="the fold before"), data.train_frac, seed)  # fmt: skip
    train, test = opened(data.train), opened(data.test)
    for option, tiles in (("train", train), ("test", test)):
        if not len(tiles):
            raise _empty(option, getattr(data, option), open_dataset(data.dataset, root, "all"))
    val, selected_on = opened(data.val) if data.val is not None else None, data.val
    if val is None or selected_on is None or not len(val):
        by = "" if record.block_m is None else f" by blocks of {record.block_m:g} m"
        selected_on = f"{data.val_frac:.3g} of {data.train}, held out{by}"
        train, val = _held_out(train, data.val_frac, seed, record.block_m)
    _check_apart({"train": train, "val": val, "test": test}, record.name)
    opened_data = OpenData(record=record, target=target, train=train, val=val, test=test, normaliser=normaliser,
                           selected_on=selected_on)  # fmt: skip
    return _with_share(opened_data, data.train_frac, seed)


def open_every(data: LabelledData) -> tuple[Any, Any]:
    """Open all tiles of the data, and those of them that train in any run over folds or repeats.

    Raises:
        InputError, UnknownNameError, MissingFileError, SourceError: See `open_data`.
    """
    target, (root, _) = _target(find_dataset(data.dataset), data.target), place_of(data)
    every, train = (
        open_dataset(data.dataset, root, split, modalities=data.modalities, targets=(target.name,))
        for split in (data.every_split, data.train)
    )
    return every, every if data.folds is not None else train


def _with_share(data: OpenData, share: float, seed: int) -> OpenData:
    """Return the data with a share of the training tiles, drawn at random."""
    if share == 1:
        return data
    order = np.random.default_rng([seed, 2]).permutation(len(data.train))
    kept = data.train.take(np.sort(order[: max(1, round(share * len(data.train)))]))
    found = replace(data, train=kept, whole_train=data.train)
    _warn_of_missing(found, share)
    return found


_PLACES: dict[str, Any] = {}
"""Places of tiles by fingerprint, so that the runs of a command read them once."""


def _of_fold(fold: Mapping[str, Any], tiles: TileDataset) -> dict[str, Any]:
    """Return the tiles that train, select and are scored in one of several folds of whole blocks of ground.

    Raises:
        InputError: Tiles have no coordinates, or there are fewer blocks than folds.
    """
    name, count, km = fingerprint(tiles), fold["folds"], fold["side_km"]
    if name not in _PLACES:
        places = listed_places(tiles)
        if not np.isfinite(places).all():
            reading = OrderedPass(tiles=tiles, batch_size=1, patch_size_m=0.0).loader()
            with progress_bar(f"places of {tiles.name}", len(tiles)) as advance:
                boxes: list[Any] = []
                for draw in reading:
                    boxes += draw.batch.geoboxes
                    advance(1)
            places = known_places(tiles, places_of(boxes))
        _PLACES[name] = places
    groups = blocks(_PLACES[name], tiles.ids, km)
    check_blocks(groups, count, km)
    roles = roles_of(fold_numbers(groups, count, fold["seed"]))[fold["scored"]]
    return {split: tiles.take(np.flatnonzero(roles == role))
            for split, role in (("train", TRAIN), ("val", VAL), ("test", TEST))}  # fmt: skip


def check_blocks(groups: NDArray[np.int64], folds: int, km: float | None) -> None:
    """Check that there are as many blocks of ground as folds.

    Raises:
        InputError: There are fewer.
    """
    if (found := len(np.unique(groups))) < folds:
        raise InputError(f"--folds {folds}", "at least as many blocks", f"{found} {unit_of(km)}",
                         "take fewer folds, or smaller blocks in --block-km")  # fmt: skip


def _empty(option: str, split: str, every: TileDataset) -> InputError:
    """Return the error for a split without tiles, with the number of tiles in each split and how to change it."""
    column = every.samples.columns["split"]
    counts = {name: int(np.isin(column, members).sum()) for name, members in every.record.splits.items()}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    advice = f"name another split in --data.{option}"
    if every.record.is_own:
        advice = (f"change `splits` in {every.record.found_as}: another `seed`, a smaller `block_m`, other `shares`, "
                  "or a `column` that names the split of every tile")  # fmt: skip
    return InputError(
        f"{every.record.name}, split {split}", "at least one tile", f"none of {len(every)} ({told})", advice
    )


def _target(record: DatasetRecord, name: str | None) -> Target:
    if name is not None:
        return record.target(name)
    if len(record.targets) != 1:
        raise InputError("--data.target", f"one of {', '.join(t.name for t in record.targets) or 'none'}", "none")
    return record.targets[0]


def place_of(data: LabelledData) -> tuple[Path, Normaliser | None]:
    """Return the folder of the data, and statistics that come with it.

    Generated and fetched data are kept in the cache.

    Raises:
        InputError, MissingFileError: No folder is given, it does not exist, or a world to generate is given too.
    """
    made = made_data(data.dataset, data.root, data.world, progress_bar)
    if made is not None:
        return made
    record = find_dataset(data.dataset)
    if data.root is None:
        raise InputError("--data.root", f"the folder of {record.title}", "none", f"get it from {record.homepage}")
    if not Path(data.root).exists():
        raise MissingFileError(data.root, f"the folder of {record.title}")
    return Path(data.root), None


def _held_out(tiles: Any, share: float, seed: int, block_m: float | None) -> tuple[Any, Any]:
    """Draw validation tiles from the training tiles, in whole blocks of ground if the dataset is split by blocks."""
    count, rng = max(1, round(share * len(tiles))), np.random.default_rng([seed, 1])
    if block_m is not None:
        return _blocks_held_out(tiles, count, rng, block_m)
    if count >= len(tiles):
        raise InputError("validation", "at least two training tiles, one of which is held out", len(tiles))
    order = rng.permutation(len(tiles))
    return tiles.take(np.sort(order[count:])), tiles.take(np.sort(order[:count]))


def _blocks_held_out(tiles: Any, count: int, rng: np.random.Generator, block_m: float) -> tuple[Any, Any]:
    """Hold out randomly drawn blocks with at least `count` tiles in all. One block is always left to train on."""
    lon, lat = listed_places(tiles).T
    numbers = block_numbers(*ground_m(lon, lat, block_m), block_m)
    held = np.bincount(numbers)
    if len(held) < 2:
        raise InputError(
            "validation", f"training tiles in two blocks of {block_m:g} m or more, one of which is held out",
            f"{len(tiles)} in one", "take a smaller `block_m`, or give `val` a share of its own",
        )  # fmt: skip
    order = rng.permutation(len(held))
    num_blocks = min(int(np.searchsorted(np.cumsum(held[order]), count)) + 1, len(held) - 1)
    is_val = np.isin(numbers, order[:num_blocks])
    return tiles.take(np.flatnonzero(~is_val)), tiles.take(np.flatnonzero(is_val))


def has_list(data: OpenData) -> bool:
    """Whether the target is the class that the dataset lists for every tile, so that no tile has to be read."""
    listed = [one for one in data.record.targets if one.level == "tile" and one.is_multiclass]
    return data.record.list_labels is not None and data.target.name == next(iter(one.name for one in listed), None)


def _warn_of_missing(data: OpenData, share: float) -> None:
    """Warn of classes without a training tile among those drawn, if the dataset lists the classes of its tiles."""
    if not has_list(data):
        return
    known, drawn = (set(tiles.labels().tolist()) for tiles in (data.whole_train, data.train))
    missing = [name for number, name in enumerate(data.target.classes) if number in known - drawn]
    if missing:
        warnings.warn(
            f"no training tile of {', '.join(missing)} among the {len(data.train)} of {len(data.whole_train)} that "
            f"--data.train-frac {share:g} drew; a class without labels cannot be learned: take a larger share or "
            "another --seed",
            stacklevel=2,
        )


def _check_apart(splits: dict[str, Any], name: str) -> None:
    seen: dict[str, str] = {}
    for split, tiles in splits.items():
        for tile in tiles.ids:
            if tile in seen:
                raise InputError(
                    name, "every tile in one split", f"{tile!r} in {seen[tile]} and {split}",
                    "name splits that do not overlap; settings must not be selected on tiles that are scored",
                )  # fmt: skip
            seen[tile] = split
