"""Self-supervised pretraining on the unlabelled part of the real sources beside the generated world.

python benchmarks/real/unlabelled.py --data DATA --out runs/real-unseen                # goes on where it was stopped
python benchmarks/real/unlabelled.py --data DATA --out runs/real-all --see-all
python benchmarks/real/unlabelled.py --data DATA --out runs/x --max-steps 100 --list   # what it consists of
python benchmarks/real/unlabelled.py --data DATA --out runs/modis --only modis_mato_grosso --weights nano \
    --objective '{"goal": "projection", "harmonics": 8}'                               # one source, another objective

No label is read into a tile. Of every task with folds, the tiles of fold 0 are left out, of the parcels the patch that
is tested: scores of fold 0 and of the parcels are of ground that no pretraining saw. `--see-all` leaves nothing out,
and then no score is. It begins with new weights, those that `nano` began with, beside a little of the generated world.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining_real import RealTiles, scenes

from anysat.batch import Batch, Tile
from anysat.data.mixture import Mixture, Part
from anysat.data.transforms import Augmentation
from anysat.data.work import to_json
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.train.config import KeepConfig
from anysat.train.objective import Monitor
from anysat.train.run import STATISTICS, open_run
from anysat.train.trainer import Fitted, fit, num_processes
from anysat.whole_files import write_whole
from anysat.workflows.pretrain import PretrainConfig
from anysat.workflows.pretrain.objective import make_objective
from anysat.workflows.pretrain.presets import nano
from anysat.workflows.pretrain.run import OpenPart, open_part
from real import points
from real.protocol import TEST, cells
from real.tasks import load

LEAST_DATES = 6
"""A calendar year of a longer series is a tile of its own if it has so many dates."""
YEAR_DAYS = 366
CROP_M = 40.0


@dataclass(frozen=True)
class Source:
    """How a source of real tiles is drawn."""

    weight: int
    batch_size: int
    patch_sizes_m: tuple[float, ...] = (10.0,)
    crop_m: float | None = None


SOURCES: dict[str, Source] = {
    "crop_points_canada": Source(6, 64),
    "crop_points_global": Source(3, 64),
    "crop_points_africa": Source(1, 64),
    "crop_points_france": Source(1, 64),
    "s1s2_pixel_tasks": Source(4, 96),
    "algae_blooms": Source(1, 64),
    "modis_mato_grosso": Source(6, 96, (250.0,)),
    "crop_patches_multisensor": Source(2, 4, (10.0, 20.0), CROP_M),
    "crop_cubes_belgium": Source(2, 6, (10.0, 20.0), CROP_M),
    "scenes_s1s2": Source(2, 8, (10.0, 20.0, 40.0), 80.0),
}
"""Names under which statistics are kept, those of the tiles of a task included."""
WORLD_WEIGHTS = (1, 0, 0, 0, 0)
"""Of the parts of the preset's generated world: little, it is the real sources that are asked about."""
OPTIONS: dict[str, dict[str, Any]] = {
    "masking": {"keep_dates_frac": (1.0, 1.0)},
    "objective": {"goal": "teacher", "harmonics": 6, "spread_weight": 0.0, "dates_weight": 1.0},
    "optimiser": {"learning_rate": 6e-4, "warmup_steps": 30},
}
"""What differs from `nano`, by group of options; chosen by `choice.py`."""


def config(
    num_steps: int = 300, seed: int = 0, weights: str | None = None, **changes: Mapping[str, Any]
) -> PretrainConfig:
    """The options of the run: those of `nano`, but for `OPTIONS` and the data, parts of the world that are kept.

    Args:
        num_steps: of the schedule.
        seed: of all that is drawn, of the first weights too.
        weights: to go on with; None begins with new ones.
        changes: options of `masking`, `objective` and `optimiser` that are other ones.
    """
    start = nano()
    kept = [replace(part, weight=w) for part, w in zip(start.data, WORLD_WEIGHTS, strict=False) if w]
    return replace(
        start,
        preset=None,
        data=kept,
        num_steps=num_steps,
        seed=seed,
        weights=weights,
        keep=KeepConfig(save_every=100, log_every=20, loggers=("csv",)),
        **{group: replace(getattr(start, group), **{**options, **changes.get(group, {})})
           for group, options in OPTIONS.items()},
    )  # fmt: skip


