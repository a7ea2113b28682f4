"""The model that ships: its weights, from a run of the preset `nano`, its scores, and its card.

make nano                                        # all of it, about an hour of one core
python benchmarks/pretraining_nano.py runs/nano  # from a finished run
python benchmarks/pretraining_nano.py probe      # scores of the model that ships, and the card
python benchmarks/pretraining_nano.py card       # the card again, from the weights and the record
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from string import Template
from typing import Any

import torch
from pretraining_probe import probe_world, record
from pretraining_world import TASKS, world_set

import anysat
from anysat.model.checkpoint import SHIPPED, save
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.probing.health import problems
from anysat.workflows.pretrain import PretrainConfig
from anysat.workflows.pretrain.objective import new_encoder
from anysat.workflows.pretrain.presets import nano
from anysat.workflows.pretrain.run import monitors, open_part
from anysat.workflows.pretrain.watch import HealthMonitor

PATCH_SIZE_M = 20.0
WEIGHTS = SHIPPED["nano"]
RECORD = Path(__file__).parents[1] / "docs" / "experiments" / "pretraining" / "nano.json"
CARD = Path(__file__).with_name("nano_card.md")
LICENCE = "MIT"


def ship(run: Path) -> None:
    """Write the encoder of a run as the package's, in bfloat16."""
    model = load(run, dtype=torch.bfloat16)
    model.provenance = {**model.provenance, "licence": LICENCE, "name": "nano"}
    save(model, WEIGHTS)


def measured(cache: Path | None) -> None:
    """Probe the file that ships, in float32, beside the untrained network of its run, and check for collapse."""
    model, config = anysat.load("nano").requires_grad_(False), nano()
    scores = probe_world(model, world_set(cache), PATCH_SIZE_M, twin_seed=config.seed, cache=cache,
                         twin=new_encoder(config.model, config.seed))  # fmt: skip
    about = {
        "preset": "nano",
        "steps": config.num_steps,
        "seed": config.seed,
        "sha256": digest_of(WEIGHTS),
        "detector": {str(config.num_steps): looked_at(model, config)},
    }
    made = record("world", "nano", about, model, PATCH_SIZE_M, config.seed, scores)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(made, indent=1) + "\n")


def looked_at(model: AnySat, config: PretrainConfig) -> list[str]:
    """Return what the collapse detector reports about an encoder on the held-out tiles of its own training."""
    part = open_part(config, config.data[0])
    health = next(one for one in monitors(config, [part]) if isinstance(one, HealthMonitor))
    return [problem.split(":")[0] for problem in problems(dict(health(Kept(model), step=0)))]


class Kept(torch.nn.Module):
    """Wraps an encoder for a monitor."""

    def __init__(self, model: AnySat) -> None:
        super().__init__()
        self.model = model

    def encoder(self) -> AnySat:
        """Return the encoder."""
        return self.model


def digest_of(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def card(kept: dict[str, Any]) -> str:
    """Return the model card: what the model is, what it was made from, its scores and its limits."""
    config = nano()
    parts = "\n".join(
        f"| {part.dataset} | {', '.join(f'`{key}`' for key in part.modalities)} | "
        f"{part.world['tiles'] if part.world else 5} | {part.weight} |"
        for part in config.data
    )
    names = ("encoder", "untrained", "statistics", "neighbourhood", "series")
    rows = "\n".join(
        f"| {task.replace('_', ' ')} | " + " | ".join(_cell(kept["tasks"][task][name]) for name in names) + " |"
        for task in TASKS
    )
    return Template(CARD.read_text()).substitute(
        parameters=f"{kept['parameters'] / 1e6:.1f}", dim=kept["config"]["dim"], depth=kept["config"]["depth"],
        megabytes=f"{WEIGHTS.stat().st_size / 1e6:.1f}", seed=config.seed, steps=config.num_steps,
        goal=config.objective.goal, parts=parts, rows=rows, licence=LICENCE, patch_size_m=f"{PATCH_SIZE_M:g}",
        patches=kept["retrieval"]["patches"], retrieval=f"{kept['retrieval']['centred']:.2%}",
        chance=f"{kept['retrieval']['chance']:.2%}",
    )  # fmt: skip


def _cell(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['score']:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Ship a run, or write the card again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder of the preset `nano`; or `probe` or `card`, of what ships")
    parser.add_argument("--cache", type=Path, help="folder in which what is generated is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run not in ("probe", "card"):
        ship(Path(options.run))
    if options.run != "card":
        measured(options.cache)
    written = card(json.loads(RECORD.read_text()))
    WEIGHTS.with_suffix(".md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
