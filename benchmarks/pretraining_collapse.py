"""Why a small encoder collapses in the first steps, and what prevents it: the contrastive loss over a hundred steps.

python benchmarks/pretraining_collapse.py run        # about two minutes on one core; leaves a record
python benchmarks/pretraining_collapse.py print

Data: the generated world, Sentinel-2 and Sentinel-1, squares of 40 m in 10 m patches, 16 tiles a step. The encoder has
width 128, and the loss is the contrastive loss alone. For each way to start, this prints the mean loss of ten steps up
to step 10, 50 and 100, beside the loss for equal tokens, and the fraction of the patch tokens' mean square that is
variance between patches (0: every patch has the same vector).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anysat.batch import Batch, Tile
from anysat.data.mixture import Mixture, Part
from anysat.data.transforms import Augmentation
from anysat.data.world import World
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.first_weights import init_isometric
from anysat.normalise import Normaliser
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining

KEYS, CROP_M, PATCH_M, BATCH, STEPS = ("s2", "s1"), 40.0, 10.0, 16, 100
SHOWN = (10, 50, 100)
RECORD = Path(__file__).parents[1] / "docs" / "experiments" / "pretraining-collapse.json"


@dataclass(frozen=True)
class Way:
    """A way to start training."""

    name: str
    centred: bool
    isometric: bool
    learning_rate: float = 5e-4
    spread: bool = False


WAYS = (
    Way("as published", False, False),
    Way("as published, slow", False, False, 1e-4),
    Way("isometric", False, True),
    Way("centred", True, False),
    Way("centred, isometric", True, True),
    Way("centred, spread", True, False, spread=True),
    Way("centred, isometric, spread", True, True, spread=True),
)


class Tiles:
    """Generated tiles in memory."""

    name = "world"

    def __init__(self, count: int) -> None:
        places = (World(1).tile(index, extent_m=60.0) for index in range(count))
        self.tiles = [
            Tile.of(*(place.observe(key, count=12) for key in KEYS), id=str(place.index), dataset=self.name)
            for place in places
        ]
        self.ids = [tile.id for tile in self.tiles]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Tile:
        return self.tiles[index]

    def labels(self) -> np.ndarray:
        """Not available."""
        raise NotImplementedError


def told_apart(tokens: Tensor) -> float:
    """Return the fraction of the mean square of tokens (*place dim) that is variance."""
    flat = tokens.detach().flatten(0, -2)
    return float((flat - flat.mean(0)).square().sum() / flat.square().sum())


def train(way: Way, tiles: Tiles, seed: int) -> tuple[list[float], dict[str, float]]:
    """Return the contrastive loss of each step, and the result of `told_apart` for each modality at the end."""
    torch.manual_seed(seed)
    encoder = AnySat(ModelConfig(dim=128, depth=2, num_heads=4, subpatch_order="raster", rpe_heads="each"),
                     normaliser=Normaliser.from_batch(Batch.of(tiles.tiles[:100])))  # fmt: skip
    if way.isometric:
        init_isometric(encoder)
    config = ObjectiveConfig(
        goal="projection",
        predict_weight=0.0,
        complete_weight=0.0,
        dense_weight=0.0,
        centred=way.centred,
        spread_weight=float(way.spread),
        predictor_heads=4,
    )
    objective = Pretraining(encoder, config=config).train()
    part = Part(
        tiles=tiles,
        batch_size=BATCH,
        patch_sizes_m=(PATCH_M,),
        augmentation=Augmentation(crop_m=CROP_M, turns_and_flips=True),
    )
    mixture = Mixture(parts=[part], seed=seed)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=way.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    losses = []
    for step in range(STEPS):
        found = objective(mixture.draw(step), torch.Generator().manual_seed(step))
        found["loss"].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(found["contrast"].detach()))
    inputs, _ = objective.eval().student.prepare(mixture.draw(STEPS).batch, PATCH_M)
    seen = objective.student.see(inputs, PATCH_M)
    return losses, {key: told_apart(part.patch) for key, part in seen.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table."""
    steps = " | ".join(f"step {step}" for step in SHOWN)
    lines = [f"| beginning | learning rate | {steps} | apart, {', '.join(KEYS)} |",
             f"|---|---|{'---|' * (len(SHOWN) + 1)}"]  # fmt: skip
    for row in rows:
        cells = [f"{row['contrast'][str(step)]:.3f}" for step in SHOWN]
        shares = ", ".join(f"{row['apart'][key]:.1%}" for key in KEYS)
        lines.append(f"| {row['way']} | {row['learning_rate']:g} | {' | '.join(cells)} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Train, or print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--seed", type=int, default=0)
    commands.add_parser("print")
    options = parser.parse_args()
    if options.command == "run":
        torch.set_num_threads(1)
        tiles, rows = Tiles(300), []
        for way in WAYS:
            losses, apart = train(way, tiles, options.seed)
            contrast = {str(step): float(np.mean(losses[step - 10 : step])) for step in SHOWN}
            rows.append({"way": way.name, "learning_rate": way.learning_rate, "contrast": contrast, "apart": apart})
            print(rows[-1], flush=True)
        patches = round(CROP_M / PATCH_M) ** 2
        equal = math.log(len(KEYS) * BATCH * patches - patches)
        RECORD.write_text(json.dumps({"seed": options.seed, "equal_tokens": equal, "rows": rows}, indent=1) + "\n")
    found = json.loads(RECORD.read_text())
    print(table(found["rows"]) + f"\n\nEqual tokens have {found['equal_tokens']:.3f}. Seed {found['seed']}.")


if __name__ == "__main__":
    main()