def tiles_of(data: Path, *, see_all: bool) -> dict[str, list[Tile]]:
    """Unlabelled tiles by source, of at most a year each."""
    parts = {
        "crop_points_canada": _of_task("crop_canada", data, see_all=see_all),
        "crop_points_global": _of_task("landcover_global", data, see_all=see_all),
        "crop_points_africa": _monthly("africa", data),
        "crop_points_france": _monthly("france", data),
        "s1s2_pixel_tasks": _of_task("fuel_moisture", data, see_all=see_all),
        "algae_blooms": _algae(data),
        "modis_mato_grosso": [*_of_task("landuse_modis", data, see_all=see_all), *_modis(data, see_all=see_all)],
        "crop_patches_multisensor": _of_task("parcels_belgium", data, see_all=see_all),
        "crop_cubes_belgium": _cubes(data),
        "scenes_s1s2": scenes(data).tiles,
    }
    assert parts.keys() == SOURCES.keys(), list(parts)
    return {name: prepared(name, found) for name, found in parts.items()}


def prepared(name: str, tiles: Iterable[Tile]) -> list[Tile]:
    """Tiles of a source without labels, of at most a year each."""
    return [replace(one, dataset=name, targets={}) for tile in tiles for one in calendar_years(tile)]


def calendar_years(tile: Tile) -> Iterator[Tile]:
    """A tile as it is, or of series longer than a year each calendar year: day numbers would come twice."""
    dates = [seen.dates for seen in tile.observations.values() if seen.dates is not None]
    if all((days.max() - days.min()).astype(int) < YEAR_DAYS for days in dates):
        yield tile
        return
    for year in np.unique(np.concatenate([days.astype("datetime64[Y]") for days in dates])):
        cut = {key: in_year(seen, year) for key, seen in tile.observations.items()}
        if all(len(seen.values) >= LEAST_DATES for seen in cut.values()):
            yield replace(tile, observations=cut, id=f"{tile.id}/{year}")


def in_year(seen: Observation, year: np.datetime64) -> Observation:
    """The dates of a calendar year of a series."""
    assert seen.dates is not None, seen.modality.key
    kept = seen.dates.astype("datetime64[Y]") == year
    return replace(seen, values=seen.values[kept], valid=seen.valid[kept], dates=seen.dates[kept])


def _of_task(name: str, data: Path, *, see_all: bool) -> list[Tile]:
    """Tiles of a task but for those of fold 0, or of the test part."""
    task = load(name, data)
    unseen = TEST if task.is_official else 0
    return [tile for tile, fold in zip(task.tiles, task.folds, strict=True) if see_all or fold != unseen]


def _monthly(name: str, data: Path) -> list[Tile]:
    path = next((data / f"crop_points_{name}").glob("*.npz"))
    z = points._columns(path)
    count, steps = z["s2"].shape[:2]
    if "dates" in z:
        dates = np.tile(z["dates"].astype("datetime64[D]"), (count, 1))
    else:
        middles = np.round((np.arange(steps) + 0.5) * points._DAYS_OF_MONTH).astype("timedelta64[D]")
        dates = z["start_date"].astype("datetime64[D]")[:, None] + middles
    chosen = np.arange(count)
    return points._radar_and_optical(f"crop_points_{name}", z, chosen, dates, chosen, {})


