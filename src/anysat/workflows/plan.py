"""The command that estimates the cost of embedding an area: its options and its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anysat.workflows.answer import Answer
from anysat.workflows.embed import EmbedConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(EmbedConfig):
    """Estimate the cost of `anysat embed`: windows, time, memory, reads, output size.

    It takes the options of `anysat embed` that change the cost.
    """

    out: str = "area.zarr"
    measure: bool = True
    """Read, encode and fuse one window, to estimate time and operations on this machine."""

    NO_OPTIONS: ClassVar[frozenset[str]] = frozenset({"out", "also", "scheduler", "places", "overwrite"})
    """Options of `anysat embed` that do not change its cost, or by nothing that is estimated."""


def plan(config: PlanConfig) -> Answer:
    """Open the inputs, cut the area, measure one window, and report.

    Raises:
        MissingFileError, SourceError, UnknownNameError, RecordError, PatchSizeError: As `anysat embed`.
    """
    from anysat.workflows.plan_area import plan_area

    return plan_area(config)
