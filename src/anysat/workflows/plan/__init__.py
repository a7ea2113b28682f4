"""The command that estimates the cost of embedding or mapping an area: its options and its run."""

from __future__ import annotations

from dataclasses import dataclass, field

from anysat.workflows.answer import Answer
from anysat.workflows.embed import EmbedConfig
from anysat.workflows.predict import PredictConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(EmbedConfig):
    """Estimate the cost of `anysat embed` with the same options: windows, time, memory, reads, output size."""

    out: str = field(default="area.zarr", metadata={"help": "Output of `anysat embed`; nothing is written."})
    measure: bool = True
    """Read windows all over the area, and encode and fuse one, to estimate time and operations on this machine."""


@dataclass(frozen=True, kw_only=True)
class PlanMapConfig(PredictConfig):
    """Estimate the cost of `anysat predict RUN` with the same options: windows, time, memory, reads, output size."""

    run: str = field(metadata={"help": "Run folder of `anysat probe` or `finetune`, or its predictor file."})
    out: str = field(default="map.zarr", metadata={"help": "Output of `anysat predict`; nothing is written."})
    measure: bool = True
    """Read windows all over the area, and predict one, to estimate time and operations on this machine."""


def plan(config: PlanConfig) -> Answer:
    """Open the inputs, cut the area, measure windows of it, and report.

    Raises:
        MissingFileError, SourceError, UnknownNameError, RecordError, PatchSizeError: As `anysat embed`.
    """
    from anysat.workflows.plan.area import plan_area

    return plan_area(config)


def plan_map(config: PlanMapConfig) -> Answer:
    """Open the inputs, cut the area, measure windows of it, and report.

    Raises:
        MissingFileError, WeightsError, SourceError, UnknownNameError, RecordError, InputError: As `anysat predict`.
    """
    from anysat.workflows.plan import maps

    return maps.plan_map(config)