def _algae(data: Path) -> list[Tile]:
    """Twelve months of lakes; the file tells months only, the year is nominal."""
    z = points._columns(data / "s1s2_pixel_tasks" / "algae_blooms.npz")
    channels = z["channels"].tolist()
    wanted = [band.name for band in points.MODALITIES["s2"].bands]
    s2 = z["series"][..., [channels.index(name) for name in wanted]]
    s1 = z["series"][..., [channels.index(name) for name in ("VV", "VH")]]
    tiles = []
    for n, months in enumerate(z["month"].astype(int)):
        years = np.cumsum(np.diff(months, prepend=months[0]) < 0)
        dates = (np.datetime64("2018-01") + months + 12 * years).astype("datetime64[D]") + 14
        optical = points._series("s2", s2[n], dates, wanted, s2[n] > 0)
        radar = points._series("s1", s1[n], dates, ("VV", "VH"), s1[n] > points.NO_ECHO_DB)
        tiles.append(Tile.of(optical, radar, id=str(n)))
    return tiles


def _modis(data: Path, *, see_all: bool) -> list[Tile]:
    """The agricultural points of 2015, but for places of fold 0 of the labelled ones."""
    z = points._columns(data / "modis_mato_grosso" / "points_agriculture_2015.npz")
    labelled = points._columns(data / "modis_mato_grosso" / "points_9classes.npz")
    task = load("landuse_modis", data)
    lat, lon = (np.concatenate([labelled[name], z[name]]) for name in ("lat", "lon"))
    place = cells(lat, lon, 2)
    of_task, of_all = place[: len(task.tiles)], place[len(task.tiles) :]
    kept = ~np.isin(of_all, of_task[task.folds == 0]) | see_all
    at = [z["bands"].tolist().index(name) for name in points._MODIS_BANDS.values()]
    values = z["series"][..., at] * 1e4
    return [
        Tile.of(
            points._series("modis", values[n], z["dates"][n], tuple(points._MODIS_BANDS), values[n] >= 0), id=str(n)
        )
        for n in np.flatnonzero(kept)
    ]


