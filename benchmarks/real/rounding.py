"""What multiplying in bf16 does to a probe's score on real labels: same weights, folds and linear model as in float32.

python benchmarks/real/rounding.py --data DATA [--weights nano] [--tasks landcover_global landuse_modis]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from anysat.model.precision import Precision, multiplying
from real.features import samples
from real.frozen import embedded, encoder_of
from real.scores import difference, score
from real.simple import MODELS, answered
from real.tasks import SMOKE, TASKS, load

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def row(name: str, data: Path, weights: str) -> str:
    """A line of the table: error of the tokens, both scores, and their paired difference."""
    task, model = load(name, data), encoder_of(weights, 0)
    asked, tokens, answers = samples(task), {}, {}
    for precision in PRECISIONS:
        with multiplying(precision, torch.device("cpu")):
            tokens[precision] = [embedded(task, model, train) for train, _ in task.splits()]
        answers[precision] = answered(task, asked, tokens[precision], MODELS["linear"])[0]
    exact, near = (np.nan_to_num(tokens[precision][0]) for precision in PRECISIONS)
    off = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    tested = np.any([test for _, test in task.splits()], axis=0)[task.places()[:, 0]]
    truth, groups, classes = asked.truth[tested], asked.groups[tested], len(task.target.classes)
    scores = [score(truth, answers[precision][:, tested], groups, classes) for precision in PRECISIONS]
    first = next(iter(scores[0]))
    apart = difference(truth, answers["bf16"][:, tested], answers["float32"][:, tested], groups, classes)[first]
    low, high = apart["interval"]
    return (
        f"| {name} | {off:.4f} | {first} | {scores[0][first]['score']:.3f} | {scores[1][first]['score']:.3f} "
        f"| {apart['difference']:+.3f} ({low:+.3f} to {high:+.3f}) |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real data")
    parser.add_argument("--weights", default="nano")
    choices = [name for name in TASKS if name not in SMOKE]
    parser.add_argument("--tasks", nargs="+", choices=choices, default=["landcover_global", "landuse_modis"])
    options = parser.parse_args()
    if options.data is None or not options.data.is_dir():
        print("skipped: there is no folder" + (f" {options.data}" if options.data else ", give it with --data"))
        return
    torch.set_num_threads(1)
    print("| task | error of tokens | score | float32 | bf16 | bf16 minus float32 |\n|---|---|---|---|---|---|")
    with threadpool_limits(1):
        for name in options.tasks:
            print(row(name, options.data, options.weights), flush=True)


if __name__ == "__main__":
    main()
