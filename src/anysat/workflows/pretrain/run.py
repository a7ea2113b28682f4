"""The pretraining run: data and their statistics, model, objective, monitors, and the report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysat.data.base import DatasetRecord, Tiles
from anysat.data.kept_statistics import keep_statistics, of_file, sources_of
from anysat.data.mixture import Mixture, Part, sides_m
from anysat.data.open import find_dataset, open_dataset
from anysat.data.transforms import Augmentation
from anysat.data.work import tiles_facts, to_json
from anysat.errors import (
    AnySatError,
    CollapseError,
    DivergedError,
    InputError,
    MissingFileError,
    RecordError,
    RunStoppedError,
    StatisticsError,
    UnknownNameError,
)
from anysat.model.checkpoint import find_statistics
from anysat.normalise import BETWEEN_SOURCES, BandStatistics, Normaliser
from anysat.pretrain.objective import Pretraining
from anysat.train.checkpoints import checkpoint_steps, newest_checkpoint
from anysat.train.objective import Monitor
from anysat.train.run import STATISTICS, RunFolder, open_run, wait_for
from anysat.train.trainer import Fitted, fit, num_processes
from anysat.whole_files import write_whole
from anysat.workflows.answer import Answer
from anysat.workflows.made_data import made_data
from anysat.workflows.pretrain import PartConfig, PretrainConfig
from anysat.workflows.pretrain.objective import make_objective
from anysat.workflows.pretrain.watch import HealthMonitor, Validation
from anysat.workflows.progress import progress_bar

if TYPE_CHECKING:
    from anysat.data.work import Advance


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenPart:
    """A part of the mixture with its data opened."""

    config: PartConfig
    record: DatasetRecord
    train: Any
    held_out: Any | None
    """Validation tiles; None if there are none."""
    normaliser: Normaliser | None = None
    """Statistics that came with the data, or None."""

    @property
    def patch_sizes_m(self) -> tuple[float, ...]:
        """The patch sizes asked for, else those of the dataset that divide its tiles."""
        given = tuple(self.config.patch_sizes_m)
        sides = [self.config.crop_m] if self.config.crop_m else sides_m(self.train) or [self.record.tile_m]
        return given or tuple(size for size in self.record.patch_sizes_m if not any(side % size for side in sides))

    def part(self, tiles: Tiles, *, validation: bool = False) -> Part:
        """Return the part of the mixture. For validation, every tile is drawn equally often."""
        config = self.config
        augmentation = Augmentation(
            turns_and_flips=config.turns_and_flips and not validation,
            crop_m=config.crop_m,
            max_dates=None if validation else config.max_dates,
            cut_at_random=config.cut_at_random and not validation,
        )
        return Part(
            tiles=tiles, batch_size=min(config.batch_size, len(tiles)) if validation else config.batch_size,
            weight=1 if validation else config.weight, patch_sizes_m=self.patch_sizes_m, augmentation=augmentation,
            sampler="shuffle" if validation else config.sampler,
        )  # fmt: skip


def run_pretraining(config: PretrainConfig, out: Path, resume: bool) -> Answer:
    """Run pretraining, see `pretrain`."""
    began = time.monotonic()
    parts = [open_part(config, part, _name_of(config, number)) for number, part in enumerate(config.data)]
    prepared_s = time.monotonic() - began
    _check_modalities(config, parts)
    _check_names(parts)
    _check_watched(config, parts)
    with open_run(
        out, config=config.to_dict(), seed=config.seed, resume=resume, may_change=config.MAY_CHANGE,
        data=_data_facts(parts), processes=num_processes(config.engine),
    ) as run:  # fmt: skip
        normaliser = _statistics(config, parts, run)
        begun = newest_checkpoint(run.checkpoints) if config.weights is not None else None
        objective = make_objective(config, normaliser, begun)
        watched = monitors(config, parts)
        try:
            fitted = fit(
                objective,
                lambda rank, world_size: Mixture(
                    parts=[part.part(part.train) for part in parts], seed=config.seed, rank=rank, world_size=world_size
                ),
                optimiser=config.optimiser, engine=config.engine, keep=config.keep, seed=config.seed,
                num_steps=config.num_steps, max_steps=config.max_steps, run=run, monitors=watched,
            )  # fmt: skip
        except (CollapseError, DivergedError, RunStoppedError) as error:
            kept = max(checkpoint_steps(run.checkpoints), default=0)
            with contextlib.suppress(AnySatError, OSError):  # the disk may be full; the error is raised in any case
                _report(config, objective, watched, run, kept, ended=str(error))
            raise
        told = _told(run, fitted, time.monotonic() - began, prepared_s)
        told += _report(config, objective, watched, run, fitted.steps)
    return Answer(told, exit_status=fitted.exit_status)


def _data_facts(parts: Sequence[OpenPart]) -> dict[str, Any]:
    """Return which tiles each part draws from and is validated on."""
    facts = {}
    for number, part in enumerate(parts, 1):
        where, by_class = f"part {number} ({part.record.name})", part.config.sampler == "sqrt_frequency"
        facts[f"{where}, {part.config.split}"] = tiles_facts(part.train, by_class=by_class)
        if part.held_out is not None:
            facts[f"{where}, {part.config.val_split}"] = tiles_facts(part.held_out)
    return facts


def _report(
    config: PretrainConfig, objective: Pretraining, watched: Sequence[Monitor], run: RunFolder, steps: int,
    ended: str = "",
) -> str:  # fmt: skip
    """Write the report if one is wanted, and return a line with its path."""
    if not run.is_writer or not config.watch.report:
        return ""
    from anysat.workflows.pretrain.report import write_report
    from anysat.workflows.pretrain.watch import report_input

    given = replace(report_input(config, objective.encoder(), watched, steps, run.path), ended=ended)
    return f"\nreport: {write_report(run.path, given)}"


def _name_of(config: PretrainConfig, number: int) -> str:
    """Return what distinguishes a part from others of the same dataset: number and sensors. Empty if there are none."""
    part = config.data[number]
    if [other.dataset for other in config.data].count(part.dataset) < 2:
        return ""
    sensors = f" ({' '.join(part.modalities)})" if part.modalities else ""
    return f", part {number + 1} of {len(config.data)}{sensors}"


def open_part(config: PretrainConfig, part: PartConfig, told_as: str = "") -> OpenPart:
    """Find and open the data of a part. Generated and fetched data are created and kept in the cache.

    Args:
        told_as: Text after the name of the dataset in progress lines.

    Raises:
        InputError: Both a folder and a world to generate are given, or no folder.
        MissingFileError: There is no such folder.
    """

    def shown(what: str, total: int) -> AbstractContextManager[Advance]:
        return progress_bar(what + told_as, total)

    record = find_dataset(part.dataset)
    given = config.data_root if part.root is None and part.world is None else part.root
    root, normaliser = made_data(part.dataset, given, part.world, shown) or (config.folder_of(part), None)

    def opened(split: str) -> Any:
        return open_dataset(part.dataset, root, split, modalities=part.modalities, targets=())

    held_out = opened(part.val_split) if part.val_split is not None else None
    return OpenPart(
        config=part, record=record, train=opened(part.split), normaliser=normaliser,
        held_out=held_out if held_out is not None and len(held_out) else None,
    )  # fmt: skip


def monitors(config: PretrainConfig, parts: Sequence[OpenPart]) -> list[Monitor]:
    """Return what to measure on held-out tiles. Empty if there are none."""
    held = [(part, part.held_out) for part in parts if part.held_out is not None]
    if not held:
        return []
    validation = Validation(
        every_steps=config.watch.validate_every,
        mixture_parts=tuple(part.part(tiles, validation=True) for part, tiles in held),
        steps=config.watch.val_batches * len(held), seed=config.seed, num_workers=config.engine.num_workers,
    )  # fmt: skip
    first, labelled = held[0]
    if config.watch.target is not None:
        name, split, root = first.config.dataset, str(first.config.val_split), labelled.folder.root
        labelled = open_dataset(name, root, split, modalities=first.config.modalities, targets=(config.watch.target,))
    health = HealthMonitor(
        every_steps=config.watch.health_every, tiles=labelled, num_tiles=config.watch.health_tiles,
        patch_size_m=max(first.patch_sizes_m),
        target=None if config.watch.target is None else first.record.target(config.watch.target),
        stop_on_collapse=config.watch.stop_on_collapse,
    )  # fmt: skip
    return [validation, health]


def _check_modalities(config: PretrainConfig, parts: Iterable[OpenPart]) -> None:
    known = set(config.model.modalities)
    for part in parts:
        missing = [key for key in part.train.modalities if key not in known]
        if missing:
            raise InputError(
                f"dataset {part.config.dataset}", f"modalities of the model ({', '.join(sorted(known))})",
                ", ".join(missing), "add them to --model.modalities, or name others in `modalities` of the part",
            )  # fmt: skip


def _check_names(parts: Iterable[OpenPart]) -> None:
    """Check that different datasets have different names, by which statistics and metrics are stored."""
    first: dict[str, tuple[int, tuple[str, ...]]] = {}
    for number, part in enumerate(parts, 1):
        name, source = part.record.name, _source(part)
        before, other = first.setdefault(name, (number, source))
        if source != other:
            raise InputError(
                f"part {number} of the mixture", f"another name than part {before}, of {' in '.join(other)}",
                f"{name!r} of {' in '.join(source)}", "give one of them another `name` in its description",
            )  # fmt: skip


def _source(part: OpenPart) -> tuple[str, ...]:
    """Return what identifies a dataset: its name, or for a user's own, its description and folder."""
    if not part.record.is_own:
        return (part.record.found_as,)
    return str(Path(part.record.found_as).resolve()), str(part.train.folder.root.resolve())


