"""Pretraining: the options, and the run they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from anysat.errors import InputError, MissingFileError, RecordError, UnknownNameError
from anysat.modalities import MODALITIES, RELEASED, read_modalities
from anysat.model.config import ModelConfig
from anysat.patches import SubpatchOrder
from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.workflows.answer import Answer
from anysat.workflows.kept import CONFIG_FILE, kept_options


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One dataset of the mixture and how it is drawn."""

    dataset: str
    """Name of a dataset, dotted name of a module, or YAML file of one's own data."""
    root: str | None = None
    """Its folder, loose or packed. Without it: the folder of this name, of a module or file the last part of it, in
    --data-root."""
    world: dict[str, Any] | None = None
    """For the dataset `world`: what `world.json` is to hold; tiles are generated and kept in the cache; no `root`."""
    split: str = "train"
    """Split that is trained on."""
    val_split: str | None = "val"
    """Split on which the loss is watched; null for none."""
    modalities: list[str] | None = None
    """Modalities to read; null for all."""
    weight: float = 1
    """Share of the steps, relative to the other parts."""
    batch_size: int = 8
    """Tiles in a micro-batch of one process."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres, one of which is drawn for each step; empty for those of the dataset."""
    crop_m: float | None = None
    """Side of a random square of each tile; null for the whole tile."""
    cut_at_random: bool = True
    """Cut photos that are larger than a tile, of FLAIR and TreeSatAI, at a random place; no packed ones."""
    turns_and_flips: bool = False
    """Place each tile in one of the 8 ways a square fits on itself."""
    max_dates: int | None = None
    """Most dates kept of each series, drawn at random."""
    sampler: str = "shuffle"
    """`shuffle`, or `sqrt_frequency` for rare classes."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The encoder to train."""

    dim: int = 768
    """Width of every token."""
    depth: int = 6
    """Blocks of the spatial and of the fusion transformer."""
    num_heads: int = 12
    """Attention heads."""
    modalities: list[str] = field(default_factory=lambda: [modality.key for modality in RELEASED])
    """Modalities with a projector; all of the data must be among them."""
    modality_files: list[str] = field(default_factory=list)
    """YAML files with records of modalities of your own, whose keys `modalities` may name then."""
    subpatch_order: SubpatchOrder = "raster"
    """`raster`, the true places of sub-patches, or `cell`, those of the published weights."""
    rpe_heads: Literal["first", "each"] = "each"
    """Whose query makes the relative-position term; the published weights learned `first`."""
    fusion_attention: Literal["tokens", "within_token"] = "tokens"
    """`tokens` mixes tokens; `within_token` mixes the heads of each, as the published training may have done."""
    pixel_widths: list[int] | None = None
    """Hidden widths of the layers that each pixel of each date passes; null for those that were published."""
    pixel_dropout_prob: float | None = None
    """Dropout between those layers; null for what the record of each modality says."""
    temporal_dropout_prob: float = 0.1
    """Dropout of the temporal attention weights."""
    patch_position_unit_m: float = 10.0
    """Metres per unit of the patch position code."""
    day_convention: str = "day_of_year"
    """How day numbers are made from dates."""
    first_weights: Literal["published", "isometric"] = "published"
    """How new weights begin: as published, or so that what tells patches apart is kept from the start, which narrow
    encoders and short trainings need."""

    def __post_init__(self) -> None:
        if self.first_weights not in ("published", "isometric"):
            raise RecordError("model.first_weights", self.first_weights, "'published' or 'isometric'")
        self.config()

    def config(self) -> ModelConfig:
        """The model's own record.

        Raises:
            UnknownNameError: a modality is not in the table.
            RecordError: the shape cannot be.
        """
        known = dict(MODALITIES)
        for path in self.modality_files:
            known |= {modality.key: modality for modality in read_modalities(path)}
        for key in self.modalities:
            if key not in known:
                raise UnknownNameError("modality", key, known)
        given = {**asdict(self), "modalities": tuple(known[key] for key in self.modalities)}
        del given["first_weights"], given["modality_files"]
        return ModelConfig(**given)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is measured while a run goes on."""

    validate_every: int = 1000
    """Steps between two losses on held-out tiles; the draws are the same each time."""
    val_batches: int = 20
    """Most held-out batches of each dataset."""
    health_every: int = 500
    """Steps between two looks at the embeddings of held-out tiles: rank, spread, position, probes."""
    health_tiles: int = 32
    """Held-out tiles of the first dataset that are looked at."""
    target: str | None = None
    """Target of that dataset whose classes nearest neighbours and a linear probe are to tell; null for none."""
    stop_on_collapse: bool = False
    """End the run when the embeddings collapse; they are always reported."""
    report: bool = True
    """Write a page, report.html, when the run ends."""

    def __post_init__(self) -> None:
        for name in ("validate_every", "val_batches", "health_every", "health_tiles"):
            if getattr(self, name) < 1:
                raise RecordError(f"watch.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain an encoder on several datasets at once, without labels.

    `--preset NAME` or `--config FILE` gives all of it; what else is given replaces single options.
    """

    preset: str | None = None
    """Options to begin with: geoplex, geoplex-paper, geoplex-fixed, world-nano or nano."""
    out: str | None = None
    """Run folder; `anysat.load` takes it."""
    resume: bool = False
    """Go on with the run in that folder, with the options it has; from the start where there is no checkpoint."""
    max_steps: int | None = None
    """Stop after these steps, those of earlier sessions included; schedules do not change."""
    data_root: str | None = None
    """Folder that holds a folder of each dataset, by its name."""
    data: list[PartConfig] = field(default_factory=list)
    """Datasets of the mixture."""
    num_steps: int = 100_000
    """Optimiser steps of the whole run; schedules are made for them."""
    seed: int = 0
    """Of everything that is drawn."""
    weights: str | None = None
    """Weights to begin with, of the same shape and habits; null for new ones."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null computes those of the training splits, once."""
    statistics_tiles: int = 2000
    """Tiles of each dataset they are computed from."""
    recompute: bool = False
    """Compute the student's activations again for the gradient instead of keeping them: less memory, a third slower."""
    model: ModelOptions = field(default_factory=ModelOptions)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=1e-4))
    engine: EngineConfig = field(default_factory=EngineConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"preset", "out", "resume", "max_steps", "data_root", "root", "report", "stop_on_collapse", "target"}
    )
    """Options that another session of a run may have otherwise, besides those of the engine."""

    def __post_init__(self) -> None:
        parts = [PartConfig(**part) if isinstance(part, Mapping) else part for part in self.data]
        object.__setattr__(self, "data", parts)
        for name, least in (("num_steps", 1), ("statistics_tiles", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), f"{least} or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise RecordError("--max-steps", self.max_steps, "1 or more")

    @staticmethod
    def starting_point(given: Mapping[str, Any]) -> dict[str, Any]:
        """Plain options that others are put upon: those of the preset, or of the run that is gone on with.

        Args:
            given: what was asked for.

        Raises:
            UnknownNameError: no such preset.
        """
        from anysat.workflows.pretrain_presets import PRESETS

        if given.get("preset") is not None:
            if given["preset"] not in PRESETS:
                raise UnknownNameError("preset", given["preset"], PRESETS)
            return asdict(PRESETS[given["preset"]]())
        kept = kept_options(given)
        for part in kept.get("data", ()):
            part.setdefault("cut_at_random", False)  # as runs were that do not know it
        return kept

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML, as kept in the run folder."""
        return asdict(self)

    def folder_of(self, part: PartConfig) -> Path:
        """Where a part's dataset lies.

        Raises:
            InputError: neither a root nor a data root is given.
            MissingFileError: there is no such folder.
        """
        is_file = part.dataset.endswith((".yaml", ".yml"))
        name = Path(part.dataset).stem if is_file else part.dataset.rpartition(".")[2]
        if part.root is None and self.data_root is None:
            raise InputError(
                f"dataset {part.dataset!r}", "its folder", "none",
                f"give --data-root FOLDER, which holds {name}/, or `root` in --data",
            )  # fmt: skip
        root = Path(part.root) if part.root is not None else Path(str(self.data_root)) / name
        if not root.exists():
            raise MissingFileError(root, f"the folder of {part.dataset}")
        return root


def pretrain(config: PretrainConfig) -> Answer:
    """Train, watch, and leave a run folder that `anysat.load` takes.

    Raises:
        InputError: no run folder, no data, data without its folder.
        MissingFileError: there is no run in the folder that is to be gone on with, and no data are given.
        RunExistsError: there is a run in the folder and --resume is not given.
        RecordError: the run was begun with other options.
        RunStoppedError, CollapseError, DivergedError: it ended early; the last checkpoint is kept.
    """
    if config.out is None:
        raise InputError("--out", "a folder for the run", "none")
    if not config.data and config.resume:
        raise MissingFileError(Path(config.out) / CONFIG_FILE, "the options of the run that is to be gone on with")
    if not config.data:
        raise InputError(
            "--data", "at least one dataset", "none", "begin with --preset world-nano, which needs no files"
        )
    from anysat.workflows.pretrain_run import run_pretraining

    return run_pretraining(replace(config, resume=False), Path(config.out), config.resume)