def _cubes(data: Path) -> list[Tile]:
    """Squares of 100 m of both cubes."""
    side, tiles = 10, []
    for path in sorted((data / "crop_cubes_belgium").glob("*.npz")):
        z = points._columns(path)
        dates = z["dates"].astype("datetime64[D]") + 14
        has_s2, has_s1 = ((z[key] != points.MISSING) & (z[key] > 0) for key in ("s2", "s1"))
        s2 = np.minimum(z["s2"], points.S2_LIMIT)
        s1 = 20 * np.log10(np.where(has_s1, z["s1"], 1).astype(np.float64)) - 83
        for row, col in np.ndindex(s2.shape[2] // side, s2.shape[3] // side):
            window = np.s_[:, :, row * side : (row + 1) * side, col * side : (col + 1) * side]
            optical = Observation.of(points.MODALITIES["s2"], s2[window], bands=z["s2_bands"].tolist(), dates=dates,
                                     valid=has_s2[window])  # fmt: skip
            radar = Observation.of(points.MODALITIES["s1"], s1[window], bands=["VV", "VH"], dates=dates,
                                   valid=has_s1[window])  # fmt: skip
            tiles.append(Tile.of(optical, radar, id=f"{path.stem}/{row}/{col}"))
    return tiles


def real_parts(found: Mapping[str, Sequence[Tile]], sources: Mapping[str, Source]) -> list[Part]:
    """How the real tiles are drawn."""
    return [
        Part(
            tiles=RealTiles(name, tiles), batch_size=sources[name].batch_size, weight=sources[name].weight,
            patch_sizes_m=sources[name].patch_sizes_m,
            augmentation=Augmentation(crop_m=sources[name].crop_m, turns_and_flips=sources[name].crop_m is not None,
                                      max_dates=24),
        )
        for name, tiles in found.items()
    ]  # fmt: skip


def statistics(found: Mapping[str, Sequence[Tile]]) -> Normaliser:
    """Of every source by itself."""
    return Normaliser.joined([Normaliser.from_batch(Batch.of(tiles)) for tiles in found.values()])


def pretrain(
    options: PretrainConfig, found: Mapping[str, Sequence[Tile]], out: Path, *, sources: Mapping[str, Source],
    about: Mapping[str, Any], monitors: Sequence[Monitor] = (),
) -> Fitted:  # fmt: skip
    """Train, or go on, and tell how it ended; `anysat.load(out)` takes what is left.

    Args:
        options: of the run; its own data, parts of the generated world, are drawn beside the real tiles.
        found: real tiles by source.
        out: run folder.
        sources: how the tiles of each source are drawn.
        about: facts kept with the options.
        monitors: what is measured on the way.
    """
    world = [open_part(options, part) for part in options.data]
    given = {**options.to_dict(), "real": {name: asdict(sources[name]) for name in found},
             "num_tiles": {name: len(tiles) for name, tiles in found.items()}, **about}  # fmt: skip
    joined = Normaliser.joined([statistics(found), *_of_world(world)])
    with open_run(out, config=given, seed=options.seed, resume=True, may_change=options.MAY_CHANGE,
                  processes=num_processes(options.engine)) as run:  # fmt: skip
        if run.is_writer:
            write_whole(run.path / STATISTICS, to_json(joined.to_dict()))
        objective = make_objective(options, joined)
        data = ", ".join((*(["generated world"] if world else []), *found))
        for kept in (objective.student, objective.encoder()):  # a teacher is a copy
            kept.provenance = {**kept.provenance, "data": data}
        parts = [*real_parts(found, sources), *(part.part(part.train) for part in world)]
        return fit(
            objective,
            lambda rank, world_size: Mixture(parts=parts, seed=options.seed, rank=rank, world_size=world_size),
            optimiser=options.optimiser, engine=options.engine, keep=options.keep, seed=options.seed,
            num_steps=options.num_steps, max_steps=options.max_steps, run=run, monitors=monitors,
        )  # fmt: skip


def _of_world(world: Sequence[OpenPart]) -> list[Normaliser]:
    """The statistics that came with the parts of the generated world, as one; none where there is no part."""
    tables: dict[str, Any] = {}
    for part in world:
        assert part.normaliser is not None, part.config.dataset
        for name, table in part.normaliser.statistics.items():
            tables[name] = {**table, **tables.get(name, {})}
    return [replace(part.normaliser, statistics=tables) for part in world[-1:] if part.normaliser is not None]


def listed(found: dict[str, list[Tile]]) -> NDArray[np.int64]:
    """Print how many tiles each source has."""
    counts = np.array([len(tiles) for tiles in found.values()])
    for name, tiles in found.items():
        print(f"{name}: {len(tiles)} tiles, such as {tiles[0]!r}")
    return counts


def main() -> None:
    """Pretrain, or list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real data")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--see-all", action="store_true", help="leave out nothing that is tested")
    parser.add_argument("--num-steps", type=int, default=config().num_steps)
    parser.add_argument("--max-steps", type=int, help="stop after these; schedules do not change")
    parser.add_argument("--only", nargs="+", default=(), choices=SOURCES, help="sources; all where it is not given")
    parser.add_argument("--seed", type=int, default=config().seed)
    parser.add_argument("--weights", help="to go on with, `nano` or a run; new ones where it is not given")
    for group in OPTIONS:
        parser.add_argument(f"--{group}", type=json.loads, default={}, help="options that are other ones, as JSON")
    parser.add_argument("--list", action="store_true", help="tell what there is, and end")
    given = parser.parse_args()
    if given.data is None or not given.data.is_dir():
        print("skipped: there is no folder" + (f" {given.data}" if given.data else ", give it with --data"))
    elif given.list:
        listed(tiles_of(given.data, see_all=given.see_all))
    else:
        torch.set_num_threads(1)
        changes = {group: getattr(given, group) for group in OPTIONS}
        options = replace(config(given.num_steps, given.seed, given.weights, **changes), max_steps=given.max_steps)
        every = tiles_of(given.data, see_all=given.see_all)
        found = {name: tiles for name, tiles in every.items() if not given.only or name in given.only}
        pretrain(options, found, given.out, sources=SOURCES, about={"see_all": given.see_all})


if __name__ == "__main__":
    main()
