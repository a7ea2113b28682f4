"""Cases for the encoder's speed: batches of tiles of random pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from anysat.modalities import MODALITIES


@dataclass(frozen=True)
class Case:
    """A batch of tiles."""

    dates: Mapping[str, int]
    """Number of dates by modality; 0 for an image."""
    side_m: float
    patch_m: float
    batch: int = 1
    is_plain_possible: bool = True
    """Whether the plain forward pass fits the memory of a laptop."""
    clouds: float = 0.0
    """Fraction of the dates of optical series that is hidden, drawn for each eighth of a tile's side."""

    def inputs(self) -> dict[str, Tensor]:
        """Return random pixels."""
        generator, x = torch.Generator().manual_seed(0), {}
        for key, times in self.dates.items():
            modality = MODALITIES[key]
            side, time_axis = round(self.side_m / modality.gsd_m), (times,) if modality.is_temporal else ()
            x[key] = torch.randn(self.batch, *time_axis, len(modality.bands), side, side, generator=generator)
            if time_axis:
                x[f"{key}_dates"] = torch.randint(1, 366, (self.batch, times), generator=generator).sort(1).values
            if time_axis and self.clouds and not modality.is_radar:
                clear = torch.rand(self.batch, times, 1, 8, 8, generator=generator) >= self.clouds
                eighth = torch.arange(side) * 8 // side
                x[f"{key}_mask"] = clear[..., eighth, :][..., eighth]
        return x


PASTIS = {"spot": 0, "s2": 40, "s1-asc": 40}
CASES = {
    "treesat": Case({"aerial": 0, "s2": 20, "s1-asc": 30}, 60, 10, batch=8),
    "pastis-320": Case(PASTIS, 320, 40),
    "pastis-320-clouds": Case(PASTIS, 320, 40, clouds=0.5),
    "pastis-1280": Case(PASTIS, 1280, 40),
    "s2-1024-patches": Case({"s2": 12}, 320, 10),
    "s2-16384-patches": Case({"s2": 12}, 1280, 10, is_plain_possible=False),
}
QUICK = ("treesat", "pastis-320", "pastis-320-clouds", "s2-1024-patches")
GROWTH = {
    "tile": [Case({"s2": 12}, side, 40) for side in (320, 640, 1280)],
    "dates": [Case({"s2": dates}, 320, 40) for dates in (6, 12, 24, 48)],
    "batch": [Case({"s2": 12}, 320, 40, batch=count) for count in (1, 2, 4)],
    "patches": [Case({"s2": 12}, 320, patch_m) for patch_m in (40, 20, 10)],
}
