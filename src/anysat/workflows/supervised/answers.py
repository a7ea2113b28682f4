"""A table of the answers that a run was scored on, a row per test tile; and that of all runs over folds and repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import anysat
from anysat.geo.write.tables import Kind, TileTable
from anysat.geo.write.writers import staged
from anysat.tasks.base import Task
from anysat.workflows.ground_blocks import Places, known_places
from anysat.workflows.tile_tables.columns import (
    answer_columns,
    answer_kinds,
    members_and_splits,
    target_columns,
    target_kinds,
)

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

ANSWERS = "predictions.parquet"


def write_answers(
    run: Path, task: Task, tiles: TileDataset, answers: Sequence[tuple[Tensor, Tensor]], places: Places
) -> None:
    """Write the table of a run into its folder, if the target is per tile.

    Args:
        run: The run folder.
        task: What is predicted.
        tiles: The tiles that were scored.
        answers: Outputs (tile output) of the head, and targets (tile …), of these tiles, a few at a time.
        places: Longitude and latitude of each tile's centre.
    """
    target = task.target
    if target.level != "tile":
        return
    truth, (outputs, labels) = replace(target, name="truth"), map(torch.cat, zip(*answers, strict=True))
    members, splits = members_and_splits(tiles)
    has_members, known = members != splits, known_places(tiles, places)
    fields: dict[str, Kind] = {"member": "string"} if has_members else {}
    columns: dict[str, Any] = {"member": members} if has_members else {}
    facts = {"version": anysat.__version__, "target": target.name, "unit": target.unit, "classes": list(target.classes)}
    with (
        staged([run / ANSWERS], overwrite=True) as folder,
        TileTable(folder / ANSWERS, fields | target_kinds(truth), answer_kinds(target),
                  has_places=bool(np.isfinite(known).all(1).any()), attributes=facts) as table,
    ):  # fmt: skip
        columns |= target_columns(truth, labels) | answer_columns(task, outputs)
        table.add(ids=tiles.ids, splits=splits, places=known, columns=columns)


def join_answers(out: Path, runs: Mapping[str, Any]) -> Path | None:
    """Write the tables of all runs as one, with columns `fold` and `seed`, into the folder that holds the runs.

    Args:
        out: The folder.
        runs: Options of each run, by the name of its folder.

    Returns:
        The file; None if the runs have no tables, because the target is per pixel.
    """
    import pyarrow
    from pyarrow import parquet

    tables = []
    for name, config in runs.items():
        if not (out / name / ANSWERS).is_file():
            return None
        table, fold = parquet.read_table(out / name / ANSWERS), name.removeprefix(f"seed{config.seed}").strip("/")
        table = table.add_column(2, "seed", pyarrow.array([config.seed] * len(table), "int64"))
        if fold:
            table = table.add_column(2, "fold", pyarrow.array([fold] * len(table)))
        tables.append(table)
    with staged([out / ANSWERS], overwrite=True) as folder:
        joined = pyarrow.concat_tables(tables, promote_options="default").replace_schema_metadata(
            tables[0].schema.metadata
        )
        parquet.write_table(joined, folder / ANSWERS, compression="zstd")
    return out / ANSWERS
