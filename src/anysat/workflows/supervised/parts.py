"""Shared parts of probes and fine-tuning: encoder with statistics, view, task, and the record of the result."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from anysat.data.base import DatasetRecord, Target
from anysat.data.kept_statistics import keep_statistics
from anysat.data.mixture import sides_m
from anysat.data.work import fingerprint, to_json, versions
from anysat.errors import InputError, UnknownNameError
from anysat.geo.stores.fingerprints import differing
from anysat.modalities import MODALITIES, Modality, find_modality
from anysat.model.checkpoint import find_statistics
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.model.weight_files import PREDICTOR_FILE
from anysat.normalise import Normaliser
from anysat.picture_samples import with_colours
from anysat.tasks.base import Task, labelled, make_task, task_class
from anysat.tasks.predictor import Predictor, View
from anysat.tasks.probe import nothing_seen
from anysat.tasks.scores import Scores
from anysat.train.run import BEGUN_WITH, STATISTICS, RunFolder, wait_for
from anysat.whole_files import write_whole
from anysat.workflows.ground_blocks import Places, over_blocks, unit_of
from anysat.workflows.progress import progress_bar, say
from anysat.workflows.supervised.config import SupervisedConfig
from anysat.workflows.supervised.data import OpenData
from anysat.workflows.supervised.sheets import SCORES, write_scores
from anysat.workflows.supervised.text import summary

MOST_STATISTICS_TILES = 2000
COMPUTED = "computed from the training split"
"""Where statistics come from if none were known."""


class Standard(Protocol):
    """Data that statistics are looked up for or computed from, such as labelled data."""

    @property
    def record(self) -> DatasetRecord:
        """Record of the dataset."""

    @property
    def train(self) -> Any:
        """Training tiles."""

    @property
    def normaliser(self) -> Normaliser | None:
        """Statistics that came with the data, or None."""


def with_statistics(
    encoder: AnySat, data: Standard, asked: str | None, modalities: Sequence[str], run: Path, seed: int, *,
    is_writer: bool = True, are_used: bool = False,
) -> str:  # fmt: skip
    """Give an encoder the statistics of a dataset, and return where they come from.

    They are those asked for, else the encoder's own for this dataset, else those that came with the data, else computed
    from the training split and stored in the folder `run`. Of several processes, the writer computes them. Stored
    statistics are computed again if the tiles, their files or their description have changed, unless `are_used` is set
    because something was trained with them.
    """
    found, whose = _statistics(encoder, data, asked, modalities, run, seed, is_writer, are_used)
    name = data.record.name
    of = name if name in found.statistics else None
    encoder.normaliser = replace(found, statistics={name: found.table(of)}, source=found.source_of(of))
    return whose


def _statistics(
    encoder: AnySat, data: Standard, asked: str | None, modalities: Sequence[str], run: Path, seed: int,
    is_writer: bool, are_used: bool,
) -> tuple[Normaliser, str]:  # fmt: skip
    name, own = data.record.name, encoder.normaliser
    if asked is not None:
        found = find_statistics(asked)
        if found is None:
            raise InputError("--statistics", "a file or a preset", asked, "leave it out to compute them")
        return found, f"given: {asked}"
    if own is not None and name in own.statistics and set(modalities) <= set(own.statistics[name]):
        return own, f"the weights' own for {name}"
    if data.normaliser is not None:
        return data.normaliser, "of the data, made with them"
    kept = run / STATISTICS
    if not is_writer:
        wait_for(kept)
    elif not (are_used and kept.is_file()):
        count = min(len(data.train), MOST_STATISTICS_TILES)
        keep_statistics(kept, data.train, num_samples=count, seed=seed,
                        opened=partial(progress_bar, f"statistics of {name}"))  # fmt: skip
    return Normaliser.read(kept), COMPUTED


def check_begun(run: RunFolder, weights: str | None, normaliser: Normaliser | None) -> None:
    """Store digests of what a run starts with, and check that a resumed run uses the same weights and statistics.

    Args:
        run: The run.
        weights: Digest of the weights that were loaded; None for random ones.
        normaliser: Statistics that the input is standardised with.

    Raises:
        InputError: Weights or statistics differ from those that the run was started with.
    """
    table = b"" if normaliser is None else to_json(normaliser.to_dict()["statistics"])
    found = {"weights": weights, "statistics": hashlib.sha256(table).hexdigest()}
    path = run.path / BEGUN_WITH
    if path.is_file():
        kept = json.loads(path.read_text())
        for name, (was, now) in differing(kept, found).items():
            raise InputError(
                f"{run.path}, {name}", f"those that the run was started with (digest {str(was)[:12]}…)",
                f"others ({str(now)[:12]}…)",
                "restore the file, or start another run with another --out",
            )  # fmt: skip
    elif run.is_writer:
        write_whole(path, to_json(found))


def extended(
    encoder: AnySat, modalities: Sequence[str], sensors: Mapping[str, Modality]
) -> tuple[AnySat, list[str]]:  # fmt: skip
    """Return an encoder with new projectors for modalities that it lacks, and their keys. All else stays the same.

    `sensors` are the dataset's own records, by key; other records come from the table of the package.

    Raises:
        UnknownNameError: A modality has no record.
    """
    known, table = {modality.key for modality in encoder.config.modalities}, {**MODALITIES, **sensors}
    new = [key for key in modalities if key not in known]
    if not new:
        return encoder, []
    added = (*encoder.config.modalities, *(find_modality(key, table.values()) for key in new))
    made = AnySat(replace(encoder.config, modalities=added), normaliser=encoder.normaliser)
    for key in new:  # all other weights stay; strict loading reports any that are missing
        encoder.projectors[key] = made.projectors[key]
    made.load_state_dict(encoder.state_dict())
    made.provenance = {**encoder.provenance, "new_projectors": ", ".join(new)}
    return made, new


def number_days(encoder: AnySat, record: DatasetRecord, asked: str | None) -> None:
    """Set how the encoder numbers days: as asked for, else as its weights do, with a warning if the dataset differs.

    The convention becomes part of the encoder's configuration.

    Raises:
        RecordError: There is no such convention.
    """
    own = encoder.config.day_convention
    if asked is not None:
        encoder.config = replace(encoder.config, day_convention=asked)
    elif own != record.day_convention:
        warnings.warn(
            f"{record.title} numbers days by {record.day_convention!r}, these weights by {own!r}, which is used. "
            "That is right if they were trained so on these data, as `anysat pretrain` does. Published weights were "
            f"trained with the convention of the dataset: give --day-convention {record.day_convention!r}",
            stacklevel=2,
        )


def make_view(
    encoder: AnySat, record: DatasetRecord, target: Target, *, modalities: Sequence[str],
    patch_sizes_m: Sequence[float], dense: str | None, needs_dense: bool,
    held: Callable[[], Mapping[str, float]] = dict,
) -> View:  # fmt: skip
    """Return how the encoder views the dataset's tiles.

    Args:
        encoder: An encoder that has the modalities.
        record: Record of the dataset.
        target: What is predicted.
        modalities: Keys of the modalities to use.
        patch_sizes_m: Patch sizes in metres; if empty, the first one of the dataset, which is told on stderr.
        dense: Modality whose sub-patches a head for pixels uses; None chooses one.
        needs_dense: Whether the head uses sub-patches.
        held: Returns the fraction of tiles with a valid value of each modality. Called only to choose between several;
            an empty result means all tiles.

    Raises:
        UnknownNameError: The encoder does not have a modality.
        InputError: No patch size is given, and the dataset recommends none.
        RecordError: The dataset's own record of a modality differs from the encoder's.
    """
    known = {modality.key: modality for modality in encoder.config.modalities}
    for key in modalities:
        if key not in known:
            raise UnknownNameError(
                "modality of the weights",
                key,
                known,
                "select modalities with --data.modalities; `anysat finetune` can train projectors for new ones",
            )
        known[key].check_same(record.sensors.get(key, known[key]))
    sizes = tuple(patch_sizes_m) or record.patch_sizes_m[:1]
    if not sizes:
        raise InputError("--patch-sizes-m", "a patch size in metres", "none, and the dataset recommends none")
    if not patch_sizes_m:
        others = " ".join(f"{size:g}" for size in sorted(record.patch_sizes_m[1:]))
        say(f"patches: {sizes[0]:g} m (default" + (f"; others that fit: {others})" if others else ")"))
    if needs_dense and dense is None:
        dense = _finest([known[key] for key in modalities], target, held)
    return View(patch_sizes_m=sizes, modalities=tuple(modalities), dense=dense if needs_dense else None)


_OFTEN_ENOUGH, _AS_OFTEN = 0.5, 0.1
"""Smallest share of tiles a dense modality must be in, relative to the most frequent one; and the difference of shares
that still counts as equal, because clouds hide a few tiles."""


def _finest(modalities: Sequence[Modality], target: Target, held: Callable[[], Mapping[str, float]]) -> str:
    """Return the modality with the finest sub-patches that are not finer than the target's pixels, if there is one.

    Modalities in fewer than half as many tiles as another do not count. Of equally fine ones, the first of those in the
    most tiles is chosen.
    """
    tiling = sorted((m for m in modalities if not m.covers_tile), key=lambda m: m.subpatch_m)
    if not tiling:
        raise InputError("--dense", "a modality whose pixels lie in patches", [m.key for m in modalities])
    share = {m.key: 1.0 for m in tiling}
    if len(tiling) > 1 and (found := held()):
        share = {key: found.get(key, 0.0) for key in share}
    often = [m for m in tiling if share[m.key] >= _OFTEN_ENOUGH * max(share.values())]
    coarse = [m for m in often if target.gsd_m is not None and m.subpatch_m >= target.gsd_m]
    as_fine = [m for m in often if m.subpatch_m == (coarse or often)[0].subpatch_m]
    most = max(share[m.key] for m in as_fine)
    return next(m.key for m in as_fine if share[m.key] >= most - _AS_OFTEN)


def check_seen(data: OpenData, dense: str | None) -> None:
    """Check that a training tile has both a label and a valid value of the modality that pixels are predicted from.

    Tiles are read up to the first that has both.

    Raises:
        InputError: No tile has. The message names the modality.
    """
    if dense is None or not len(data.train):
        return
    for tile in (data.train[number] for number in range(len(data.train))):
        seen, truth = tile.observations.get(dense), torch.as_tensor(tile.targets[data.target.name])
        if seen is not None and seen.valid.any() and bool(labelled(data.target, truth).any()):
            return
    raise nothing_seen(data.target, dense)


def fitted_task(
    target: Target, truth: Tensor, balanced: bool, *, void_output: bool = False, monitor: str | None = None,
    is_sample: bool = False,
) -> Task:  # fmt: skip
    """Create the task of a target with its colours, and what it learns from the training labels, see `Task.learned`.

    Raises:
        InputError: There are too few labels, or an option does not apply to this target.
    """
    target, made = with_colours(target) if target.classes else target, task_class(target.kind)
    if void_output and not hasattr(made, "void_output"):
        raise InputError("--void-output", "a target of classes", f"{target.name!r}, {target.kind}")
    if balanced and not hasattr(made, "class_weights"):
        raise InputError("--class-weights", "none for a target of values", "balanced")
    options: dict[str, Any] = {"monitor": monitor} | ({"void_output": True} if void_output else {})
    return make_task(target, options | made.learned(target, truth, balanced=balanced, is_sample=is_sample))


def result(
    command: str, config: Mapping[str, Any], data: OpenData, predictor: Predictor, scores: Mapping[str, Scores],
    selection: Mapping[str, Any], facts: Mapping[str, Any], places: Mapping[str, Places],
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a result as plain values. Intervals are over tiles, or over blocks of `block_km`.

    `places` are longitude and latitude of each tile's centre, by split.
    """
    km = config["block_km"]
    return {
        "command": command,
        "scores": {
            split: described(over_blocks(found, places[split], data.splits[split], km), unit_of(km))
            for split, found in scores.items()
        },
        "primary": predictor.task.primary,
        "selected_on": data.selected_on,
        "selection": dict(selection),
        "target": predictor.task.target.name,
        "classes": list(predictor.task.target.classes),
        "head": predictor.head_config.name,
        "dense": predictor.view.dense,
        "patch_sizes_m": list(predictor.view.patch_sizes_m),
        "head_parameters": sum(p.numel() for p in predictor.head.parameters()),
        "encoder_parameters": sum(p.numel() for p in predictor.encoder.parameters()),
        "weights": known_weights(predictor.encoder),
        "data": {
            split: {"tiles": len(tiles), "fingerprint": fingerprint(tiles)} for split, tiles in data.splits.items()
        },
        "config": dict(config),
        "versions": all_versions(),
        **facts,
    }


