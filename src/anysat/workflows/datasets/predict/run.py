"""Implementation of `anysat datasets predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.text import Text

from anysat.batch import Batch
from anysat.data.base import DatasetRecord, Target
from anysat.data.mixture import OrderedPass, sides_m
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import InputError, RecordError, SourceError, WriteError, some
from anysat.geo.stores.classes import counted_lines
from anysat.geo.write.outputs import OUTPUTS, Result, check_output
from anysat.geo.write.writers import check_apart, check_free, staged
from anysat.model.digest import made_by
from anysat.model.precision import find_device, find_precision
from anysat.tasks.predictor import Predictor, each_batch, load_task
from anysat.workflows.answer import Answer
from anysat.workflows.datasets.predict import TilesConfig
from anysat.workflows.kept import CONFIG_FILE, check_alone
from anysat.workflows.predict import check_probabilities, told_not_given
from anysat.workflows.progress import progress_bar
from anysat.workflows.tile_tables.answers import Answers
from anysat.workflows.tile_tables.columns import counts_line, dataset_facts, unseen_lines

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

_UNREAD = "--labels false predicts without reading labels"
_NOT_STATED = "not stated"
_PARTS = ("level", "kind", "unit", "gsd_m")
"""Properties of a target in which labels and predictions must agree, besides the classes."""


def run_predict_dataset(config: TilesConfig) -> Answer:
    """Predict a dataset, see `predict_dataset`."""
    out, record = Path(config.out), find_dataset(config.name)
    check_free([out], overwrite=config.overwrite)
    check_alone(Path(config.run))
    predictor = load_task(config.run, device=find_device(config.device))
    target = predictor.task.target
    _check_out(config, target)
    own = _labels_of(record, target) if config.labels else None
    keys = _modalities(record, predictor)
    tiles = open_dataset(config.name, config.path, config.split, modalities=keys,
                         targets=() if own is None else (own.name,))  # fmt: skip
    if not len(tiles):
        raise InputError(f"{record.name}, split {config.split}", "at least one tile", "none")
    asked = _scored_in(Path(config.run)) if config.precision is None else config.precision
    precision = find_precision(asked, predictor.device)
    facts = _facts(config, predictor, tiles) | {"precision": precision}
    answers = Answers(predictor, tiles, own, facts, with_probabilities=config.probabilities)
    with (
        staged([out], overwrite=config.overwrite) as folder,
        answers.open(folder / out.name),
        progress_bar(f"predictions of {tiles.name}", len(tiles)) as advance,
    ):

        def take(batch: Batch, outputs: Any) -> None:
            answers.add(batch, outputs)
            advance(len(batch))

        each_batch(predictor, _read(config, tiles, predictor), take, precision)
    nothing = "null in the table" if target.level == "tile" else "NoData in their rasters"
    told = [
        counts_line(tiles),
        f"statistics: those of the run, {facts['statistics']}",
        *told_not_given(predictor.view.modalities, tiles.modalities),
        *_described_lines(record, predictor, tiles.modalities),
        *(counted_lines(target.classes, target.codes) if target.is_multiclass else []),
        *_side_lines(predictor, sides_m(tiles)),
        f"{answers.told()}, computed in {precision}",
        _labels_line(config, own, target, answers),
        *unseen_lines(answers.unseen, nothing, predictor.view.dense or ""),
        f"wrote {out}: {answers.written()}",
    ]
    return Answer(Text("\n".join(told)))


def _side_lines(predictor: Predictor, sides: Sequence[float]) -> list[str]:
    """Return a warning if tiles are answered as a whole and are not of the size that the predictor was trained on."""
    side_m, others = predictor.tile_m, [f"{side:g}" for side in sides if side != predictor.tile_m]
    if predictor.task.target.level != "tile" or side_m is None or not others:
        return []
    return [f"check: one answer per tile of {' or '.join(others)} m; the run was trained on tiles of {side_m:g} m"]


def _check_out(config: TilesConfig, target: Target) -> None:
    """Check that the output is of the kind that the target needs, and not among the inputs.

    Raises:
        RecordError: It is not, or probabilities are requested where this has no effect.
    """
    out = Path(config.out)
    if target.level == "tile":
        check_output("--out", config.out, Result.TILES, because=f", because {target.name!r} is per tile")
        if config.probabilities:
            raise RecordError(
                "--probabilities", True, f"false, because {target.name!r} is per tile: its table has them"
            )
    elif out.suffix in OUTPUTS:
        raise RecordError("--out", config.out, f"a folder, because {target.name!r} is per pixel: a raster per tile")
    check_probabilities(config.probabilities, target)
    check_apart([out], [config.run])
    final, data = out.absolute().resolve(), Path(config.path).absolute().resolve()
    if final == data or final in data.parents or (out.exists() and data in final.parents):
        raise RecordError("--out", config.out, f"a path other than that of an input ({config.path})")


def _labels_of(record: DatasetRecord, target: Target) -> Target | None:
    """Return the dataset's target of the same name as the run's, None if it has none.

    Raises:
        InputError: The labels of this name have another meaning, or classes that the run does not know.
    """
    own = next((one for one in record.targets if one.name == target.name), None)
    if own is None:
        return None
    where = f"target {target.name!r} of {record.name}"
    for part in _PARTS:
        if getattr(own, part) != getattr(target, part):
            raise InputError(
                where, f"{part} {getattr(target, part)!r}, as in training", repr(getattr(own, part)), _UNREAD
            )
    if new := [name for name in own.classes if name not in target.classes]:
        raise InputError(
            where, f"classes that the run knows: {', '.join(target.classes)}", f"also {some(new)}", _UNREAD
        )
    return own


def _modalities(record: DatasetRecord, predictor: Predictor) -> list[str]:
    """Return the keys of the modalities that the run uses and the dataset has.

    Raises:
        InputError: There is none, or the modality of the run's dense embeddings is missing.
    """
    view = predictor.view
    keys = [key for key in view.modalities if key in record.modalities]
    if keys and (view.dense is None or view.dense in keys):
        return keys
    wanted = f"the modality {view.dense}, whose sub-patches the run predicts" if keys else "one of its modalities"
    raise InputError(record.name, f"{wanted} (the run was trained on {', '.join(view.modalities)})",
                     ", ".join(record.modalities))  # fmt: skip


def _scored_in(run: Path) -> str:
    """Return the type of the matrix products that a run was scored with; float32 if its options are not available."""
    kept = (run if run.is_dir() else run.parent) / CONFIG_FILE
    options = yaml.safe_load(kept.read_text("utf-8")) if kept.is_file() else {}
    if "engine" in options:  # a fine-tuning run
        return "bf16" if options["engine"].get("precision") == "bf16" else "float32"
    return str(options.get("precision", "float32"))


def _read(config: TilesConfig, tiles: TileDataset, predictor: Predictor) -> Iterator[Batch]:
    """Yield batches of the tiles in order.

    Raises:
        SourceError: A file cannot be read. The message says what to do if labels are missing.
    """
    reading = OrderedPass(tiles=tiles, batch_size=config.batch_size, patch_size_m=predictor.view.patch_sizes_m[0])
    try:
        for draw in reading.loader(num_workers=config.num_workers):
            yield draw.batch
    except WriteError:
        raise
    except (SourceError, OSError) as error:  # errors of the input, not of the output
        raise SourceError(
            config.path, str(error), f"if labels are missing, {_UNREAD}" if tiles.targets else ""
        ) from error


def _facts(config: TilesConfig, predictor: Predictor, tiles: TileDataset) -> dict[str, Any]:
    """Return the metadata of the files."""
    encoder, target = predictor.encoder, predictor.task.target
    return {
        **made_by(encoder), "run": config.run, "target": target.name, "unit": target.unit,
        "classes": list(target.classes),
        "statistics": "none" if encoder.normaliser is None else encoder.normaliser.source,
        "patch_sizes_m": list(predictor.view.patch_sizes_m), "day_convention": encoder.config.day_convention,
        "dataset": dataset_facts(tiles, config.split),
    }  # fmt: skip


def _described_lines(record: DatasetRecord, predictor: Predictor, keys: Sequence[str]) -> Iterator[str]:
    """Yield a line for each difference between the descriptions of these data and of the training data."""
    for key in keys if record.is_own else ():
        if key not in predictor.sources:  # registered data, or a table of series
            continue
        ours: Mapping[str, Any] = record.sources.get(key, {})
        theirs = predictor.sources[key]
        for name in sorted({*ours, *theirs}):
            now, then = (json.loads(json.dumps(said.get(name), default=str)) for said in (ours, theirs))
            if now != then:
                stated = [_NOT_STATED if said is None else said for said in (now, then)]
                yield f"{key}: {name} is {stated[0]} here, and {stated[1]} for the training data"


def _labels_line(config: TilesConfig, own: Target | None, target: Target, answers: Answers) -> str:
    if not config.labels:
        return "labels: not read"
    if own is None:
        return f"labels: none, because the dataset has no target {target.name!r}"
    return f"labels: {own.name}, of {answers.num_labelled:,} of {len(answers):,} tiles"
