"""Scoring a run again: its own data, on any split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from anysat.data.open import open_dataset
from anysat.data.work import fingerprint, to_json
from anysat.errors import InputError, MissingFileError
from anysat.model.precision import find_device, find_precision
from anysat.tasks.crops import score_crops
from anysat.tasks.finetune import score
from anysat.tasks.heads import NeighbourHead
from anysat.tasks.predictor import load_task
from anysat.train.run import CONFIG
from anysat.whole_files import write_output
from anysat.workflows.answer import Answer
from anysat.workflows.evaluate import EvaluateConfig
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.ground_blocks import over_blocks, unit_of
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.config import LabelledData, SupervisedConfig
from anysat.workflows.supervised.data import open_data, place_of
from anysat.workflows.supervised.folds import FOLDS, intervals_of, spread_of
from anysat.workflows.supervised.parts import all_versions, described, known_weights
from anysat.workflows.supervised.sheets import class_table, class_table_of
from anysat.workflows.supervised.text import paper_line, score_lines, spread_lines, tiles_told


def evaluate_run(config: EvaluateConfig) -> Answer:
    """Score a run, see `evaluate`."""
    run = Path(config.run)
    if not (run / FOLDS).is_file():
        content, lines = _scored(config, run)
    else:
        parent = json.loads((run / FOLDS).read_text())
        folds = {name: _scored(config, run / name)[0] for name in parent["folds"]}
        figures = spread_of([one["scores"]["figures"] for one in folds.values()])
        scored = {
            name: {"data": {
                "train": parent["folds"][name]["data"]["train"],
                "test": {"tiles": one["scores"]["num_tiles"], "fingerprint": one["data"]},
            }}
            for name, one in folds.items()
        }  # fmt: skip
        content = {
            "run": str(run), "split": config.split, "target": parent["target"], "figures": figures,
            "intervals": intervals_of(figures, scored), "folds": folds,
            "seeds": sorted({one["seed"] for one in folds.values()}),
        }  # fmt: skip
        split = None if config.split == "test" else config.split
        paper = paper_line(_kind(parent["config"]), parent["config"], split, config.crop_m)
        lines = [*spread_lines(content), *paper]
    if config.out is not None:
        write_output(Path(config.out), to_json(content))
        if "classes" in content and (table := class_table(content["scores"], content["classes"])) is not None:
            write_output(class_table_of(Path(config.out)), table)
    return Answer("\n".join(lines))


def _tiles(split: str, data: LabelledData, seed: int) -> tuple[str, Any]:
    """Return a name and the tiles: those a run was trained or validated on, or those of another split."""
    if split in ("train", "val") or (split == "test" and data.fold is not None):
        found = open_data(data, seed)
        names = {"train": data.train, "val": found.selected_on, "test": data.test}
        return names[split], found.splits[split]
    root, _ = place_of(data)
    split = data.test if split == "test" else split
    return split, open_dataset(data.dataset, root, split, modalities=data.modalities, targets=(str(data.target),))


def _scored(config: EvaluateConfig, run: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the scores of one run, and lines about them."""
    predictor = load_task(run, device=find_device(config.device))
    precision = find_precision(config.precision, predictor.device)
    kept = run / CONFIG
    if not kept.is_file():
        raise MissingFileError(kept, "the options the run was made with; give the run folder, not its predictor file")
    options = yaml.safe_load(kept.read_text("utf-8"))
    data = LabelledData(**options["data"])
    data = data if config.data.root is None else replace(data, root=config.data.root)
    data = replace(data, target=predictor.task.target.name)
    split, tiles = _tiles(config.split, data, int(options["seed"]))
    if not len(tiles):
        raise InputError(f"{data.dataset}, split {split}", "at least one tile", "none")
    if isinstance(predictor.head, NeighbourHead) and config.split not in ("val", "test"):
        _check_not_own(config.split, tiles, open_data(data, int(options["seed"])).train)
    places: list[tuple[float, float]] = []
    with progress_bar(f"scores of {split}", len(tiles)) as advance:
        if config.crop_m is None:
            found = score(predictor, tiles, config.batch_size, advance=advance, places=places, precision=precision,
                          num_workers=config.num_workers)  # fmt: skip
        else:
            found = score_crops(predictor, tiles, config.crop_m, advance=advance, precision=precision, places=places)
    sheet = described(over_blocks(found, places, tiles, config.block_km), unit_of(config.block_km))
    content: dict[str, Any] = {
        "run": str(run), "split": split, "crop_m": config.crop_m, "precision": precision, "scores": sheet,
        "classes": list(predictor.task.target.classes),
        "selected_on": predictor.provenance.get("selected_on"), "seed": predictor.provenance.get("seed"),
        "weights": known_weights(predictor.encoder), "data": fingerprint(tiles), "config": options,
        "versions": all_versions(),
    }  # fmt: skip
    head = (
        f"{predictor.task.target.name} in {tiles_told(sheet, f'tiles of {split}')}, chosen on {content['selected_on']}"
    )
    return content, [head, *score_lines(sheet, _kind(options), options, split, config.crop_m)]


def _check_not_own(split: str, tiles: Any, train: Any) -> None:
    """Check that no tile is a training tile of nearest neighbours, whose nearest neighbour is the tile itself.

    Raises:
        InputError: Some are.
    """
    own = set(tiles.ids) & set(train.ids)
    if own:
        raise InputError(
            f"--split {split}", "tiles that are not among the nearest neighbours",
            f"{len(own)} of {len(tiles)} that are, each its own neighbour",
            "name a split without training tiles, such as val or test",
        )  # fmt: skip


def _kind(options: Mapping[str, Any]) -> type[SupervisedConfig]:
    """Return the kind of options of a run."""
    return FinetuneConfig if "trained" in options else ProbeConfig
