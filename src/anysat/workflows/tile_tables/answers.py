"""Writing of predictions for the tiles of a dataset: a row per tile, and a raster for a target per pixel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from torch import Tensor

from anysat.batch import Batch
from anysat.data.targets import NOBODY, Target
from anysat.geo.write.maps import class_attributes, write_classes, write_values
from anysat.geo.write.tables import Kind, TileTable
from anysat.picture_samples import colours_of
from anysat.tasks.base import labelled
from anysat.tasks.predictor import Predictor, names_of_empty
from anysat.workflows.ground_blocks import known_places, places_of
from anysat.workflows.tile_tables.columns import (
    PREDICTED,
    ROWS,
    answer_columns,
    answer_kinds,
    members_and_splits,
    target_columns,
    target_kinds,
)

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

TABLE = "tiles.parquet"
"""Name of the table next to the rasters."""
_LABEL, _PROBABILITIES = "label", "probabilities"
"""Names of columns of the table and of folders of rasters."""
_TOLD = 8
"""Largest number of classes whose shares are reported."""


class Answers:
    """Writer of predictions: a table of tiles, or a folder of rasters with a table.

    Args:
        predictor: The predictor that made them.
        tiles: All the tiles, in the order in which they are added.
        own: The dataset's own record of the target, which describes its labels. None writes no labels.
        facts: Metadata of the files, which JSON can hold.
        with_probabilities: Whether to write rasters of probabilities.

    Raises:
        RecordError: The target has the name of another column.
    """

    def __init__(
        self, predictor: Predictor, tiles: TileDataset, own: Target | None, facts: Mapping[str, Any], *,
        with_probabilities: bool,
    ) -> None:  # fmt: skip
        target = predictor.task.target
        self._task, self._own, self._facts = predictor.task, own, facts
        self._target = target.of_answers()
        self._tiles, (self._members, self._splits) = tiles, members_and_splits(tiles)
        self._folders = [PREDICTED, *([_LABEL] if own else []), *([_PROBABILITIES] if with_probabilities else [])]
        self._fields: dict[str, Kind] = {"member": "string"} if self._members != self._splits else {}
        self._results: dict[str, Kind] = {"file": "string", "predicted_frac": "double"}
        if target.level == "tile":
            self._results = answer_kinds(target)
            if target.classes:
                self._results[_PROBABILITIES] = ("float", len(target.classes))
            if own is not None:
                TileTable.check_names(list(target_kinds(target)), self._results)
                self._fields |= target_kinds(target)
        self._ids: list[str] = []
        self._geoboxes: list[Any] = []
        self._columns: dict[str, list[Any]] = {}
        self._files: set[str] = set()
        self._num_done, self._num_answered, self._total = 0, 0, torch.zeros(max(1, len(target.classes))).double()
        self.num_labelled = 0
        """Number of tiles with a label so far."""
        self.unseen: list[str] = []
        """Names of the tiles without a prediction so far."""

    def __len__(self) -> int:
        return self._num_done

    @contextmanager
    def open(self, path: Path) -> Iterator[None]:
        """Create the file or folder, and write the remaining rows at the end."""
        self._path, file = path, path
        if self._target.level == "pixel":
            for name in self._folders:
                (path / name).mkdir(parents=True)
            file = path / TABLE
        with TileTable(file, self._fields, self._results, has_places=True, attributes=self._facts) as self._table:
            yield
            self._write_rows()

    def add(self, batch: Batch, outputs: Tensor) -> None:
        """Add the predictions of the next tiles.

        Args:
            batch: The tiles.
            outputs: Outputs of the head (tile … output).
        """
        outputs = outputs.cpu()
        seen, answer = outputs.isfinite().all(-1), self._task.answer(outputs)
        if self._target.is_multilabel:
            answer = answer.where(seen[:, None], NOBODY)
        truth = self._labels(batch)
        if truth is not None:
            self.num_labelled += int(labelled(self._target, truth).reshape(len(batch), -1).any(1).sum())
        self.unseen += names_of_empty(batch, outputs)
        self._count(answer, seen)
        shares = self._task.probabilities(outputs)
        if self._target.level == "tile":
            columns = self._of_tiles(outputs, shares, seen, truth)
        else:
            columns = self._of_pixels(batch, answer, shares, seen, truth)
        rows = slice(self._num_done, self._num_done + len(batch))
        if "member" in self._fields:
            columns["member"] = self._members[rows]
        for name, values in columns.items():
            self._columns.setdefault(name, []).extend(values)
        self._ids += batch.ids
        self._geoboxes += batch.geoboxes
        self._num_done = rows.stop
        if len(self._ids) >= ROWS:
            self._write_rows()

    def told(self) -> str:
        """Return a line that sums up the predictions: the mean, or the share of each class."""
        target, count = self._target, max(1, self._num_answered)
        if not target.classes:
            return f"{target.name}: mean {float(self._total[0]) / count:.4g} {target.unit}".rstrip()
        numbers = zip(self._total.tolist(), target.classes, strict=True)
        shares = sorted(((number / count, name) for number, name in numbers if number), reverse=True)
        listed = [f"{name} {share:.0%}" for share, name in shares[:_TOLD]] + ["…"] * (len(shares) > _TOLD)
        return f"{target.name}: {', '.join(listed)} of the {target.level}s" if listed else f"{target.name}: nothing"

    def written(self) -> str:
        """Return what was written, for the report."""
        if self._target.level == "tile":
            return f"{len(self):,} rows"
        return f"{len(self):,} rasters in each of {', '.join(self._folders)}; {TABLE} lists them"

    def _labels(self, batch: Batch) -> Tensor | None:
        """Return labels with the class numbers of the run, -1 or NaN where there is no label."""
        own, target = self._own, self._target
        if own is None or own.name not in batch.targets:
            return None
        truth = batch.targets[own.name].cpu()
        known = labelled(own, truth)
        if not target.classes:
            return truth.double().where(known, torch.nan)
        numbers = torch.tensor([target.classes.index(name) for name in own.classes])
        if target.is_multilabel:
            found = torch.zeros(len(truth), len(target.classes), dtype=torch.int64)
            found[:, numbers] = truth.long()
            return found.where(known.all(1, keepdim=True), NOBODY)
        known = known & (truth >= 0) & (truth < len(own.classes))
        return numbers[truth.long().clamp(0, len(own.classes) - 1)].where(known, NOBODY)

    def _count(self, answer: Tensor, seen: Tensor) -> None:
        self._num_answered += int(seen.sum())
        found, total = answer[seen], self._total
        total += found.bincount(minlength=len(total)) if self._target.is_multiclass else found.double().sum(0)

    def _of_tiles(
        self, outputs: Tensor, shares: Tensor | None, seen: Tensor, truth: Tensor | None
    ) -> dict[str, list[Any]]:
        """Return the columns of a target per tile."""
        columns = answer_columns(self._task, outputs)
        if shares is not None:
            rows = zip(shares.numpy(), seen.tolist(), strict=True)
            columns[_PROBABILITIES] = [row if is_seen else None for row, is_seen in rows]
        if truth is not None:
            columns |= target_columns(self._target, truth)
        elif self._own is not None:
            columns |= {name: [None] * len(outputs) for name in target_kinds(self._target)}
        return columns

    def _of_pixels(
        self, batch: Batch, answer: Tensor, shares: Tensor | None, seen: Tensor, truth: Tensor | None
    ) -> dict[str, list[Any]]:
        """Write the rasters of some tiles, and return the columns that describe them."""
        files = [self._file(name) for name in batch.ids]
        for number, name in enumerate(batch.ids):
            box = self._geobox(batch.geoboxes[number], (answer.shape[1], answer.shape[2]))
            tags = {**self._facts, "tile": name}
            write_answers(self._path / PREDICTED / files[number], answer[number].numpy(), box, self._target, tags)
            if truth is not None:
                write_answers(self._path / _LABEL / files[number], truth[number].numpy(), box, self._target, tags)
            if shares is not None and _PROBABILITIES in self._folders:
                bands = np.moveaxis(shares[number].numpy(), -1, 0)
                write_values(self._path / _PROBABILITIES / files[number], bands, box, self._target.classes, tags)
        return {"file": files, "predicted_frac": seen.double().flatten(1).mean(1).tolist()}

    def _geobox(self, box: GeoBox | None, shape: tuple[int, int]) -> GeoBox:
        """Return the geobox of a tile's pixels, in metres from its south-west corner if its place is not known."""
        if box is not None and box.crs is not None:
            found: GeoBox = box.zoom_to(shape)
            return found
        pixel_m = self._target.gsd_m or 1.0
        return GeoBox(shape, Affine(pixel_m, 0, 0, 0, -pixel_m, shape[0] * pixel_m), None)

    def _file(self, name: str) -> str:
        """Return a file name for a tile's rasters that no other tile has."""
        stem = found = re.sub(r"[^\w.+@-]+", "_", name)
        number = 1
        while found in self._files:
            number += 1
            found = f"{stem}_{number}"
        self._files.add(found)
        return f"{found}.tif"

    def _write_rows(self) -> None:
        if self._ids:
            rows = slice(self._num_done - len(self._ids), self._num_done)
            places = known_places(self._tiles.take(np.arange(rows.start, rows.stop)), places_of(self._geoboxes))
            self._table.add(ids=self._ids, splits=self._splits[rows], places=places, columns=self._columns)
        self._ids, self._geoboxes, self._columns = [], [], {}


def write_answers(
    path: Path, values: NDArray[Any], geobox: GeoBox, target: Target, tags: Mapping[str, Any]
) -> None:  # fmt: skip
    """Write the answers for the pixels of a tile (row col) as a GeoTIFF: classes with their colours, or values."""
    if target.classes:
        write_classes(path, values, geobox, class_attributes(target.classes, colours_of(target), target.codes), tags)
    else:
        write_values(path, values[None], geobox, [target.name], tags, target.unit)
