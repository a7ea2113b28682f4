"""What a model is: its widths, its modalities, and the named habits of the published weights.

Imports no torch, so that help and docs are quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from anysat.errors import RecordError, UnknownNameError
from anysat.modalities import RELEASED, Modality, find_modality
from anysat.observation import day_numbers
from anysat.patches import SubpatchOrder

NUM_TEMPORAL_HEADS = 16
"""Heads of the temporal pooling; fixed in the published model."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's shape and conventions; part of every checkpoint.

    Examples:
        >>> ModelConfig.tiny().dim, len(ModelConfig().modalities)
        (256, 11)
    """

    dim: int = 768
    """Width of every token."""
    depth: int = 6
    """Blocks of the spatial transformer, and self-attention blocks of the fusion transformer."""
    num_heads: int = 12
    """Attention heads of both transformers."""
    modalities: tuple[Modality, ...] = RELEASED
    """Input streams with a projector each. The default are the 11 released ones."""
    subpatch_order: SubpatchOrder = "cell"
    """Positions of sub-patches smaller than 10 m. `cell` counts them cell by cell of 10 m, as the published
    weights learned them (their code reads that sequence as a raster); `raster` is the true place."""
    rpe_heads: Literal["first", "each"] = "first"
    """Whose query makes the relative-position term: `first` shares that of head 0 with all heads, as the
    published weights learned it; `each` lets every head use its own."""
    fusion_attention: Literal["tokens", "within_token"] = "tokens"
    """`tokens` mixes tokens. `within_token` attends across the heads inside each token: what the published
    training configurations may have trained (a fast-attention call with two axes swapped)."""
    patch_position_unit_m: float = 10.0
    """Metres per unit of the patch position code; the published weights count in tens of metres."""
    pixel_widths: tuple[int, ...] | None = None
    """Hidden widths of the layers that each pixel of each date of a series passes, multiples of 4, 8 or more, for four
    groups of channels are normalised, each by itself: one channel alone would be 0 always. None, as published:
    an eighth, a half, one and two times `dim`, of which the first is too narrow for ten bands where `dim` is small."""
    pixel_dropout_prob: float | None = None
    """Dropout between those layers while training; None for what each modality's record says, as published."""
    temporal_dropout_prob: float = 0.1
    """Dropout of the temporal attention weights while training."""
    day_convention: str = "day_of_year"
    """How day numbers are made from dates: `day_of_year` (from 1) or `days_since YYYY-MM-DD`."""

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise RecordError(f"ModelConfig.{name}", getattr(self, name), expected)

        given: Any = self.modalities  # a string and a dict hold keys
        records = (given,) if isinstance(given, Modality) else tuple(given)
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
            object.__setattr__(self, "pixel_widths", tuple(self.pixel_widths))
            if not self.pixel_widths or any(
                not isinstance(width, int | np.integer) or width < 8 or width % 4 for width in self.pixel_widths
            ):
                refuse("pixel_widths", "multiples of 4, each 8 or more, at least one, or null")
        if self.fusion_attention not in ("tokens", "within_token"):
            refuse("fusion_attention", "'tokens' or 'within_token'")
        if not self.patch_position_unit_m > 0:
            refuse("patch_position_unit_m", "a positive number of metres")
        if self.pixel_dropout_prob is not None and not 0 <= self.pixel_dropout_prob < 1:
            refuse("pixel_dropout_prob", "a probability below 1, or null")
        if not 0 <= self.temporal_dropout_prob < 1:
            refuse("temporal_dropout_prob", "a probability below 1")
        try:
            day_numbers(np.empty(0, "datetime64[D]"), self.day_convention)
        except RecordError:
            refuse("day_convention", "'day_of_year' or 'days_since YYYY-MM-DD'")

    @classmethod
    def base(cls, **changes: Any) -> ModelConfig:
        """The published size: 126 M parameters."""
        return cls(**changes)

    @classmethod
    def small(cls, **changes: Any) -> ModelConfig:
        """The hub's small size: 44 M parameters; no published weights exist."""
        return cls(**{"dim": 512, "depth": 4, "num_heads": 8, **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> ModelConfig:
        """The hub's tiny size: 8 M parameters; no published weights exist."""
        return cls(**{"dim": 256, "depth": 2, "num_heads": 4, **changes})

    def with_modalities(self, *modalities: Modality) -> ModelConfig:
        """The same model with these modalities added, or put in place of those with the same key."""
        added = {modality.key: modality for modality in modalities}
        kept = tuple(added.pop(modality.key, modality) for modality in self.modalities)
        return replace(self, modalities=(*kept, *added.values()))

    def modality(self, key: str) -> Modality:
        """The record of one of this model's modalities; refuses a key it does not have."""
        return find_modality(key, self.modalities)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Make a configuration from plain values; refuses unknown fields."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownNameError("model option", name, known)
        values = dict(values)
        if "modalities" in values:
            values["modalities"] = tuple(Modality.from_dict(record) for record in values["modalities"])
        return cls(**values)


SIZES = {"base": ModelConfig.base, "small": ModelConfig.small, "tiny": ModelConfig.tiny}
"""Named sizes; add one here."""
