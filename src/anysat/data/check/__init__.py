"""Checks that find faults in a dataset on disk before training.

To add a check, write a function from `Evidence` to `Hit`s and add it to `CHECKS`. The command, the report and the
documentation follow.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anysat.data.base import PACK_INDEX, DatasetRecord, Samples, TileDataset
from anysat.data.check import dates, files, labels, offset, places, values
from anysat.data.check.evidence import Evidence, Hit, SeenFile, SeenTile, see_tile
from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import AnySatError, InputError, MissingFileError, SourceError, some

ERROR, WARNING = "error", "warning"
NUM_EXAMPLES = 3
MAX_NOTES = 12
"""Largest number of notes in a report."""


@dataclass(frozen=True)
class Check:
    """One kind of fault and the rule that finds it."""

    severity: str
    """`error`: results from such data are wrong. `warning`: look at it and decide."""
    find: Callable[[Evidence], Iterator[Hit]]
    """The rule. The first line of its docstring says what it finds."""

    @property
    def about(self) -> str:
        """What the rule finds, in one sentence."""
        return (self.find.__doc__ or "").strip().splitlines()[0]


def _unreadable_samples(evidence: Evidence) -> Iterator[Hit]:
    """Samples or lists that the reader refuses although all files can be opened."""
    yield from evidence.unread


CHECKS: dict[str, Check] = {
    "missing-file": Check(ERROR, files.missing_files),
    "unreadable-file": Check(ERROR, files.unreadable_files),
    "wrong-type": Check(ERROR, files.wrong_types),
    "wrong-shape": Check(ERROR, files.wrong_shapes),
    "nan": Check(WARNING, files.too_many_nan),
    "unreadable-sample": Check(ERROR, _unreadable_samples),
    "wrong-extent": Check(ERROR, labels.wrong_extents),
    "swapped-bands": Check(ERROR, values.swapped_bands),
    "wrong-unit": Check(ERROR, values.wrong_units),
    "offset": Check(ERROR, offset.offset_steps),
    "raised-level": Check(WARNING, offset.raised_levels),
    "constant-band": Check(WARNING, values.constant_bands),
    "empty-band": Check(WARNING, values.empty_bands),
    "duplicated-band": Check(ERROR, values.duplicated_bands),
    "saturated-band": Check(WARNING, values.saturated_bands),
    "hidden-nodata": Check(WARNING, values.hidden_nodata),
    "nothing-valid": Check(WARNING, values.nothing_valid),
    "impossible-date": Check(ERROR, dates.impossible_dates),
    "unordered-dates": Check(WARNING, dates.unordered_dates),
    "repeated-dates": Check(WARNING, dates.repeated_dates),
    "label-range": Check(ERROR, labels.label_ranges),
    "label-shape": Check(ERROR, labels.label_shapes),
    "one-class": Check(WARNING, labels.one_class),
    "unseen-class": Check(WARNING, labels.unseen_classes),
    "leaked-name": Check(ERROR, labels.leaked_names),
    "leaked-place": Check(WARNING, places.leaked_places),
    "repeated-tile": Check(ERROR, labels.repeated_tiles),
}
"""All checks, by the kind of their findings."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, however often it occurs."""

    severity: str
    kind: str
    """A key of `CHECKS`."""
    where: str
    """Entry, modality and band, target, or split; then the first samples or files."""
    message: str
    """What was found, what was expected, what to do."""
    count: int
    """Number of samples or files that have it; 1 for the dataset as a whole."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check_dataset` found."""

    dataset: str
    root: str
    layout: str
    checked_against: str | None
    """Real files that the layout was tested with; None if none."""
    num_read: int
    """Number of samples whose pixels were read."""
    num_samples: int
    """Number of samples in the dataset."""
    num_looked_up: int
    """Number of samples whose required files were all looked up, without opening them."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What is not a fault by itself: splits without samples, unused bands, masks not applied, the source of units."""

    @property
    def exit_status(self) -> int:
        """0 if nothing was found, else 1."""
        return int(bool(self.findings))

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> str:
        """Return the whole report as JSON, for scripts."""
        return json.dumps({**asdict(self), "errors": self.count(ERROR), "warnings": self.count(WARNING)}, indent=1)


