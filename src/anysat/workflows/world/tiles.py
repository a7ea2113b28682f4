"""Writing a generated dataset, all or nothing, with progress on the screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anysat.data.base import DatasetRecord
from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset
from anysat.data.world import World
from anysat.errors import InputError, OutputExistsError
from anysat.geo.write.writers import staged
from anysat.workflows.progress import tick_bar
from anysat.workflows.world import WorldMakeConfig


def make_dataset(config: WorldMakeConfig) -> str:
    """Write the dataset to a temporary folder, then rename it; see `world.make`."""
    record = find_dataset(config.layout)
    layout = record.layouts[0] if config.form is None else record.layout(config.form)
    out = Path(config.out)
    place = out.resolve()  # a link is kept, and its target is written
    is_there = out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None)
    if is_there and not config.overwrite:
        raise OutputExistsError([out])
    with staged([place], overwrite=True) as unfinished:
        folder = DatasetFolder(unfinished / place.name, layout, sensors=record.sensors)
        folder.root.mkdir()
        _write(record, folder, config)
    num_tiles = len(record.list_samples(replace(folder, root=place)))
    files = [path for path in place.rglob("*") if path.is_file()]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    return (
        f"{num_tiles} generated tiles in the {layout.name} layout of {record.title}: {len(files)} files, "
        f"{size_mb:.1f} MB in {out} (seed {config.seed}).\nNext: anysat datasets check {config.layout} {out}"
    )


def _write(record: DatasetRecord, folder: DatasetFolder, config: WorldMakeConfig) -> None:
    """Call the dataset's writer. It asks the world for its tiles one by one, which drives the progress bar."""
    if record.write_miniature is None:
        raise InputError(f"dataset {record.name}", "one that can be generated", "one without a writer")
    with tick_bar(f"tiles of {record.name}") as tick:
        world = World(config.seed, on_tile=lambda index: tick(index, config.tiles))
        record.write_miniature(folder, world, config.tiles)
