"""Checks and helpers for vectors of samples, shared by all probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from anysat.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PAIRS = 1 << 22
"""Number of pairs of samples that are compared at once: 32 MB in float64."""


def checked(where: str, features: Tensor, fewest: int = 1) -> Tensor:
    """Check that vectors (sample dim) are enough and finite, and return them in float32 or wider.

    Raises:
        InputError: There are not two axes, there are fewer than `fewest` samples, or values are not finite.
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
            "leave out the patches that nothing observed (`Embeddings.valid`)",
        )  # fmt: skip
    return features.detach().float() if features.itemsize < 4 else features.detach()


def directions(features: Tensor) -> Tensor:
    """Scale vectors to length 1; a vector of zeros stays."""
    # Divide first by the largest entry, so that neither tiny nor huge vectors leave the range of their type.
    scale = features.abs().amax(1, keepdim=True)
    scaled = features / scale.where(scale > 0, 1)
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / length.where(length > 0, 1)


def slices(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yield slices of rows such that a table of the rows of one slice and all columns stays in bounded memory."""
    step = max(1, _MAX_PAIRS // max(1, num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values that occur, in ascending order, and the place of each entry among them."""
    found, places = values.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return found, places