def _check_watched(config: PretrainConfig, parts: Sequence[OpenPart]) -> None:
    """Check that there are held-out tiles for what is to be watched, and that the target has classes."""
    watch, held = config.watch, [part for part in parts if part.held_out is not None]
    if watch.stop_on_collapse and not held:
        raise RecordError("watch.stop_on_collapse", True, "false, because there are no held-out tiles to check")
    if watch.target is None:
        return
    if not held:
        raise RecordError("watch.target", watch.target, "null, because there are no held-out tiles to check")
    if not (target := held[0].record.target(watch.target)).is_multiclass:
        raise RecordError("watch.target", watch.target, f"a target of classes; it is one of kind {target.kind}")


def _statistics(config: PretrainConfig, parts: Sequence[OpenPart], run: RunFolder) -> Normaliser:
    """Return the run's statistics: stored ones, else those given, else computed by the first process for all.

    Raises:
        StatisticsError: Those given differ from those that the run was started with, or nothing was trained yet, and
            files have changed since they were computed.
    """
    kept = run.path / STATISTICS
    given = None if config.statistics is None else _given(config.statistics, is_needed=not kept.is_file())
    if not run.is_writer:
        wait_for(kept)
    elif not kept.is_file():
        made = given or _together(
            part.normaliser or _computed(config, number, part, run) for number, part in enumerate(parts, 1)
        )
        of_parts = sorted(run.path.glob(of_file(Path(_STATISTICS_OF_PART.format("*", "*"))).name))
        if of_parts:
            write_whole(of_file(kept), to_json({path.name: json.loads(path.read_bytes()) for path in of_parts}))
        write_whole(kept, to_json(made.to_dict()))
        for part_kept in run.path.glob(_STATISTICS_OF_PART.format("*", "*")):
            part_kept.unlink()
    elif not checkpoint_steps(run.checkpoints):
        _check_files(config, parts, run)
    found = Normaliser.read(kept)
    if given is not None and (differing := _differing(found, given)):
        raise StatisticsError(
            "; ".join(differing), f"{config.statistics} differs from {kept}, with which the run was started",
            "restore them, or start another run with another --out",
        )  # fmt: skip
    return found


