"""Quantise embeddings to one byte per value, restore them, and measure the loss.

There are two rules: `power`, published with AlphaEarth Foundations, for directions (lengths are stored beside them),
and `scale`, with one step per dimension, fitted to a sample.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NODATA = -128
"""Code of a value that was not seen."""
LARGEST = 127
"""Largest code. Its negative is the smallest."""
POWER_STEPS = 127.5
"""Codes per unit of the square root, in the `power` rule."""
HEADROOM = 1.1
"""Factor by which a value may exceed the largest of the sample before the `scale` rule clips it."""


def to_power(vectors: NDArray[np.floating[Any]]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Encode vectors (… dim) by q = round(127.5 sign(x) sqrt|x|) of the unit vector x; return codes and lengths (…).

    Example:
        >>> codes, norms = to_power(np.array([[3.0, -4.0]]))
        >>> codes.tolist(), norms.tolist()
        ([[99, -114]], [5.0])
        >>> np.allclose(from_power(codes, norms), [[3.01, -4.0]], atol=0.01)
        True
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True).astype(np.float32)
    unit = np.divide(vectors, norms, out=np.zeros(vectors.shape, np.float32), where=norms > 0, casting="same_kind")
    codes = np.rint(POWER_STEPS * np.sign(unit) * np.sqrt(np.abs(unit)))
    return np.clip(codes, -LARGEST, LARGEST).astype(np.int8), norms[..., 0]


def from_power(codes: NDArray[np.int8], norms: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Decode codes to unit vectors (… dim), or, with lengths (…), to vectors. They are NaN where nothing was seen."""
    steps = codes.astype(np.float32) / np.float32(POWER_STEPS)
    vectors = np.where(codes == NODATA, np.float32(np.nan), np.sign(steps) * steps**2)
    return vectors if norms is None else vectors * np.asarray(norms, np.float32)[..., None]


def fit_scale(sample: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the step of each dimension for a sample (vector dim), with room for values `HEADROOM` times larger."""
    largest = np.abs(sample).max(axis=0).astype(np.float32) * np.float32(HEADROOM)
    return np.where(largest > 0, largest / LARGEST, np.float32(1)).astype(np.float32)


def to_scale(vectors: NDArray[np.floating[Any]], scale: NDArray[np.float32]) -> tuple[NDArray[np.int8], int]:
    """Encode vectors (… dim) by a step per dimension; return codes and the number of clipped values."""
    codes = np.rint(vectors / scale)
    return np.clip(codes, -LARGEST, LARGEST).astype(np.int8), int((np.abs(codes) > LARGEST).sum())


def from_scale(codes: NDArray[np.int8], scale: NDArray[Any]) -> NDArray[np.float32]:
    """Decode codes to vectors (… dim). They are NaN where nothing was seen."""
    return np.where(codes == NODATA, np.float32(np.nan), codes.astype(np.float32) * np.asarray(scale, np.float32))


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Errors of stored vectors against the given ones, as sums that can be added up."""

    vectors: int = 0
    squared_error: float = 0.0
    squared: float = 0.0
    cosine_sum: float = 0.0
    relative_sum: float = 0.0
    worst_cosine: float = 1.0
    worst_relative: float = 0.0
    clipped: int = 0
    """Number of values beyond the largest code, or for float16 the largest number."""

    @classmethod
    def between(cls, given: NDArray[Any], restored: NDArray[Any], clipped: int = 0) -> Loss:
        """Measure the loss of valid vectors (vector dim)."""
        if not len(given):
            return cls()
        given, restored = given.astype(np.float32, copy=False), restored.astype(np.float32, copy=False)
        errors, squares, others, product = (
            np.einsum("ij,ij->i", one, other).astype(np.float64)
            for one, other in ((given - restored,) * 2, (given, given), (restored, restored), (given, restored))
        )
        lengths = np.sqrt(squares * others)
        relative = np.sqrt(np.divide(errors, squares, out=np.zeros_like(errors), where=squares > 0))
        cosine = np.divide(product, lengths, out=(squares == others).astype(np.float64), where=lengths > 0)
        cosine = np.minimum(cosine, 1.0)
        return cls(
            vectors=len(given), squared_error=float(errors.sum()), squared=float(squares.sum()),
            cosine_sum=float(cosine.sum()), relative_sum=float(relative.sum()), worst_cosine=float(cosine.min()),
            worst_relative=float(relative.max()), clipped=clipped,
        )  # fmt: skip

    def __add__(self, other: Loss) -> Loss:
        one, two = self.to_dict(), other.to_dict()
        sums: dict[str, Any] = {name: one[name] + two[name] for name in one}
        sums["worst_cosine"] = min(self.worst_cosine, other.worst_cosine)
        sums["worst_relative"] = max(self.worst_relative, other.worst_relative)
        return Loss(**sums)

    def summary(self) -> dict[str, float]:
        """Return the relative error of all vectors together (`relative_l2`), its mean and worst, and the cosine's."""
        if not self.vectors:
            return {"vectors": 0}
        return {
            "vectors": self.vectors,
            "relative_l2": float(np.sqrt(self.squared_error / self.squared)) if self.squared else 0.0,
            "relative_l2_mean": self.relative_sum / self.vectors,
            "relative_l2_worst": self.worst_relative,
            "cosine_mean": self.cosine_sum / self.vectors,
            "cosine_worst": self.worst_cosine,
            "clipped_values": self.clipped,
        }

    def to_dict(self) -> dict[str, float]:
        """Return plain values, to be stored and added up later."""
        return dataclasses.asdict(self)


def quantisation(dtype: str) -> dict[str, Any] | None:
    """Return the `geoemb:quantization` object of a `layout.Kind`; None for kinds that are not quantised."""
    if dtype == "float16":
        return {"method": "float16", "original_dtype": "float32", "quantized_dtype": "float16"}
    if dtype == "int8-power":
        method = "power: q = round(127.5 sign(x) sqrt|x|) of the unit vector, x = sign(q) (q / 127.5)^2 norm"
        scale = {"type": "array", "array_name": "norm", "nodata": NODATA}
    elif dtype == "int8-scale":
        method, scale = "linear per dimension: x = q scale", {"type": "array", "array_name": "scale", "nodata": NODATA}
    else:
        return None
    return {"method": method, "original_dtype": "float32", "quantized_dtype": "int8", "scale": scale}
