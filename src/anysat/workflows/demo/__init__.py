"""The demo command: embeddings of six real Sentinel-1 and Sentinel-2 pairs, shown on one HTML page."""

from __future__ import annotations

import shlex
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import RecordError, WriteError
from anysat.whole_files import write_output

PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Embed six real Sentinel-1/Sentinel-2 pairs and write an HTML page with the results."""

    out: str = "demo"
    """Folder for the page, index.html."""
    weights: str | None = None
    """Weight file, folder or hub id. Null uses nano, the small model that ships with the package."""
    patch_sizes_m: list[float] = field(default_factory=lambda: [40.0, 120.0])
    """Patch sizes in metres, such as [40,120]; dense embeddings are made with the smallest."""
    crop_m: float | None = None
    """Side of a square cut from the middle of each pair, in metres. Null uses the whole pair, 1200 m, or 600 m for a
    large model without a GPU."""

    def __post_init__(self) -> None:
        if not self.patch_sizes_m:
            raise RecordError("--patch-sizes-m", self.patch_sizes_m, "one size or more, such as [40,120]")
        if self.crop_m is not None and not (10 <= self.crop_m <= 1200 and self.crop_m % 10 == 0):
            raise RecordError("--crop-m", self.crop_m, "a multiple of 10 m up to 1200 m")

    @property
    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["anysat", "demo", "--out", self.out]
        words += ["--weights", self.weights] if self.weights is not None else []
        words += ["--patch-sizes-m", "[" + ",".join(f"{size:g}" for size in self.patch_sizes_m) + "]"]
        words += ["--crop-m", f"{self.crop_m:g}"] if self.crop_m is not None else []
        return shlex.join(words)


def demo(config: DemoConfig) -> str:
    """Run the demo, and return where the page is and what it shows.

    Raises:
        WriteError: The folder cannot be written to.
        SourceError: The package with the imagery is not installed, or its imagery cannot be read.
        MissingFileError, WeightsError, PatchSizeError: The weights or a patch size cannot be used.
    """
    out = _make_folder(Path(config.out))
    from anysat.batch import Batch
    from anysat.data.datasets.bigearthnet_pairs import find_archives
    from anysat.normalise import Normaliser
    from anysat.workflows.demo.data import crop, read_pairs
    from anysat.workflows.demo.page import render
    from anysat.workflows.demo.steps import affordable_m, choose_model, embed_pairs, make_report

    started = time.perf_counter()
    archives = find_archives()
    chosen = choose_model(config.weights)
    loaded = time.perf_counter()
    pairs = read_pairs(archives)
    crop_m = config.crop_m or affordable_m(chosen.model)
    if crop_m is not None:
        pairs = [crop(pair, crop_m) for pair in pairs]
    chosen.model.normaliser = Normaliser.from_batch(Batch.of([pair.tile for pair in pairs]))
    timings = [
        ("model made or loaded", f"{loaded - started:.1f} s"),
        (f"{len(pairs)} pairs unpacked, read and resampled", f"{time.perf_counter() - loaded:.1f} s"),
    ]
    results = embed_pairs(chosen.model, pairs, sorted(set(config.patch_sizes_m)))
    page = out / PAGE
    write_output(page, render(make_report(chosen, pairs, results, timings, config.command)))
    sizes = " and ".join(f"{result.patch_size_m:g} m" for result in results)
    took = f"{time.perf_counter() - started:.0f} s"
    return f"{chosen.story}\n{len(pairs)} pairs embedded at patches of {sizes} in {took}.\nOpen {page}"


def _make_folder(folder: Path) -> Path:
    """Create the folder and check that it is writable, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WriteError(folder, error) from error
    return folder