def _check_files(config: PretrainConfig, parts: Sequence[OpenPart], run: RunFolder) -> None:
    """Check that the tiles and files of parts are those that the run's statistics were computed from."""
    beside = of_file(run.path / STATISTICS)
    known = json.loads(beside.read_bytes()) if beside.is_file() else {}  # given statistics have none
    for number, part in enumerate(parts, 1):
        was = known.get(of_file(Path(_STATISTICS_OF_PART.format(number, part.train.name))).name)
        if was is not None and was != sources_of(part.train, num_samples=config.statistics_tiles, seed=config.seed):
            raise StatisticsError(
                f"{part.train.name}{_name_of(config, number - 1)}",
                f"files or their description have changed since {run.path / STATISTICS} was computed from them",
                "restore them, or start another run with another --out",
            )  # fmt: skip


def _given(statistics: str, *, is_needed: bool) -> Normaliser | None:
    """Return the statistics of a file or a preset, or None if it no longer exists and is not needed."""
    try:
        found = find_statistics(statistics)
    except (MissingFileError, UnknownNameError):
        if is_needed:
            raise
        return None
    if found is None:
        raise InputError("--statistics", "a file or a preset", statistics, "leave it out to compute them")
    return found


def _differing(ours: Normaliser, theirs: Normaliser) -> list[str]:
    """Return the datasets and modalities that two normalisers standardise differently."""
    old, new = (
        {(name, key): (one.bands, one.mean, one.std, one.units) for name, table in made.statistics.items()
         for key, one in table.items()}
        for made in (ours, theirs)
    )  # fmt: skip
    return [", ".join(where) for where in dict.fromkeys((*old, *new)) if old.get(where) != new.get(where)]