def check_dataset(
    name: str, root: str | Path, split: str = "all", *, layout: str | None = None, samples: int = 64, seed: int = 0,
    watch: Callable[[list[int]], Iterable[int]] = iter,
) -> Report:  # fmt: skip
    """Check a dataset: read some samples of all splits, and look up the files of all others.

    Args:
        name: Name of the dataset, as for `open_dataset`.
        root: Folder of the dataset.
        split: Split to check. `all` also compares the splits with each other.
        layout: Name of the layout; None to recognise it.
        samples: Number of tiles to read; all if there are fewer. More tiles find rarer faults.
        seed: Seed of the choice of samples.
        watch: Wraps the list of indices, to show progress.

    Returns:
        A report of what was found.

    Raises:
        UnknownNameError: There is no such dataset, split or layout.
        MissingFileError: There is no such folder, or no layout is recognised in it.
        InputError: The split has no samples.
    """
    record = find_dataset(name)
    try:
        dataset = open_dataset(name, root, split, layout=layout)
    except (MissingFileError, SourceError) as error:
        if (Path(root) / PACK_INDEX).is_file():
            raise
        folder = record.folder(root) if layout is None else DatasetFolder(Path(root), record.layout(layout))
        return _report(_unopened(record, folder, error))
    if not len(dataset):
        raise InputError(f"split {split}", f"a split of {record.name} with samples", f"none in {root}")
    return _report(look(dataset, samples, seed, watch))


def look(
    dataset: TileDataset, samples: int = 64, seed: int = 0,
    watch: Callable[[list[int]], Iterable[int]] = iter,
) -> Evidence:  # fmt: skip
    """Collect the facts that the checks use, from some of the tiles and from their files."""
    rng = np.random.default_rng(seed)
    chosen = spread_choice(dataset.samples, samples, rng)
    tiles: list[SeenTile] = []
    seen: list[SeenFile] = []
    unread: list[Hit] = []
    done: set[Any] = set()
    read_notes = dataset.record.read_notes
    for index in watch(chosen):
        row = dataset.samples.row(index)
        seen += files.see_files(dataset.folder, row, done)
        try:
            tile = see_tile(dataset[index], str(row["id"]), str(row["split"]), rng)
            notes = {} if read_notes is None or dataset.pack is not None else read_notes(dataset.folder, row)
            shown = tuple(f"{key}: {note}" for key, group in notes.items() for note in group)
            tiles.append(replace(tile, notes=shown))
        except (AnySatError, KeyError, IndexError, ValueError, TypeError) as error:
            told = {file.path for file in seen if file.problem}
            is_told = isinstance(error, MissingFileError | SourceError) and files.is_told(dataset.folder, row, told)
            if not is_told:
                unread.append(Hit(subject="samples", example=str(row["id"]), message=_told(error)))
    num_looked_up, absent = files.look_up(dataset.folder, dataset.samples, done)
    return Evidence(
        record=dataset.record, folder=dataset.folder, samples=dataset.samples, tiles=tuple(tiles),
        files=(*seen, *absent), unread=tuple(unread), is_complete=len(chosen) == len(dataset),
        num_looked_up=num_looked_up, split=dataset.split,
    )  # fmt: skip


def _unopened(record: DatasetRecord, folder: DatasetFolder, error: AnySatError) -> Evidence:
    """Collect what can be said if not even the lists of samples can be read: which files of the dataset exist."""
    whole = [entry for entry in folder.layout.entries if not entry.fields]
    seen = tuple(files.see_files(folder, {}, set(), whole))
    found = any(file.problem for file in seen)
    unread = () if found else (Hit(subject="samples", message=_told(error)),)
    empty = Samples(id=np.zeros(0, str), split=np.zeros(0, str))
    return Evidence(record=record, folder=folder, samples=empty, tiles=(), files=seen, unread=unread, is_complete=False)


