"""The input of the forward pass: checked tensors, and how they are read from the published dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from anysat.errors import InputError
from anysat.modalities import Modality
from anysat.model.config import ModelConfig

_DATES, _MASK = "_dates", "_mask"
_MOST_DAYS = 110_000
"""The largest day number: three centuries, the span of allowed dates. Dates written as numbers, or seconds, are larger
by far."""


class PixelInput(NamedTuple):
    """Standardised pixels of one modality."""

    values: Tensor
    """(batch band row col) or (batch time band row col)."""
    days: Tensor | None = None
    """(batch time), day numbers of a series."""
    valid: Tensor | None = None
    """Same shape as `values`; None if everything is valid."""

    def to(self, device: torch.device) -> PixelInput:
        """Return the pixels on another device."""
        days, valid = (None if t is None else t.to(device) for t in (self.days, self.valid))
        return PixelInput(self.values.to(device), days, valid)


def read_published(x: Mapping[str, Tensor], config: ModelConfig) -> dict[str, PixelInput]:
    """Check the published dict of tensors, with modality keys, `<key>_dates` and `<key>_mask`.

    Raises:
        UnknownNameError: A key does not name a modality of the model.
        InputError: The input is not a dict, or the rank, bands, type, dates, mask or batch size of a tensor is wrong.
    """
    if not isinstance(x, Mapping):
        raise InputError(
            "input", "a dict of tensors by modality, such as {'s2': ..., 's2_dates': ...}", type(x).__name__,
            "a Batch of source values is for `encode`",
        )  # fmt: skip
    if odd := [key for key in x if not isinstance(key, str)]:
        raise InputError("input", "keys such as 's2' and 's2_dates'", repr(odd[0]))
    inputs = {}
    companions = {key + suffix for key in x for suffix in (_DATES, _MASK)}
    for key, values in x.items():
        if key in companions:
            continue
        owner = key.removesuffix(_DATES).removesuffix(_MASK)
        if owner != key and owner in {modality.key for modality in config.modalities}:
            raise InputError(key, f"the tensor {owner!r} beside it", f"only {', '.join(x)}")
        modality = config.modality(key)
        _check_values(modality, values)
        days = _read_days(modality, values, x.get(key + _DATES))
        inputs[key] = PixelInput(values, days, _read_mask(modality, values, x.get(key + _MASK)))
    if not inputs:
        raise InputError("input", "at least one modality", "none")
    sizes = {key: len(pixels.values) for key, pixels in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("input", "one batch size in all modalities", sizes)
    return inputs


def _check_values(modality: Modality, values: Tensor) -> None:
    axes = "(batch time band row col)" if modality.is_temporal else "(batch band row col)"
    rank = 5 if modality.is_temporal else 4
    if not isinstance(values, Tensor):
        raise InputError(modality.key, "a torch tensor", type(values).__name__)
    if values.ndim != rank:
        raise InputError(modality.key, f"{axes}, rank {rank}", f"shape {tuple(values.shape)}")
    if not values.is_floating_point():
        raise InputError(
            modality.key, "standardised floating-point values", values.dtype, "give source values to encode() instead"
        )
    if 0 in values.shape:
        raise InputError(modality.key, f"at least one of each axis {axes}", f"shape {tuple(values.shape)}")
    if values.shape[-3] != len(modality.bands):
        names = ", ".join(modality.band_names)
        raise InputError(
            modality.key,
            f"{len(modality.bands)} bands ({names})",
            f"{values.shape[-3]} in shape {tuple(values.shape)}",
            f"mask absent bands with {modality.key + _MASK!r}",
        )


def _read_days(modality: Modality, values: Tensor, days: Tensor | None) -> Tensor | None:
    where = modality.key + _DATES
    if not modality.is_temporal:
        if days is not None:
            raise InputError(where, "none: it is a single image", type(days).__name__)
        return None
    expected = tuple(values.shape[:2])
    if days is None:
        raise InputError(where, f"day numbers of shape {expected}", "none")
    if not isinstance(days, Tensor) or tuple(days.shape) != expected:
        got = tuple(days.shape) if isinstance(days, Tensor) else type(days).__name__
        raise InputError(where, f"a tensor of day numbers of shape {expected}", got)
    if days.is_complex() or days.dtype == torch.bool or not bool(torch.isfinite(days).all()):
        raise InputError(where, "finite day numbers", f"type {days.dtype} or a value that is not finite")
    numbers = days.to(torch.float32)
    if bool((odd := numbers.abs() > _MOST_DAYS).any()):
        raise InputError(
            where, "day numbers, such as 32 for 1 February", f"{days[odd][0].item():.0f}",
            "make them from dates, as `anysat.dates.day_numbers` does",
        )  # fmt: skip
    return numbers


def _read_mask(modality: Modality, values: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    where = modality.key + _MASK
    if not isinstance(mask, Tensor):
        raise InputError(where, "a torch tensor", type(mask).__name__)
    if mask.dtype != torch.bool:
        if bool((odd := (mask != 0) & (mask != 1)).any()):
            raise InputError(where, "1 where data is real and 0 elsewhere", mask[odd][0].item())
        mask = mask.bool()
    given = tuple(mask.shape)
    if modality.is_temporal and mask.ndim == 2:
        mask = mask[:, :, None, None, None]
    if mask.ndim == values.ndim and all(a in (1, b) for a, b in zip(mask.shape, values.shape, strict=True)):
        return mask.expand(values.shape)
    short = ", or (batch, time)" if modality.is_temporal else ""
    raise InputError(where, f"shape {tuple(values.shape)}, or 1 for an axis that does not matter{short}", given)
