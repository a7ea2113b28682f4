"""What every probe asks of its vectors, and their directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from anysat.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PAIRS = 1 << 22
"""Pairs of samples that are compared at once: 32 MB in float64."""


def checked(where: str, features: Tensor, fewest: int = 1) -> Tensor:
    """The same vectors (sample dim), known to be enough and finite, in float32 at least.

    Raises:
        InputError: not two axes, fewer than `fewest` samples, or values that are not finite.
    """
    if features.ndim != 2 or not features.is_floating_point():
        got = f"{features.dtype} of shape {tuple(features.shape)}"
        raise InputError(where, "floating-point vectors (sample dim)", got)
    if len(features) < fewest or not features.shape[1]:
        raise InputError(where, f"at least {fewest} samples and one dimension", f"shape {tuple(features.shape)}")
    broken = int((~features.isfinite().all(1)).sum())
    if broken:
        raise InputError(
            where, "finite vectors", f"{broken} of {len(features)} with NaN or infinity",
            "leave out the patches that nobody saw (`Embeddings.valid`)",
        )  # fmt: skip
    return features.detach().float() if features.itemsize < 4 else features.detach()


def directions(features: Tensor) -> Tensor:
    """The vectors at length 1; a vector of zeros stays."""
    # First by the largest entry, so that neither tiny nor huge vectors leave the range of their type.
    scale = features.abs().amax(1, keepdim=True)
    scaled = features / scale.where(scale > 0, 1)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / length.where(length > 0, 1)


def slices(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of rows that keep a table of rows and columns in bounded memory."""
    step = max(1, _MAX_PAIRS // max(1, num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values that occur, rising, and the place of each entry among them."""
    found, places = values.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return found, places