def _report(evidence: Evidence) -> Report:
    layout = evidence.folder.layout
    return Report(
        dataset=evidence.record.name, root=str(evidence.folder.root), layout=layout.name,
        checked_against=layout.checked_against, num_read=len(evidence.tiles), num_samples=len(evidence.samples),
        num_looked_up=evidence.num_looked_up,
        findings=tuple(finding for kind in CHECKS for finding in find(kind, evidence)),
        notes=(*_empty_splits(evidence), *_counted(evidence)),
    )  # fmt: skip


def _empty_splits(evidence: Evidence) -> Iterator[str]:
    """Yield splits without samples if all splits were requested: lists or files may be missing."""
    there = set(evidence.samples.columns["split"].tolist())
    for split, members in evidence.record.splits.items():
        if evidence.split == "all" and there and there.isdisjoint(members):
            yield f"no sample of the split {split}"


def _counted(evidence: Evidence) -> tuple[str, ...]:
    """Return the notes of all tiles, the most frequent first. Those that differ by the tile's id alone count as one."""
    told = [(note, _without_id(note, tile.id)) for tile in evidence.tiles for note in tile.notes]
    same, alike = Counter(note for note, _ in told), Counter(general for _, general in told)
    counts = Counter(note if same[note] > 1 or alike[general] == 1 else general for note, general in told)
    shown = [f"{note} ({count} tiles)" if count > 1 else note for note, count in counts.most_common(MAX_NOTES)]
    return (*shown, f"and {len(counts) - MAX_NOTES} more") if len(counts) > MAX_NOTES else tuple(shown)


def _without_id(note: str, tile_id: str) -> str:
    """Return a note with `{id}` for the id of its tile, where that is no part of a longer word.

    >>> _without_id("s2: not used: t1_B01.tif, t12.tif", "t1")
    's2: not used: {id}_B01.tif, t12.tif'
    """
    return re.sub(rf"(?<![^\W_]){re.escape(tile_id)}(?![^\W_])", "{id}", note)


def find(kind: str, evidence: Evidence) -> Iterator[Finding]:
    """Yield the findings of one kind, one for each subject, however many hits it has."""
    hits: dict[str, list[Hit]] = {}
    for hit in CHECKS[kind].find(evidence):
        hits.setdefault(hit.subject, []).append(hit)
    for subject, group in hits.items():
        examples = list(dict.fromkeys(hit.example for hit in group if hit.example))
        where = f"{subject}: {some(examples, NUM_EXAMPLES)}" if examples else subject
        yield Finding(severity=CHECKS[kind].severity, kind=kind, where=where, message=group[0].message,
                      count=max(1, len(examples)))  # fmt: skip


def spread_choice(samples: Samples, count: int, rng: np.random.Generator) -> list[int]:
    """Draw indices spread over the table and its splits: one from each of `count` parts, and one of every split."""
    order = np.argsort(samples.columns["split"], kind="stable")
    if count >= len(order):
        return [int(index) for index in np.sort(order)]
    edges = np.linspace(0, len(order), count + 1)
    drawn = np.floor(edges[:-1] + rng.random(count) * np.diff(edges)).astype(int)
    splits, firsts = np.unique(samples.columns["split"][order], return_index=True)
    missed = set(splits.tolist()) - set(samples.columns["split"][order[drawn]].tolist())
    extra = [int(first) for split, first in zip(splits.tolist(), firsts, strict=True) if split in missed]
    return [int(index) for index in np.sort(order[np.unique([*drawn, *extra])])]


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, AnySatError) else f"{type(error).__name__}: {error}"
