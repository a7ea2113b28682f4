"""What is measured during pretraining: the loss on held-out tiles, and the health of their embeddings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from anysat.batch import Batch, Embeddings, Tile
from anysat.data.loader import Loader, place_among_processes
from anysat.data.mixture import Mixture, Part
from anysat.data.transforms import Augmentation, augment, crop
from anysat.errors import CollapseError
from anysat.model.encoder import CHUNK_ROWS, AnySat
from anysat.model.modes import evaluating
from anysat.probing.health import measure
from anysat.workflows.pretrain.probes import Labelled, band_statistics, scores, vectors_of

if TYPE_CHECKING:
    from anysat.data.base import Target
    from anysat.workflows.pretrain import PretrainConfig
    from anysat.workflows.pretrain.report import ProbeFigure, ReportInput

_VALIDATION_SEED = 7_001
_MAX_SIDE_M = 160.0
"""Held-out tiles are cut to about this side, so that measuring is quick."""
_SHOWN = 4
_PROBES = {
    "linear": "class, by a linear probe",
    "neighbours": "class, by nearest neighbours",
    "retrieval": "patch, found in another modality",
}
"""Titles of the scores in the report's table, by the name of their metric."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """The terms of the loss on held-out tiles, always with the same tiles and masks."""

    every_steps: int
    mixture_parts: tuple[Part, ...]
    steps: int
    """Number of batches, which the processes share."""
    seed: int
    num_workers: int = 0
    """Number of processes that read tiles ahead; 0 reads in this process."""
    name: str = "val"

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:  # noqa: ARG002 - the same at each step
        """Return the means over all batches, which do not depend on the number of processes."""
        rank, world_size = place_among_processes()
        mixture = Mixture(parts=self.mixture_parts, seed=_VALIDATION_SEED)
        found: dict[int, dict[str, float]] = {}
        for draw in Loader(source=mixture, start=rank, stop=max(rank, self.steps), stride=world_size,
                           num_workers=self.num_workers):  # fmt: skip
            generator = torch.Generator().manual_seed(_VALIDATION_SEED + draw.step)
            found[draw.step] = {key: float(value) for key, value in objective(draw, generator).items()}
        every = [found]
        if world_size > 1:
            every = [{}] * world_size
            torch.distributed.all_gather_object(every, found)
        batches = [batch for _, batch in sorted(item for one in every for item in one.items())]
        keys = dict.fromkeys(key for batch in batches for key in batch)
        return {key: float(np.mean([batch[key] for batch in batches if key in batch])) for key in keys}


@dataclass(frozen=True, kw_only=True, eq=False)
class HealthMonitor:
    """Health of the embeddings of held-out tiles, and scores of neighbours and a linear probe on their classes."""

    every_steps: int
    tiles: Any
    """Held-out tiles of one dataset, with the target if there is one."""
    num_tiles: int
    patch_size_m: float
    target: Target | None = None
    stop_on_collapse: bool = False
    name: str = "health"

    def chosen(self) -> list[Tile]:
        """Return tiles spread over the dataset. Large ones are cut."""
        places = np.unique(np.linspace(0, len(self.tiles) - 1, min(self.num_tiles, len(self.tiles))).astype(int))
        return [_cut(self.tiles[int(place)], self.patch_size_m) for place in places]

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:
        """Return figures by name. Every process measures the same tiles.

        Raises:
            CollapseError: There is a problem after step 0, and `stop_on_collapse` is set.
        """
        encoder: AnySat = objective.encoder()  # type: ignore[operator]
        tiles = self.chosen()
        found = embed(encoder, tiles, self.patch_size_m)
        half = embed(encoder, [_half(tile) for tile in tiles], self.patch_size_m)
        health = measure(
            found.patch, valid=found.valid, second=half.patch, tokens=_pairs(encoder, tiles, self.patch_size_m)
        )
        figures = health.figures()
        if self.target is not None and self.target.is_multiclass:
            figures |= scores(Labelled.of(vectors_of(found, self.target), tiles, self.target))
        problems = health.problems()
        if problems and step > 0:
            if self.stop_on_collapse:
                raise CollapseError("; ".join(problems), step=step)
            _warn(step, problems)
        return figures

    def simple(self, rows: int, cols: int) -> Mapping[str, float]:
        """Return the same scores of band statistics in a grid of patches, without a network.

        Empty without a class target.
        """
        if self.target is None or not self.target.is_multiclass:
            return {}
        tiles = self.chosen()
        shape = (1, 1) if self.target.level == "tile" else (rows, cols)
        return scores(Labelled.of(band_statistics(tiles, *shape), tiles, self.target))


