"""The task `trees_smoke`: the five TreeSatAI tiles at hand, all sensors; too few to score anything."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from anysat.data.datasets.treesatai_ts import DATASET
from anysat.data.open import open_dataset
from real.protocol import RealTask


def trees_smoke(data: Path) -> RealTask:
    """Five tiles by the package's own reader; each is a fold, to show that training and scoring run.

    The reader wants the official lists beside the tiles, cut to those that are there: made of links for the while.
    """
    source = (data / "treesatai_ts").resolve()
    present = {path.name for path in (source / "aerial").glob("*.tif")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("aerial", "sentinel-ts", "labels"):
            (root / part).symlink_to(source / part)
        for split in ("train", "test"):
            names = (source / "labels" / f"{split}_filenames.lst").read_text().split()
            (root / f"{split}_filenames.lst").write_text("".join(f"{name}\n" for name in names if name in present))
        tiles = list(open_dataset("treesatai_ts", root, "all"))
    each = np.arange(len(tiles))
    return RealTask(
        "trees_smoke", tiles, DATASET.target("genera"), each, each, "genera of trees in five tiles: smoke only",
        patch_size_m=10.0,
    )  # fmt: skip