_STATISTICS_OF_PART = "statistics-{}-{}.json"
"""File of one part's statistics until all parts have theirs: number and dataset."""


def _computed(config: PretrainConfig, number: int, part: OpenPart, run: RunFolder) -> Normaliser:
    """Return the statistics of a part's training tiles, which are stored so that an interrupted run can continue."""
    kept = run.path / _STATISTICS_OF_PART.format(number, part.train.name)
    title = f"statistics of {part.train.name}{_name_of(config, number - 1)}"
    keep_statistics(
        kept, part.train, num_samples=config.statistics_tiles, seed=config.seed,
        workers=max(1, config.engine.num_workers), opened=partial(progress_bar, title),
    )  # fmt: skip
    return Normaliser.read(kept)


def _together(made: Iterable[Normaliser]) -> Normaliser:
    """Join normalisers. Of parts of one dataset, each modality has the statistics of the first part that has it."""
    by_name: dict[str, dict[str, BandStatistics]] = {}
    sources: dict[str, None] = {}
    provenance: dict[str, Mapping[str, Any]] = {}
    for normaliser in made:
        sources[normaliser.source] = None
        for name, table in normaliser.statistics.items():
            by_name[name] = {**table, **by_name.get(name, {})}
            provenance.setdefault(name, normaliser.provenance.get(name, {}))
    return Normaliser(statistics=by_name, source=BETWEEN_SOURCES.join(sources), provenance=provenance)


def _told(run: RunFolder, fitted: Fitted, seconds: float, prepared_s: float) -> str:
    state = "stopped" if fitted.interrupted else "done"
    if fitted.stopped_early:
        state += f" at step {fitted.steps} of {fitted.num_steps}; continue with --resume"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(fitted.metrics.items()) if "loss" in name)
    took = f"{seconds:.0f} s" + (f", including {prepared_s:.0f} s to prepare data" if prepared_s >= 1 else "")
    if together := run.seconds():
        took += f" ({'over ' if 'untimed' in together else ''}{together['all']:.0f} s with earlier sessions)"
    return f"{state}, {took}{': ' + figures if figures else ''}\nencoder: anysat.load({str(run.path)!r})"