def finish(run: Path, config: SupervisedConfig, data: OpenData, predictor: Predictor, found: Mapping[str, Any]) -> str:
    """Write predictor, scores and, if wanted, the report into the run folder, and return a summary.

    Args:
        run: The run folder.
        config: Options of the run.
        data: The data of the run.
        predictor: The predictor of the run. Its file will tell of its training.
        found: The record of the result, see `result`.
    """
    predictor.provenance = {name: found[name] for name in ("selected_on", "selection", "scores", "data", "seed")}
    predictor.sources = dict(data.record.sources)
    sides = sides_m(data.train)
    predictor.tile_m = sides[0] if len(sides) == 1 else None
    predictor.save(run / PREDICTOR_FILE)
    write_scores(run, found)
    told = summary(json.loads((run / SCORES).read_text()), run, type(config))
    if config.report:
        from anysat.workflows.supervised.report import write_report

        told += f"\nreport: {write_report(run, found, data, predictor)}"
    return told


def described(found: Scores, unit: str = "tiles") -> dict[str, Any]:
    """Return scores as plain values with the intervals of all of them, which are over tiles or another unit."""
    figures, classes = found.intervals()
    return found.to_dict() | {
        "intervals_over": unit,
        "num_intervals_over": found.num_groups,
        "intervals": {name: _plain(one) for name, one in figures.items() if not math.isnan(found.figures[name])},
        "class_intervals": {name: [_plain(one) for one in each] for name, each in classes.items()},
    }


def _plain(bounds: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(edge) else edge for edge in bounds]


def known_weights(encoder: AnySat) -> dict[str, Any]:
    """Return where weights come from, and a digest of configuration and values, without statistics."""
    return {**encoder.provenance, "sha256": digest(encoder)}


def all_versions() -> dict[str, str]:
    """Return the versions of the packages that scores depend on."""
    return versions() | {"torch": str(torch.__version__), "scikit-learn": version("scikit-learn")}
