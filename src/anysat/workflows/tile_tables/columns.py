"""Columns of split, place and labels in a table of a dataset's tiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from anysat.data.targets import NOBODY, Target
from anysat.data.work import fingerprint
from anysat.errors import some
from anysat.geo.stores.classes import class_codes
from anysat.geo.write.tables import Kind
from anysat.probing.cache import TILES_PER_FILE
from anysat.tasks.base import Task, labelled

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

ROWS = 128 * TILES_PER_FILE
"""Number of tiles in a row group."""
PREDICTED = "predicted"
"""Name of the answers."""


def dataset_facts(tiles: TileDataset, split: str) -> dict[str, Any]:
    """Return what a file records of the dataset that it is made from."""
    return {
        "name": tiles.name, "split": split, "modalities": list(tiles.modalities), "fingerprint": fingerprint(tiles)
    }  # fmt: skip


def members_and_splits(tiles: TileDataset) -> tuple[list[str], list[str]]:
    """Return each tile's member in the dataset's own table, such as a fold, and the split that this belongs to."""
    split_of = {member: split for split, members in tiles.record.splits.items() for member in members}
    members = [str(member) for member in tiles.samples.columns["split"]]
    return members, [split_of.get(member, member) for member in members]


def target_kinds(target: Target) -> dict[str, Kind]:
    """Return the columns of a target per tile and their types.

    A class has its code (`class_codes`) and its name, several labels have a list of 0 and 1 and a list of names.
    """
    if not target.classes:
        return {target.name: "double"}
    if target.is_multilabel:
        return {target.name: ("int8", len(target.classes)), f"{target.name}_names": "strings"}
    return {target.name: "int32", f"{target.name}_name": "string"}


def target_columns(target: Target, values: torch.Tensor) -> dict[str, list[Any]]:
    """Return the values of the columns in `target_kinds` for some tiles, None without a label."""
    known = labelled(target, values).reshape(len(values), -1).all(1)
    if target.is_multiclass:
        known = known & (values >= 0) & (values < len(target.classes))
    numbers = [one if is_known else None for one, is_known in zip(values.tolist(), known.tolist(), strict=True)]
    names = [None if one is None else target.plain(one) for one in numbers]
    if target.is_multiclass:
        codes = class_codes(target.classes, target.codes)
        numbers = [None if one is None else codes[int(one)] for one in numbers]
    return dict(zip(target_kinds(target), (numbers, names), strict=False))  # values have no names


_CONFIDENCE = "confidence"


def answer_kinds(target: Target) -> dict[str, Kind]:
    """Return the columns of answers and their types: those of the target, named `predicted`, and confidence."""
    kinds = target_kinds(replace(target, name=PREDICTED))
    return kinds | ({_CONFIDENCE: "double"} if target.is_multiclass else {})


def answer_columns(task: Task, outputs: torch.Tensor) -> dict[str, list[Any]]:
    """Return the values of the columns in `answer_kinds` for outputs (tile output), None where nothing was observed.

    `confidence` is the probability of the class that is answered.
    """
    target, seen, answer = task.target, outputs.isfinite().all(-1), task.answer(outputs)
    said = replace(target.of_answers(), name=PREDICTED)
    if target.is_multilabel:
        answer = answer.where(seen[:, None], NOBODY)
    columns, shares = target_columns(said, answer), task.probabilities(outputs)
    if target.is_multiclass and shares is not None:
        sure = shares.gather(1, answer.clamp_min(0)[:, None])[:, 0].tolist()
        columns[_CONFIDENCE] = [one if is_seen else None for one, is_seen in zip(sure, seen.tolist(), strict=True)]
    return columns


def counts_line(tiles: TileDataset) -> str:
    """Return a line with the number of tiles, in all and by split."""
    counts = Counter(members_and_splits(tiles)[1])
    return f"{tiles.name}: {len(tiles):,} tiles ({', '.join(f'{count:,} {name}' for name, count in counts.items())})"


def unseen_lines(names: Sequence[str], then: str, of: str = "") -> Iterator[str]:
    """Yield a line that lists some of the tiles without valid values, if there are any.

    Args:
        names: Names of all such tiles.
        then: What the output has for them.
        of: Modality that has no valid value; empty if none has.
    """
    if names:
        unit = "tile" if len(names) == 1 else "tiles"
        yield f"{len(names):,} {unit} without valid values{of and f' of {of}'}, {then}: {some(names, 3)}"
