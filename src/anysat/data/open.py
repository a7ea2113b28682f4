"""Find datasets by name and open them, loose or packed."""

from __future__ import annotations

import copyreg
import importlib
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anysat.data.base import PACK_INDEX, DatasetRecord, TileDataset
from anysat.data.own import read_record
from anysat.data.pack import open_pack
from anysat.data.samples import Samples
from anysat.errors import AnySatError, InputError, SourceError, UnknownNameError

_DATASETS = "anysat.data.datasets"


def open_dataset(
    name: str, root: str | Path, split: str = "train", *, modalities: Sequence[str] | None = None,
    layout: str | None = None, targets: Sequence[str] | None = None,
) -> TileDataset:  # fmt: skip
    """Open a dataset on disk, loose or packed. Its items are tiles.

    Args:
        name: One of `dataset_names()`, the dotted name of a module that exports `DATASET`, or a YAML file that
            describes your own data.
        root: Folder of the dataset.
        split: `train`, `val`, `test` or `all`, or several of the dataset's own splits, such as `fold1+fold2`.
        modalities: Keys of the modalities to read; None for all.
        layout: Name of the layout, or `packed` for `anysat datasets pack`. None to recognise it.
        targets: Names of the targets to read; None for all, empty for none, as in pretraining.

    Raises:
        UnknownNameError: There is no such dataset, split, modality, layout or target.
        MissingFileError, SourceError: The folder does not hold the dataset.
    """
    for what, given in (("name", name), ("root", root)):
        if not isinstance(given, str | os.PathLike):
            raise InputError(f"{what} of the dataset", "a name or a path", type(given).__name__)
    record = find_dataset(str(name))
    for key in modalities or ():
        if key not in record.modalities:
            raise UnknownNameError(f"modality of {record.name}", key, record.modalities)
    for target in targets or ():
        record.target(target)
    dataset = _open_all(record, Path(root), layout)
    samples = dataset.samples if split == "all" else dataset.samples.of(*_members(record, dataset.samples, split))
    if dataset.pack is not None:
        for asked, packed in ((modalities, dataset.modalities), (targets, dataset.pack.targets)):
            for one in asked or ():
                if one not in packed:
                    raise SourceError(
                        root, f"{one} was not packed, only {', '.join(packed) or 'none'}", "pack it again"
                    )
    wanted = tuple(key for key in dataset.modalities if modalities is None or key in modalities)
    return replace(dataset, samples=samples, modalities=wanted, split=split,
                   targets=None if targets is None else tuple(targets))  # fmt: skip


def _open_all(record: DatasetRecord, root: Path, layout: str | None) -> TileDataset:
    """Open all samples of a folder."""
    if layout == "packed" or (layout is None and (root / PACK_INDEX).is_file()):
        return open_pack(record, root)
    folder = record.folder(root, layout)
    try:
        samples = record.list_samples(folder)
    except AnySatError:
        raise
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        expected = f"expected the lists and folders of {record.title}, layout {folder.layout.name!r}"
        raise SourceError(folder.root, f"its samples cannot be listed ({error!r})", expected) from error
    if not len(samples):
        raise SourceError(folder.root, f"no sample of {record.title} was found", f"layout {folder.layout.name!r}")
    return TileDataset(record, folder, samples, record.modalities)


def _members(record: DatasetRecord, samples: Samples, split: str) -> tuple[str, ...]:
    if split in record.splits:
        return record.splits[split]
    members = tuple(member for name in split.split("+") for member in record.splits.get(name, (name,)))
    known = {name for group in record.splits.values() for name in group} | set(map(str, samples.columns["split"]))
    for member in members:
        if member not in known:
            raise UnknownNameError(f"split of {record.name}", member, {*record.splits, *known, "all"})
    return members


def dataset_names() -> list[str]:
    """Return the names of the datasets that the package knows."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(_DATASETS).__path__))


def find_dataset(name: str) -> DatasetRecord:
    """Return the record of a dataset: a known name, the dotted name of a module, or a YAML file of your own data.

    Raises:
        UnknownNameError: There is none.
    """
    if name.endswith((".yaml", ".yml")):
        return read_record(Path(name))
    if name in dataset_names():
        module = importlib.import_module(f"{_DATASETS}.{name}")
    elif "." in name:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            told = str(error)
            if error.name == name.partition(".")[0]:
                told += (". The command `anysat` does not look into the current folder: run `python -m anysat …` "
                         "there, or set PYTHONPATH=.")  # fmt: skip
            raise UnknownNameError("dataset module", name, dataset_names(), told) from error
    else:
        raise UnknownNameError("dataset", name, dataset_names(), "`anysat datasets list` lists them all")
    record = getattr(module, "DATASET", None)
    if not isinstance(record, DatasetRecord):
        raise InputError(name, "a module that exports DATASET, a DatasetRecord", type(record).__name__)
    return replace(record, found_as=name)


def _by_name(record: DatasetRecord) -> tuple[Any, ...]:
    return find_dataset, (record.found_as or record.name,)


copyreg.pickle(DatasetRecord, _by_name)  # records hold functions; other processes find them by name