def embed(encoder: AnySat, tiles: Sequence[Tile], patch_size_m: float) -> Embeddings:
    """Embed tiles of one size. A tile without a valid value gets NaN."""
    with torch.inference_mode():
        return encoder.encode(Batch.of(tiles), patch_size_m, refuse_empty=False)


def _cut(tile: Tile, patch_size_m: float) -> Tile:
    seen = next(o for o in tile.observations.values())
    for observation in tile.observations.values():
        if not observation.modality.covers_tile:
            seen = observation
    side = min(seen.shape_px) * seen.modality.gsd_m
    wanted = max(1, int(min(side, _MAX_SIDE_M) // patch_size_m)) * patch_size_m
    return tile if side <= wanted else crop(tile, 0.0, 0.0, wanted)


def _half(tile: Tile) -> Tile:
    """Return the tile with a random half of its dates, whose embeddings should be alike."""
    generator = np.random.default_rng(_VALIDATION_SEED)
    return augment(tile, Augmentation(keep_dates_frac=0.5), generator)


def _pairs(encoder: AnySat, tiles: Sequence[Tile], patch_size_m: float) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of tokens of the first modality and each other one, for patches that both observed."""
    with torch.inference_mode():
        inputs, _ = encoder.prepare(Batch.of(tiles), patch_size_m, refuse_empty=False)
        seen = encoder.see(inputs, patch_size_m, chunk_rows=CHUNK_ROWS)
    tiling = [part for key, part in seen.items() if not encoder.config.modality(key).covers_tile]
    pairs = []
    for other in tiling[1:]:
        both = torch.ones(other.patch.shape[:3], dtype=torch.bool, device=other.patch.device)
        for part in (tiling[0], other):
            both = both if part.patch_valid is None else both & part.patch_valid
        pairs.append((tiling[0].patch[both], other.patch[both]))
    return pairs


def _warn(step: int, problems: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        console.print(f"[bold red]possible collapse[/] at step {step}: {problem}", highlight=False)


def report_input(config: PretrainConfig, encoder: AnySat, watched: Sequence[Any], step: int, run: Path) -> ReportInput:
    """Return the content of the report of a run."""
    import yaml

    from anysat.train.metrics import METRICS, read_metrics
    from anysat.workflows.pretrain.report import ReportInput, TileView

    views: list[TileView] = []
    simple: Mapping[str, float] = {}
    is_finite = all(bool(parameter.isfinite().all()) for parameter in encoder.parameters())
    for monitor in watched:
        if isinstance(monitor, HealthMonitor) and is_finite:
            tiles = monitor.chosen()[:_SHOWN]
            with evaluating(encoder):
                found = embed(encoder, tiles, monitor.patch_size_m)
            views = [
                TileView.of(tile, patch.float().cpu().numpy()) for tile, patch in zip(tiles, found.patch, strict=True)
            ]
            simple = monitor.simple(*found.patch.shape[1:3])
    facts = json.loads((run / "facts.json").read_text())
    count = sum(parameter.numel() for parameter in encoder.parameters())
    return ReportInput(
        title=f"Pretraining {run.name}", step=step, num_steps=config.num_steps, tiles=views,
        probes=_probes(read_metrics(run / METRICS) if (run / METRICS).is_file() else {}, simple),
        facts=[("parameters", f"{count:,}"), ("goal", config.objective.goal),
               ("data", ", ".join(dict.fromkeys(part.dataset for part in config.data))),
               *(fact for session in facts.get("sessions", []) for fact in _session_facts(session))],
        config=yaml.safe_dump(config.to_dict(), sort_keys=False),
    )  # fmt: skip


def _probes(
    metrics: Mapping[str, Sequence[tuple[int, float]]], simple: Mapping[str, float]
) -> list[ProbeFigure]:  # fmt: skip
    """Return scores of frozen embeddings at the last measurement and before training, and scores without a network."""
    from anysat.workflows.pretrain.report import ProbeFigure

    found = []
    for name, title in _PROBES.items():
        points, chance = metrics.get(f"health/{name}", []), metrics.get(f"health/{name}_chance", [])
        if points:
            untrained = points[0][1] if points[0][0] == 0 else None
            found.append(ProbeFigure(name=title, ours=points[-1][1], untrained=untrained, simple=simple.get(name),
                                     chance=chance[-1][1] if chance else None))  # fmt: skip
    return found


def _session_facts(session: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the date, command, code and devices of a session."""
    git = session.get("git") or {}
    code = f"{git.get('commit', 'no git checkout')}{', with changes' if git.get('has_changes') else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items())
    return [
        ("session", f"{session.get('date')}: {shlex.join(session.get('command', []))}"),
        ("code", f"{code}; {versions}; on {', '.join(session.get('devices', []))}"),
    ]
