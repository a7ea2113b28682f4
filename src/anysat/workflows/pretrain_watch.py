"""What is watched while an encoder is pretrained: the loss on held-out tiles, and the health of its embeddings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anysat.batch import Batch, Embeddings, Tile
from anysat.data.mixture import Mixture, Part
from anysat.data.transforms import Augmentation, augment, crop
from anysat.errors import CollapseError
from anysat.model.encoder import CHUNK_ROWS, AnySat
from anysat.probing.health import measure
from anysat.probing.neighbours import leave_one_out

if TYPE_CHECKING:
    from anysat.data.base import Target
    from anysat.workflows.pretrain import PretrainConfig
    from anysat.workflows.pretrain_report import ProbeFigure, ReportInput

_VALIDATION_SEED = 7_001
_MAX_SIDE_M = 160.0
"""Larger held-out tiles are cut to about this side, so that a look stays quick."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """The parts of the loss on held-out tiles, with the same tiles and masks each time."""

    every_steps: int
    mixture_parts: tuple[Part, ...]
    steps: int
    """Batches, shared out among the processes."""
    seed: int
    name: str = "val"

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:  # noqa: ARG002 - the same at each step
        """Means over the batches of this process."""
        rank, world_size = _rank()
        mixture = Mixture(parts=self.mixture_parts, seed=_VALIDATION_SEED)
        sums: dict[str, list[float]] = {}
        for number in range(rank, self.steps, world_size):
            draw = mixture.draw(number)
            generator = torch.Generator().manual_seed(_VALIDATION_SEED + number)
            for key, value in objective(draw, generator).items():
                sums.setdefault(key, []).append(float(value))
        return {key: float(np.mean(values)) for key, values in sums.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class HealthMonitor:
    """Health of the embeddings of held-out tiles, and how often neighbours share their class."""

    every_steps: int
    tiles: Any
    """Held-out tiles of one dataset, with the target if there is one."""
    num_tiles: int
    patch_size_m: float
    target: Target | None = None
    stop_on_collapse: bool = False
    name: str = "health"

    def chosen(self) -> list[Tile]:
        """Tiles spread over the dataset, the large ones cut."""
        places = np.unique(np.linspace(0, len(self.tiles) - 1, min(self.num_tiles, len(self.tiles))).astype(int))
        return [_cut(self.tiles[int(place)], self.patch_size_m) for place in places]

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:
        """Figures by name; every process looks at the same tiles.

        Raises:
            CollapseError: there is a problem, the run has begun, and collapses are to end it.
        """
        encoder: AnySat = objective.encoder()  # type: ignore[operator]
        tiles = self.chosen()
        found = embed(encoder, tiles, self.patch_size_m)
        half = embed(encoder, [_half(tile) for tile in tiles], self.patch_size_m)
        health = measure(
            found.patch, valid=found.valid, second=half.patch, tokens=_pairs(encoder, tiles, self.patch_size_m)
        )
        figures = health.figures()
        if self.target is not None:
            figures |= _neighbours(found, tiles, self.target)
        problems = health.problems()
        if problems and step > 0:
            if self.stop_on_collapse:
                raise CollapseError("; ".join(problems), step=step)
            _warn(step, problems)
        return figures


def embed(encoder: AnySat, tiles: Sequence[Tile], patch_size_m: float) -> Embeddings:
    """Embeddings of tiles of one size."""
    with torch.inference_mode():
        return encoder.encode(Batch.of(tiles), patch_size_m)


def _cut(tile: Tile, patch_size_m: float) -> Tile:
    seen = next(o for o in tile.observations.values())
    for observation in tile.observations.values():
        if not observation.modality.covers_tile:
            seen = observation
    side = min(seen.shape_px) * seen.modality.gsd_m
    wanted = max(1, int(_MAX_SIDE_M // patch_size_m)) * patch_size_m
    return tile if side <= wanted else crop(tile, 0.0, 0.0, wanted)


def _half(tile: Tile) -> Tile:
    """The tile with half of its dates, drawn: another look at it, which should say the same."""
    generator = np.random.default_rng(_VALIDATION_SEED)
    return augment(tile, Augmentation(keep_dates_frac=0.5), generator)


def _pairs(encoder: AnySat, tiles: Sequence[Tile], patch_size_m: float) -> list[tuple[Tensor, Tensor]]:
    """Tokens of the first modality beside those of each other, of the patches both saw."""
    with torch.inference_mode():
        inputs, _ = encoder.prepare(Batch.of(tiles), patch_size_m)
        seen = encoder.see(inputs, patch_size_m, chunk_rows=CHUNK_ROWS)
    tiling = [part for key, part in seen.items() if not encoder.config.modality(key).covers_tile]
    pairs = []
    for other in tiling[1:]:
        both = torch.ones(other.patch.shape[:3], dtype=torch.bool, device=other.patch.device)
        for part in (tiling[0], other):
            both = both if part.patch_valid is None else both & part.patch_valid
        pairs.append((tiling[0].patch[both], other.patch[both]))
    return pairs


def _neighbours(found: Embeddings, tiles: Sequence[Tile], target: Target) -> dict[str, float]:
    """Leave-one-tile-out accuracy of the classes of patches, or of tiles."""
    if target.kind != "class":
        return {}
    if target.level == "tile":
        features, labels = found.tile, np.array([int(tile.targets[target.name]) for tile in tiles])
        groups = np.arange(len(tiles))
    else:
        rows, cols = found.patch.shape[1:3]
        maps = np.stack([_majority(tile.targets[target.name], rows, cols, len(target.classes)) for tile in tiles])
        labels, features = maps.ravel(), found.patch.flatten(0, 2)
        groups = np.arange(len(tiles)).repeat(rows * cols)
    known = (labels >= 0) & features.isfinite().all(-1).cpu().numpy()
    if len(np.unique(groups[known])) < 2 or len(np.unique(labels[known])) < 2:
        return {}
    score = leave_one_out(
        features[torch.from_numpy(known)], torch.from_numpy(labels[known]), groups=torch.from_numpy(groups[known])
    )
    return {"neighbours": score.balanced_accuracy, "neighbours_chance": score.chance}


def _majority(raster: NDArray[Any], rows: int, cols: int, num_classes: int) -> NDArray[np.int64]:
    """The commonest class of each patch (row col), -1 where there is none."""
    height, width = (length // count for length, count in zip(raster.shape, (rows, cols), strict=True))
    cut = raster[: rows * height, : cols * width].reshape(rows, height, cols, width)
    counts = np.stack([(cut == number).sum((1, 3)) for number in range(num_classes)])
    return np.where(counts.any(0), counts.argmax(0), -1)


def _rank() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _warn(step: int, problems: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        console.print(f"[bold red]collapse?[/] step {step}: {problem}", highlight=False)


def report_input(config: PretrainConfig, encoder: AnySat, watched: Sequence[Any], step: int, run: Path) -> ReportInput:
    """What the report shows of a run."""
    import yaml

    from anysat.train.metrics import METRICS, read_metrics
    from anysat.workflows.pretrain_report import ReportInput, TileView

    views: list[TileView] = []
    for monitor in watched:
        if isinstance(monitor, HealthMonitor):
            tiles = monitor.chosen()[:_SHOWN]
            was_training = encoder.training
            found = embed(encoder.eval(), tiles, monitor.patch_size_m)
            encoder.train(was_training)
            views = [
                TileView.of(tile, patch.float().cpu().numpy()) for tile, patch in zip(tiles, found.patch, strict=True)
            ]
    facts = json.loads((run / "facts.json").read_text())
    count = sum(parameter.numel() for parameter in encoder.parameters())
    return ReportInput(
        title=f"Pretraining {run.name}", step=step, num_steps=config.num_steps, tiles=views,
        probes=_probes(read_metrics(run / METRICS) if (run / METRICS).is_file() else {}),
        facts=[("parameters", f"{count:,}"), ("goal", config.objective.goal),
               ("data", ", ".join(dict.fromkeys(part.dataset for part in config.data))),
               *(fact for session in facts.get("sessions", []) for fact in _session_facts(session))],
        config=yaml.safe_dump(config.to_dict(), sort_keys=False),
    )  # fmt: skip


def _probes(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> list[ProbeFigure]:
    """What was measured without a probe's training, at the last look and at step 0, when nothing was learnt yet."""
    from anysat.workflows.pretrain_report import ProbeFigure

    found = []
    for name, title in (("neighbours", "class of the neighbours"), ("retrieval", "patch found in another modality")):
        points, chance = metrics.get(f"health/{name}", []), metrics.get(f"health/{name}_chance", [])
        if points:
            untrained = points[0][1] if points[0][0] == 0 else None
            found.append(ProbeFigure(name=title, ours=points[-1][1], untrained=untrained,
                                     chance=chance[-1][1] if chance else None))  # fmt: skip
    return found


def _session_facts(session: Mapping[str, Any]) -> list[tuple[str, str]]:
    """When, with what words and which code a part of the run was made."""
    git = session.get("git") or {}
    code = f"{git.get('commit', 'no git checkout')}{', with changes' if git.get('has_changes') else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items())
    return [
        ("session", f"{session.get('date')}: {shlex.join(session.get('command', []))}"),
        ("code", f"{code}; {versions}; on {', '.join(session.get('devices', []))}"),
    ]
