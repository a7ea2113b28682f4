"""A user's own data, described in a short YAML file and used like any other dataset (see docs/howto/own-data.md)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from anysat.data.base import DatasetRecord
from anysat.data.layout import SOURCE, Entry, Layout, glob_of
from anysat.data.own.content import OwnData, OwnSplits
from anysat.data.own.description import read_yaml
from anysat.data.own.paths import file_of
from anysat.data.own.tables import SPLIT
from anysat.data.own.tiles import list_classes, list_tiles, read_notes, read_tile
from anysat.modalities import MODALITIES


def read_record(path: Path) -> DatasetRecord:
    """Read the record of a YAML file. Paths in it are relative to the folder given to `open_dataset`.

    Raises:
        MissingFileError: The file is missing, or the modality records or the table that it names.
        RecordError, UnknownNameError: A key is unknown or missing, or has an impossible value. The message names it.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "mine.yaml")
        ...     _ = file.write_text("{name: mine, tile_m: 40, modalities: {s2: {path: 'cubes/{id}.nc'}}}")
        ...     read_record(file).patch_sizes_m
        (10.0, 20.0, 40.0)
    """
    path = path.absolute()
    data = read_yaml(path)
    classes = [own for own in data.targets if own.column is not None and own.target.is_multiclass]
    return DatasetRecord(
        name=data.name,
        title=data.texts.get("title", data.name),
        about=data.texts.get("about", f"Described in {path.name}"),
        modalities=tuple(modality.key for modality in data.modalities),
        tile_m=data.tile_m,
        patch_sizes_m=data.patch_sizes_m,
        targets=tuple(own.target for own in data.targets),
        splits=data.splits.members,
        split_rule=_split_rule(data.splits),
        date_rule="as in the files and their names",
        block_m=data.splits.block_m,
        licence=data.texts.get("licence", "not stated"),
        size="not counted",
        homepage=data.texts.get("homepage", f"where {path} says"),
        citation=data.texts.get("citation", "none"),
        layouts=(_layout(data),),
        list_samples=partial(list_tiles, data),
        read_sample=partial(read_tile, data),
        read_notes=partial(read_notes, data),
        list_labels=partial(list_classes, data, classes[0]) if classes else None,
        found_as=str(path),
        sources={own.key: said for own in data.modalities if (said := own.said)},
        sensors={own.key: own.record for own in data.modalities if MODALITIES.get(own.key) != own.record},
    )


def _split_rule(splits: OwnSplits) -> str:
    if splits.column is not None:
        return f"column {splits.column!r} of the table"
    shares = ", ".join(f"{split} {share:g}" for split, share in splits.shares.items())
    way = "by the name of the tile" if splits.block_m is None else f"by squares of {splits.block_m:g} m of ground"
    drawn = f"seeded draw {way}: {shares}"
    return drawn if splits.is_given else f"column {SPLIT!r} where the table has one, else {drawn}"


def _layout(data: OwnData) -> Layout:
    found = str(data.file)
    entries = [
        Entry(name=own.key, path=file_of(own.path), dtype=SOURCE, is_optional=own.is_optional, source=found,
              modality=own.key, bands=own.band_names, about=f"imagery of {own.record.sensor}")
        for own in data.modalities
    ] + [
        Entry(name=f"{own.key}-quality", path=file_of(own.quality_path), dtype=SOURCE, is_optional=own.is_optional,
              source=found, about=f"quality layer of {own.key}")
        for own in data.modalities if own.quality_path is not None
    ] + [
        Entry(name=f"{own.target.name}-raster", path=own.path, dtype=SOURCE, source=found,
              about=f"raster of target {own.target.name}")
        for own in data.targets if own.path is not None
    ]  # fmt: skip
    return Layout(name="own", marker=glob_of(file_of(data.first.path)), entries=tuple(entries),
                  checked_against="the user's own files")  # fmt: skip
