"""Tile-sized inputs to georeferenced embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Embed co-located files of any sensors: georeferenced patch and dense embeddings."""

    inputs: list[str] = field(
        metadata={
            "positional": "MODALITY=PATH",
            "help": "Inputs: a modality key and its file or folder, such as s2=cube.nc s1=radar/ aerial=photo.tif.",
        }
    )
    out: str
    """Output."""


def demo(config: DemoConfig) -> str:
    """Embed."""
    return str(config)
