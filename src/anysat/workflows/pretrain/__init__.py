"""Pretraining: the options and the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from anysat.choices import check_choices
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
    """Name of a dataset, dotted name of a module, or YAML file that describes your own data."""
    root: str | None = None
    """Its folder, loose or packed. Null uses the folder of this name in --data-root; for a module or file, the last
    part of the name."""
    world: dict[str, Any] | None = None
    """For the dataset `world`: the contents of `world.json`. Tiles are generated and kept in the cache; give no
    `root`."""
    split: str = "train"
    """Split to train on."""
    val_split: str | None = "val"
    """Split on which the validation loss is measured; null for none."""
    modalities: list[str] | None = None
    """Modalities to read; null reads all."""
    weight: float = 1
    """Share of the steps, relative to the other datasets."""
    batch_size: int = 8
    """Tiles in a micro-batch of one process."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres, of which one is drawn for each step; if empty, those recommended for the dataset."""
    crop_m: float | None = None
    """Side in metres of a random square to cut from each tile; null uses whole tiles."""
    cut_at_random: bool = True
    """Cut photos that are larger than a tile (FLAIR, TreeSatAI) at a random place; packed photos are already cut."""
    turns_and_flips: bool = False
    """Rotate and flip each tile at random, in one of the 8 ways a square fits on itself."""
    max_dates: int | None = None
    """Largest number of dates to keep from each series, drawn at random."""
    sampler: Literal["shuffle", "sqrt_frequency"] = "shuffle"
    """`sqrt_frequency` draws tiles with rare classes more often."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The encoder to train."""

    dim: int = 768
    """Width of every token."""
    depth: int = 6
    """Number of blocks in the spatial and in the fusion transformer."""
    num_heads: int = 12
    """Number of attention heads."""
    modalities: list[str] = field(default_factory=lambda: [modality.key for modality in RELEASED])
    """Modalities that get a projector; they must include all those of the data."""
    sensors: list[str] = field(default_factory=list)
    """YAML files with your own modality records, whose keys can then be used in `modalities`."""
    subpatch_order: SubpatchOrder = "raster"
    """Positions of sub-patches: `raster`, the true ones, or `cell`, those that the published weights learned."""
    rpe_heads: Literal["first", "each"] = "each"
    """Query used for the relative-position term: `each` head its own, or that of the `first` head for all, as in the
    published weights."""
    fusion_attention: Literal["tokens", "within_token"] = "tokens"
    """`tokens` mixes tokens; `within_token` mixes the heads of each token, as the published training may have done."""
    pixel_widths: list[int] | None = None
    """Hidden widths of the layers applied to each pixel of each date; null uses the published ones."""
    pixel_dropout_prob: float | None = None
    """Dropout between those layers; null uses the value in each modality's record."""
    temporal_dropout_prob: float = 0.1
    """Dropout of the temporal attention weights."""
    patch_position_unit_m: float = 10.0
    """Unit of the patch position code, in metres."""
    day_convention: str = "day_of_year"
    """How dates become day numbers: `day_of_year` or `days_since YYYY-MM-DD`."""
    first_weights: Literal["published", "isometric"] = "published"
    """Initialisation of new weights: `published`, or `isometric`, which keeps differences between patches from the
    start, as narrow encoders and short trainings need."""

    def __post_init__(self) -> None:
        check_choices(self, "model.")
        self.config()

    def config(self) -> ModelConfig:
        """Return the model's configuration.

        Raises:
            UnknownNameError: A modality is not in the table.
            RecordError: The configuration is not possible.
        """
        known = dict(MODALITIES)
        for path in self.sensors:
            known |= {modality.key: modality for modality in read_modalities(path)}
        for key in self.modalities:
            if key not in known:
                raise UnknownNameError("modality", key, known)
        given = {**asdict(self), "modalities": tuple(known[key] for key in self.modalities)}
        del given["first_weights"], given["sensors"]
        return ModelConfig(**given)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is measured during a run."""

    validate_every: int = 1000
    """Steps between two measurements of the loss on held-out tiles; the random draws are the same each time."""
    val_batches: int = 20
    """Largest number of held-out batches of each dataset."""
    health_every: int = 500
    """Steps between two checks of the embeddings of held-out tiles: rank, spread, position, probes."""
    health_tiles: int = 32
    """Number of held-out tiles of the first dataset to check."""
    target: str | None = None
    """Target of that dataset whose classes nearest neighbours and a linear probe predict; null for none."""
    stop_on_collapse: bool = False
    """End the run if the embeddings collapse. A collapse is always reported."""
    report: bool = True
    """Write an HTML page, report.html, when the run ends."""

    def __post_init__(self) -> None:
        for name in ("validate_every", "val_batches", "health_every", "health_tiles"):
            if getattr(self, name) < 1:
                raise RecordError(f"watch.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain an encoder on one or more datasets, without labels.

    `--preset NAME` or `--config FILE` gives all of it; what else is given replaces single options.
    """

    preset: str | None = None
    """Options to start from: geoplex, geoplex-paper, geoplex-fixed, world-nano or nano."""
    out: str | None = None
    """Run folder; load it with `anysat.load`."""
    resume: bool = False
    """Continue the run in that folder with its options, from the start if it has no checkpoint."""
    max_steps: int | None = None
    """Stop after this many steps in total, including those of earlier sessions. Schedules do not change."""
    data_root: str | None = None
    """Folder that contains one folder for each dataset, with the name of the dataset."""
    data: list[PartConfig] = field(default_factory=list)
    """Datasets of the mixture."""
    num_steps: int = 100_000
    """Optimiser steps of the whole run; schedules are based on them."""
    seed: int = 0
    """Seed of all random draws."""
    weights: str | None = None
    """Weights to start from, of the same shape and conventions as --model; null starts from new ones."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null computes them once from the training splits."""
    statistics_tiles: int = 2000
    """Tiles of each dataset from which statistics are computed."""
    recompute: bool = False
    """Recompute the student's activations for the gradient instead of keeping them: less memory, a third slower."""
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
    """Options that may differ in another session of a run, besides those of the engine."""

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
        """Return the options that given ones replace: those of the preset, or of the run to resume.

        Raises:
            UnknownNameError: There is no such preset.
        """
        from anysat.workflows.pretrain.presets import PRESETS

        if given.get("preset") is not None:
            if given["preset"] not in PRESETS:
                raise UnknownNameError("preset", given["preset"], PRESETS)
            return asdict(PRESETS[given["preset"]]())
        kept = kept_options(given)
        for part in kept.get("data", ()):
            part.setdefault("cut_at_random", False)  # as in runs of versions without this option
        return kept

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML, as stored in the run folder."""
        return asdict(self)

    def folder_of(self, part: PartConfig) -> Path:
        """Return the folder of a part's dataset.

        Raises:
            InputError: Neither a root nor a data root is given.
            MissingFileError: There is no such folder.
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
    """Train an encoder, and leave a run folder that `anysat.load` loads.

    Raises:
        InputError: The run folder, the data or their folder is not given.
        MissingFileError: There is no run to resume in the folder, and no data are given.
        RunExistsError: There is a run in the folder, and `resume` is False.
        RecordError: The run was started with other options.
        RunStoppedError, CollapseError, DivergedError: The run ended early. The last checkpoint, if there is one, is
            kept.
    """
    if config.out is None:
        raise InputError("--out", "a folder for the run", "none")
    if not config.data and config.resume:
        raise MissingFileError(Path(config.out) / CONFIG_FILE, "the options of the run to continue")
    if not config.data:
        raise InputError(
            "--data", "at least one dataset", "none", "start with --preset world-nano, which needs no files"
        )
    from anysat.workflows.pretrain.run import run_pretraining

    return run_pretraining(replace(config, resume=False), Path(config.out), config.resume)
