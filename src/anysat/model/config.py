"""The configuration of a model: its size, its modalities and the conventions of its weights.

This module does not import torch, so that help and documentation load quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from anysat.dates import day_numbers
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.modalities import RELEASED, Modality, find_modality
from anysat.patches import SubpatchOrder

NUM_TEMPORAL_HEADS = 16
"""Number of attention heads in the temporal pooling, fixed as in the published model."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size, modalities and conventions of a model; stored in every checkpoint.

    Raises:
        RecordError: A field has a value that is not possible.

    Examples:
        >>> ModelConfig.tiny().dim, len(ModelConfig().modalities)
        (256, 11)
    """

    dim: int = 768
    """Width of every token, a multiple of 32, at least 64."""
    depth: int = 6
    """Number of blocks of the spatial transformer, and of self-attention blocks of the fusion transformer."""
    num_heads: int = 12
    """Number of attention heads of both transformers; divides `dim`."""
    modalities: tuple[Modality, ...] = RELEASED
    """Modalities of the model. Each has a projector. The default is the 11 released ones."""
    subpatch_order: SubpatchOrder = "cell"
    """How sub-patches smaller than 10 m are numbered for their positions. `cell` numbers them by 10 m cells, one cell
    after another, as the published weights learned it (their code reads that sequence as a raster). `raster` uses
    their true places."""
    rpe_heads: Literal["first", "each"] = "first"
    """Which query the relative-position term uses. `first` uses that of head 0 in all heads, as the published weights
    learned it. `each` uses every head's own."""
    fusion_attention: Literal["tokens", "within_token"] = "tokens"
    """`tokens` attends between tokens. `within_token` attends between the heads inside each token, which is what the
    published training configurations may have trained (a fast-attention call with two axes swapped)."""
    patch_position_unit_m: float = 10.0
    """Metres per unit of the patch position code. The published weights count in tens of metres."""
    pixel_widths: tuple[int, ...] | None = None
    """Hidden widths of the layers applied to each pixel of each date of a series: multiples of 4, at least 8. (The
    channels are normalised in four groups; the single channel of a group of one would always be 0.) None, as published:
    1/8, 1/2, 1 and 2 times `dim`. If `dim` is small, the first of these is too narrow for ten bands."""
    pixel_dropout_prob: float | None = None
    """Dropout probability between those layers during training. None, as published: that of each modality's record."""
    temporal_dropout_prob: float = 0.1
    """Dropout probability of the temporal attention weights during training."""
    day_convention: str = "day_of_year"
    """How dates become day numbers: `day_of_year` (from 1) or `days_since YYYY-MM-DD`."""

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise RecordError(f"ModelConfig.{name}", getattr(self, name), expected)

        given: Any = self.modalities  # strings and dicts, which hold keys, are refused below
        records = tuple(given) if isinstance(given, Iterable) else (given,)
        if isinstance(given, Modality) or not all(isinstance(record, Modality) for record in records):
            told = ", ".join(str(getattr(record, "key", record)) for record in records)
            raise RecordError("ModelConfig.modalities", told, "records, such as anysat.MODALITIES['s2'], in a tuple")
        object.__setattr__(self, "modalities", records)
        for name in ("dim", "depth", "num_heads"):
            if not isinstance(getattr(self, name), int | np.integer):
                refuse(name, "a whole number")
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.dim < 64 or self.dim % 32:  # a group norm over a single channel would erase the pixels
            refuse("dim", "a multiple of 32, 64 or more")
        if self.depth < 1:
            refuse("depth", "one block or more")
        if self.num_heads < 1 or self.dim % self.num_heads:
            refuse("num_heads", f"a divisor of dim={self.dim}")
        keys = [modality.key for modality in self.modalities]
        if not keys or len(set(keys)) < len(keys):
            refuse("modalities", "at least one modality, each key once")
        if self.subpatch_order not in get_args(SubpatchOrder):
            refuse("subpatch_order", "'cell' or 'raster'")
        if self.rpe_heads not in ("first", "each"):
            refuse("rpe_heads", "'first' or 'each'")
        if self.pixel_widths is not None:
            if isinstance(self.pixel_widths, Iterable):
                object.__setattr__(self, "pixel_widths", tuple(self.pixel_widths))
            if (
                not isinstance(self.pixel_widths, tuple)
                or not self.pixel_widths
                or any(not isinstance(width, int | np.integer) or width < 8 or width % 4 for width in self.pixel_widths)
            ):
                refuse("pixel_widths", "multiples of 4, each 8 or more, at least one, or null")
        if self.fusion_attention not in ("tokens", "within_token"):
            refuse("fusion_attention", "'tokens' or 'within_token'")
        for name in ("patch_position_unit_m", "pixel_dropout_prob", "temporal_dropout_prob"):
            value = getattr(self, name)
            if not isinstance(value, Real) and (name != "pixel_dropout_prob" or value is not None):
                refuse(name, "a number")
        if not self.patch_position_unit_m > 0:
            refuse("patch_position_unit_m", "a positive number of metres")
        if self.pixel_dropout_prob is not None and not 0 <= self.pixel_dropout_prob < 1:
            refuse("pixel_dropout_prob", "a probability below 1, or null")
        if not 0 <= self.temporal_dropout_prob < 1:
            refuse("temporal_dropout_prob", "a probability below 1")
        try:
            day_numbers(np.empty(0, "datetime64[D]"), str(self.day_convention))
        except RecordError:
            refuse("day_convention", "'day_of_year' or 'days_since YYYY-MM-DD'")

    @classmethod
    def base(cls, **changes: Any) -> ModelConfig:
        """Return the configuration of the published size: 126 M parameters. `changes` replaces fields."""
        return cls(**changes)

    @classmethod
    def small(cls, **changes: Any) -> ModelConfig:
        """Return the configuration of the hub's small size: 44 M parameters, no published weights."""
        return cls(**{"dim": 512, "depth": 4, "num_heads": 8, **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> ModelConfig:
        """Return the configuration of the hub's tiny size: 8 M parameters, no published weights."""
        return cls(**{"dim": 256, "depth": 2, "num_heads": 4, **changes})

    def with_modalities(self, *modalities: Modality) -> ModelConfig:
        """Return the configuration with these modalities added. They replace those with the same key.

        Raises:
            RecordError: One of them is not a record.
        """
        for modality in modalities:
            if not isinstance(modality, Modality):
                raise RecordError("ModelConfig.with_modalities", modality, "records, such as anysat.MODALITIES['s2']")
        added = {modality.key: modality for modality in modalities}
        kept = tuple(added.pop(modality.key, modality) for modality in self.modalities)
        return replace(self, modalities=(*kept, *added.values()))

    def modality(self, key: str) -> Modality:
        """Return the model's modality with this key.

        Raises:
            UnknownNameError: The model has no such modality.
        """
        return find_modality(key, self.modalities)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML. `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Create a configuration from plain values.

        Raises:
            UnknownNameError, RecordError: A field is unknown or has a value that is not possible.
        """
        if not isinstance(values, Mapping):
            raise RecordError("ModelConfig", values, "its fields by name")
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownNameError("model option", name, known)
        values = dict(values)
        if "modalities" in values:
            values["modalities"] = tuple(Modality.from_dict(record) for record in values["modalities"])
        return cls(**values)


SIZES = {"base": ModelConfig.base, "small": ModelConfig.small, "tiny": ModelConfig.tiny}
"""Named sizes. Add new ones here."""


def find_config(config: ModelConfig | str | None) -> ModelConfig:
    """Return the configuration given as itself or as the name of a size; None for `base`.

    Raises:
        InputError: It is given as something else.
        UnknownNameError: There is no such size.
    """
    if config is None:
        return ModelConfig.base()
    if isinstance(config, str):
        if config not in SIZES:
            raise UnknownNameError("size", config, SIZES)
        return SIZES[config]()
    if not isinstance(config, ModelConfig):
        raise InputError(
            "config", f"a ModelConfig, or the name of a size: {', '.join(SIZES)}", type(config).__name__,
            "`ModelConfig.from_dict` makes one of plain values",
        )  # fmt: skip
    return config
