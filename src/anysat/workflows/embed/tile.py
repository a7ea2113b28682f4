"""The run of `anysat embed` for a tile: open, plan the grid, read, encode, write, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.status import Status
from rich.text import Text

from anysat.batch import Batch, Embeddings, Tile
from anysat.errors import UnknownNameError
from anysat.geo.grid import TileGrid, plan_grid
from anysat.geo.read.descriptions import SourceDescription, describe_sources
from anysat.geo.read.source import Source
from anysat.geo.read.sources import open_sources, parse_units
from anysat.geo.write.outputs import Result, find_writer, suffixes
from anysat.geo.write.writers import Product, check_apart, check_free, staged
from anysat.geo.zones import system_name
from anysat.model.checkpoint import address_of
from anysat.model.digest import made_by
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.model.precision import Precision, find_device, find_precision, multiplying
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.pictures import picture_of, save_picture, tile_figure
from anysat.workflows.areas.inputs import dates_told, records_of
from anysat.workflows.embed import FIRST, EmbedConfig
from anysat.workflows.kept import kept_sources


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadTile:
    """Inputs on their common grid, in source values."""

    sources: Mapping[str, Source]
    grid: TileGrid
    tile: Tile
    ways: Mapping[str, str]
    """How the pixels of each modality were brought onto the grid."""

    def told(self, statistics: Sequence[str]) -> list[str]:
        """Return a line for each input, one for the ground, and one for the statistics."""
        grid, shared = self.grid, self.grid.shared
        return [
            *(self._input_line(key, source) for key, source in self.sources.items()),
            f"tile: {grid.patches.num_rows} x {grid.patches.num_cols} patches of {grid.patches.patch_size_m:g} m, "
            f"{grid.patches.height_m:g} x {grid.patches.width_m:g} m of the {shared.span_y:.1f} x "
            f"{shared.span_x:.1f} m that the inputs share, in {system_name(grid.geobox.crs)} ({grid.crs_reason})",
            f"statistics: {'; '.join(statistics)}",
        ]

    def _input_line(self, key: str, source: Source) -> str:
        observation = self.tile.observations[key]
        rows, cols = observation.shape_px
        return ", ".join(
            [
                f"read {key}: {source.name}",
                *_dates(source, observation),
                f"bands {' '.join(source.bands)}",
                f"{rows} x {cols} pixels of {source.modality.gsd_m:g} m",
                f"{observation.valid.mean():.1%} valid",
                self.ways[key],
                *source.notes,
            ]
        )


def embed_tile(config: EmbedConfig) -> Text:
    """Embed a tile, see `anysat.workflows.embed.embed`."""
    started = time.perf_counter()
    given = describe_sources(config.inputs)
    out = Path(config.out)
    paths = [out] if out.suffix else [out.with_suffix(suffix) for suffix in suffixes(Result.TILE)]
    outputs = {path: find_writer(Result.TILE, path.suffix)() for path in paths}
    picture = picture_of(out)
    finals = [*(file for path, writer in outputs.items() for file in writer.files(path)), picture]
    check_apart(finals, [*(source.file for source in given.values()), *config.weights_file])
    device = find_device(config.device)
    with _status("loading weights") as status:
        model = load(config.weights, statistics=config.statistics, device=device)
        read = _read(config, given, model, status, finals, kept_sources(config.weights))
        status.update("encoding")
        precision = find_precision(config.precision, model.device)
        embeddings, statistics = _encode(model, read.tile, config, precision)
        status.update("writing")
        product = Product(
            embeddings=embeddings,
            grid=read.grid,
            modalities=[source.modality for source in read.sources.values()],
            model=address_of(config.weights),
            sources=[source.where for source in given.values()],
            provenance=_provenance(config, model, read, statistics[0], precision),
        )
        with staged(finals, overwrite=config.overwrite) as folder:
            for path, writer in outputs.items():
                writer.write(product, folder / path.name)
            title = f"{config.patch_size_m:g} m patches, weights {model.provenance.get('weights', config.weights)}"
            save_picture(tile_figure(read.tile, embeddings, title), folder / picture.name, paths[0].name)
    written = [path for path in finals if path.exists()]
    return _report(read, embeddings, statistics, precision, written, time.perf_counter() - started)


def _read(
    config: EmbedConfig, given: Mapping[str, SourceDescription], model: AnySat, status: Status, finals: Sequence[Path],
    trained: Mapping[str, Mapping[str, Any]] | None,
) -> ReadTile:  # fmt: skip
    """Read the pixels. A dense modality must be one of the inputs.

    Only once the ground is known to be that of a tile are `finals` checked. For a larger area they may exist, from an
    interrupted run that this one continues.
    """
    records = records_of(model, given, config.sensors)
    if config.dense not in (None, FIRST, *records):
        raise UnknownNameError("dense modality", config.dense, [*records, FIRST], "It must be one of the inputs")
    sources = open_sources(given, records, parse_units(config.units, records), trained=trained)
    footprints = [source.footprint for source in sources.values()]
    grid = plan_grid(footprints, config.patch_size_m, model.config.subpatch_order)
    check_free(finals, overwrite=config.overwrite)
    observations, ways = {}, {}
    for key, source in sources.items():
        status.update(f"reading {key}")
        observations[key], ways[key] = source.observe(grid.of(source.modality))
    tile = Tile(observations=observations, id=Path(config.out).stem, dataset=config.dataset, geobox=grid.geobox)
    return ReadTile(sources=sources, grid=grid, tile=tile, ways=ways)


def read_tile(
    config: EmbedConfig, model: AnySat, finals: Sequence[Path] = (),
    trained: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Tile, list[str]]:  # fmt: skip
    """Read the inputs of a config as one tile, in the units of the model's statistics.

    Args:
        model: The model. If it has no statistics, those of the tile are set.
        finals: Paths that will be written.
        trained: Descriptions of the training inputs, see `open_sources`.

    Returns:
        The tile, and lines about how it was read.

    Raises:
        OutputExistsError: One of `finals` exists, and the config does not overwrite.
    """
    given = describe_sources(config.inputs)
    with _status("opening inputs") as status:
        read = _read(config, given, model, status, finals, trained)
    tile, statistics = _in_units(model, read.tile)
    return tile, read.told(statistics)


def _in_units(model: AnySat, tile: Tile) -> tuple[Tile, list[str]]:
    """Convert the tile to the units of the statistics, which are computed from it if there are none.

    Also returns the source of the statistics, and the conversions.
    """
    if model.normaliser is None:
        model.normaliser = Normaliser.from_batch(Batch.of([tile]))
        return tile, ["computed from this tile; embeddings cannot be compared with those of other runs"]
    tile, said = model.normaliser.in_units(tile)
    return tile, [model.normaliser.source_of(tile.dataset), *said]


def _encode(model: AnySat, tile: Tile, config: EmbedConfig, precision: Precision) -> tuple[Embeddings, list[str]]:
    """Return the embeddings, and what was done to standardise."""
    tile, said = _in_units(model, tile)
    dense = config.dense
    if dense == FIRST:
        seen = (k for k, o in tile.observations.items() if o.valid.any() and not o.modality.covers_tile)
        dense = next(seen, None)
    with torch.inference_mode(), multiplying(precision, model.device):
        return model.encode(Batch.of([tile]), config.patch_size_m, dense=dense), said


def _provenance(
    config: EmbedConfig, model: AnySat, read: ReadTile, statistics: str, precision: Precision
) -> dict[str, Any]:
    return {
        **made_by(model),
        "precision": precision,
        "statistics": statistics,
        "patch_size_m": config.patch_size_m,
        "inputs": {
            key: {
                "path": source.name,
                "bands": list(source.bands),
                "units": list(read.tile.observations[key].units),
                "dates": [] if source.dates is None else [str(date) for date in source.dates],
                "resampling": read.ways[key],
            }
            for key, source in read.sources.items()
        },
    }


def _report(
    read: ReadTile, embeddings: Embeddings, statistics: Sequence[str], precision: Precision, written: Sequence[Path],
    seconds: float,
) -> Text:  # fmt: skip
    lines = [
        *read.told(statistics),
        f"embeddings: {int(embeddings.valid.sum())} of {embeddings.valid.numel()} patches have data, "
        + (f"dense for {embeddings.dense_modality.key}" if embeddings.dense_modality else "no dense")
        + f", computed in {precision}",
        absent_line(read.tile),
        *(f"wrote {path}" for path in written),
        f"{seconds:.1f} s",
    ]
    return Text("\n".join(lines))


def absent_line(tile: Tile) -> str:
    """Return a line about the inputs that have no valid value."""
    absent = [key for key, observation in tile.observations.items() if not observation.valid.any()]
    return f"inputs without valid values: {', '.join(absent) or 'none'}"


def _dates(source: Source, observation: Observation) -> list[str]:
    """Describe the dates of a source, and how many of them have no valid value in the tile."""
    told = dates_told(source)
    if source.dates is None or not observation.modality.is_temporal:
        return [told]
    empty = len(source.dates) - int(observation.valid.any(axis=(1, 2, 3)).sum())
    return [told, f"{empty} of them without valid values here"] if 0 < empty < len(source.dates) else [told]


def _status(what: str) -> Status:
    """Return a line on stderr that tells the step, if stderr is a terminal. It disappears when done."""
    return Console(stderr=True).status(what)
