"""Is the representation collapsing? Figures of the embeddings of held-out tiles, and limits that sound an alarm.

The figures say whether vectors differ at all and what makes them differ; they do not say how good the vectors are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from anysat.errors import InputError, RecordError
from anysat.probing.samples import checked, directions, slices

if TYPE_CHECKING:
    from torch import Tensor

MAX_SAMPLES = 2048
"""Patches that `measure` looks at; of more, a drawn part that is the same every time."""
DEAD_SPREAD = 0.01
"""Spread below which a dimension is dead: a hundredth of what vectors in all directions have."""
_RESOLUTION = 2.0**-23
"""Of float32: singular values below this share of the vectors' size are rounding."""


@dataclass(frozen=True, kw_only=True)
class HealthLimits:
    """Where figures stop being healthy: `NAME_min` and `NAME_max` of figures of `Health`.

    They are set to sound on a collapse, not on a merely poor representation: singular values that fall like k^-1 or
    k^-1.5 or by e in ten dimensions are healthy in 64 to 768 dimensions, as is one mean direction that all vectors
    share up to a cosine of 0.997. Uniformity has no limit because it says what spread says; alignment and retrieval
    and the share within tiles have none because what they should be depends on the looks, the objective and the ground.
    """

    finite_frac_min: float = 1.0
    """Any NaN in what was seen is a fault."""
    spread_min: float = 0.05
    """A twentieth of that of independent vectors: on average two vectors have a cosine of 0.9975."""
    rank_frac_min: float = 0.015
    """4 of 256 dimensions, 12 of 768; of fewer dimensions or samples `top_frac_max` says it first."""
    top_frac_max: float = 0.95
    """One direction holds nearly everything. Noise lifts the effective rank of such vectors; it does not hide this."""
    dead_frac_max: float = 0.5
    """Half of the dimensions say nothing."""
    position_share_max: float = 0.8
    """Four fifths of the variance are the same in every tile."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value <= 1:
                raise RecordError(item.name, value, "a share from 0 to 1")

    def of(self, figure: str) -> tuple[float | None, float | None]:
        """The least and the largest healthy value of a figure, None where there is no limit."""
        return getattr(self, f"{figure}_min", None), getattr(self, f"{figure}_max", None)


@dataclass(frozen=True, kw_only=True)
class Health:
    """Figures of a representation; None where what is needed was not given or is too little."""

    num_samples: int
    """Vectors that the figures are of."""
    finite_frac: float
    """Share of the patches that were seen whose vectors are finite."""
    effective_rank: float | None = None
    rank_frac: float | None = None
    """Effective rank over the highest that is possible: dimensions, or samples less one where they are fewer."""
    top_frac: float | None = None
    spread: float | None = None
    dead_frac: float | None = None
    uniformity: float | None = None
    alignment: float | None = None
    position_share: float | None = None
    position_within_share: float | None = None
    """The same of the variance within tiles: 1 where patches of a tile differ by their place alone."""
    retrieval: float | None = None
    retrieval_chance: float | None = None

    def figures(self) -> dict[str, float]:
        """The figures that were measured, by name, without the number of samples."""
        named = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "num_samples"}
        return {name: float(value) for name, value in named.items() if value is not None}

    def problems(self, limits: HealthLimits | None = None) -> tuple[str, ...]:
        """Every figure beyond its limit, in words: the figure, the limit, what it means, what to try."""
        return problems(self.figures(), limits)


def problems(figures: dict[str, float], limits: HealthLimits | None = None) -> tuple[str, ...]:
    """As `Health.problems`, for figures by name, such as those read back from a log. NaN is beyond every limit."""
    limits, found = limits or HealthLimits(), []
    for name, (meaning, advice) in _MEANINGS.items():
        least, most = limits.of(name)
        value = figures.get(name)
        if value is None:
            continue
        if least is not None and not value >= least:
            found.append(f"{name} is {value:.3g}, less than {least:g}: {meaning}. {advice}")
        if most is not None and not value <= most:
            found.append(f"{name} is {value:.3g}, more than {most:g}: {meaning}. {advice}")
    return tuple(found)


ABOUT = {
    "finite_frac": "share of the patches that were seen whose vectors are finite",
    "effective_rank": "how many directions the vectors use; 1 for constant ones, at most the dimensions",
    "rank_frac": "effective rank over the highest that is possible: dimensions, or samples less one where they are "
    "fewer",
    "top_frac": "share of the variance along the direction of most variance; 1 for constant vectors",
    "spread": "how far vectors at length 1 differ: 0 for constant ones, 1 for directions drawn at random",
    "dead_frac": "share of the dimensions that are nearly the same for every patch",
    "uniformity": "how evenly directions fill the sphere: 0 for constant vectors, towards -4 for independent ones",
    "alignment": "mean squared distance at length 1 of two looks at a patch, with all and half the dates: 0 for equal "
    "directions, 2 for unrelated ones; constant vectors have 0, too",
    "position_share": "share of the variance that position in the tile explains: 1 for vectors that are the same in "
    "every tile",
    "position_within_share": "the same of what differs within tiles: 1 where patches of a tile differ by their place "
    "alone",
    "retrieval": "how often the token of one modality that is most like that of another is of the same patch",
    "neighbours": "how often the nearest patch of other tiles tells the class of a patch, mean over the classes",
    "linear": "how often a linear probe does",
}
"""What figures of health say, in a line each; the last two are of the target that is watched."""
MOSTLY_POSITION = 0.5
"""Share within tiles from which most of what differs between patches is position. It sounds no alarm, see
`HealthLimits`, and is told."""

_COLLAPSE = (
    "Try a weight on the contrast (without it, nothing keeps vectors apart), a teacher's momentum nearer to 1, "
    "a lower learning rate or a longer warm-up."
)
_MEANINGS = {
    "finite_frac": (
        "vectors are NaN or infinite",
        "Go back to the last checkpoint; try a lower learning rate, clipped gradients, or float32.",
    ),
    "spread": ("every patch gets almost the same vector", _COLLAPSE),
    "rank_frac": ("the vectors lie in a few of the dimensions", _COLLAPSE),
    "top_frac": ("the vectors differ along one direction only", _COLLAPSE),
    "dead_frac": ("most dimensions are the same for every patch", _COLLAPSE),
    "position_share": (
        "the vectors tell where in the tile a patch lies, not what is there",
        "Train for longer, hide more of the context, or vary the patch size; "
        "a representation that has only just begun is like this.",
    ),
}


def measure(
    patch: Tensor,
    *,
    valid: Tensor | None = None,
    second: Tensor | None = None,
    tokens: Sequence[tuple[Tensor, Tensor]] = (),
) -> Health:
    """Health of patch embeddings (batch patch_row patch_col dim) of held-out tiles of one size.

    Vectors that are not finite are counted and left out, so that no figure is NaN.

    Args:
        patch: from one look at the tiles.
        valid: (batch patch_row patch_col), which patches were seen; all when not given.
        second: the same patches from another look (other dates, other modalities), for the alignment.
        tokens: pairs of two modalities' tokens (sample dim) of the same patches, for the retrieval.

    Raises:
        InputError: other axes, or fewer than two patches that were seen.
    """
    import torch

    if patch.ndim != 4:
        raise InputError("patch embeddings", "axes batch patch_row patch_col dim", f"shape {tuple(patch.shape)}")
    seen = patch.new_ones(patch.shape[:-1], dtype=torch.bool) if valid is None else valid
    if int(seen.sum()) < 2:
        raise InputError("patch embeddings", "at least 2 patches that were seen", int(seen.sum()))
    finite = patch.isfinite().all(-1)
    features = _part(patch[seen & finite])
    found: dict[str, Any] = {"num_samples": len(features), "finite_frac": _share(finite[seen])}
    if len(features) >= 2:
        found |= _spectrum_figures(features)
        found |= {"spread": spread(features), "dead_frac": dead_frac(features), "uniformity": uniformity(features)}
    whole = patch[(seen & finite).flatten(1).all(1)]
    if len(whole) >= 2 and whole.shape[1] * whole.shape[2] >= 2:
        found["position_share"] = position_share(whole)
        found["position_within_share"] = position_share(whole, within_tiles=True)
    if second is not None:
        both = seen & finite & second.isfinite().all(-1)
        found["alignment"] = alignment(_part(patch[both]), _part(second[both])) if both.any() else None
    rates = [cross_modal_retrieval(_part(one), _part(other)) for one, other in tokens if len(one)]
    if rates:
        found |= {"retrieval": _mean(rate for rate, _ in rates), "retrieval_chance": _mean(by for _, by in rates)}
    return Health(**found)


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _share(claims: Tensor) -> float:
    return float(claims.double().mean())


def _part(features: Tensor) -> Tensor:
    """At most MAX_SAMPLES rows, always the same ones."""
    import torch

    if len(features) <= MAX_SAMPLES:
        return features
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MAX_SAMPLES]
    return features[order.to(features.device)]


def _spectrum_figures(features: Tensor) -> dict[str, float]:
    values = _singular_values(features)
    rank, highest = _rank(values), min(len(features) - 1, features.shape[1])
    return {"effective_rank": rank, "rank_frac": rank / highest, "top_frac": _top(values)}


def effective_rank(features: Tensor) -> float:
    """How many directions the vectors (sample dim) use: exp(-sum p log p), p = singular values over their sum.

    The singular values are those of the centred vectors (Roy and Vetterli 2007, eq. 3; as RankMe, Garrido et al. 2023,
    but centred, so that a mean all vectors share is no direction). Constant vectors have rank 1. At most samples less
    one, and the dimensions. Noise of small variance in many dimensions raises it: see `top_frac`.

    Raises:
        InputError: fewer than two samples, or values that are not finite.
    """
    return _rank(_singular_values(features))


def _rank(values: Tensor) -> float:
    shares = values[values > 0] / values.sum()
    return float((-(shares * shares.log()).sum()).exp())


def top_frac(features: Tensor) -> float:
    """Share of the variance of vectors (sample dim) along the direction of most variance; 1 for constant vectors.

    Raises:
        InputError: fewer than two samples, or values that are not finite.
    """
    return _top(_singular_values(features))


def _top(values: Tensor) -> float:
    variances = values**2
    return float(variances.max() / variances.sum()) if variances.any() else 1.0


def _singular_values(features: Tensor) -> Tensor:
    import torch

    values = checked("features", features, fewest=2).cpu().double()
    found = torch.linalg.svdvals(values - values.mean(0))
    return found.where(found > _RESOLUTION * values.norm(), 0)


def spread(features: Tensor) -> float:
    """Mean over dimensions of the deviation of vectors (sample dim) of length 1, times sqrt(dim).

    1 for independent directions, 0 for constant ones (Chen and He 2021, SimSiam, section 4.1). If all pairs have the
    cosine c, it is sqrt(1 - c).

    Raises:
        InputError: fewer than two samples, or values that are not finite.
    """
    return float(_deviations(features).mean())


def dead_frac(features: Tensor) -> float:
    """Share of the dimensions with a spread below `DEAD_SPREAD`.

    Raises:
        InputError: fewer than two samples, or values that are not finite.
    """
    return _share(_deviations(features) < DEAD_SPREAD)


def _deviations(features: Tensor) -> Tensor:
    unit = directions(checked("features", features, fewest=2).cpu().double())
    return unit.std(0, correction=0) * unit.shape[1] ** 0.5


def uniformity(features: Tensor, sharpness: float = 2.0) -> float:
    """Log of the mean over pairs of exp(-sharpness |x - y|^2), of vectors (sample dim) of length 1.

    0 for constant vectors, towards -2 * sharpness for independent ones; less is more uniform
    (Wang and Isola 2020, eq. 2, with their t = 2).

    Raises:
        InputError: fewer than two samples, or values that are not finite.
    """
    unit = directions(checked("features", features, fewest=2).cpu().double())
    square = unit.square().sum(1)  # 1, but 0 of a vector of zeros
    # Of pairs with themselves, which are no pairs, each adds exp(0).
    total = sum(
        float((-sharpness * (square[rows, None] + square - 2 * unit[rows] @ unit.T).clamp_min(0)).exp().sum())
        for rows in slices(len(unit), len(unit))
    )
    pairs = len(unit) * (len(unit) - 1)
    return min(0.0, math.log((total - len(unit)) / pairs))


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean of |x - y|^2 between two looks (sample dim) at the same samples, at length 1 (Wang and Isola 2020, eq. 1).

    0 for equal directions, 2 for unrelated ones. Constant vectors are aligned too: read it beside `uniformity`.

    Raises:
        InputError: looks of different shapes, no sample, or values that are not finite.
    """
    one, other = (directions(part.cpu().double()) for part in _paired(first, second))
    return float(((one - other) ** 2).sum(1).mean())


def position_share(patch: Tensor, *, within_tiles: bool = False) -> float:
    """Share of the variance of patch embeddings (batch patch_row patch_col dim) that position in the tile explains.

    With tiles and positions as the factors of an analysis of variance without replication: the sum of squares of the
    positions' means, less what chance adds to it (its degrees of freedom times the mean square of the remainder), over
    the total (epsilon squared, Kelley 1935, with tiles as blocks). Near 0 for vectors without position however few and
    however smooth the tiles, 1 for vectors that are the same in every tile; 0 for constant ones.

    Args:
        patch: of independent tiles.
        within_tiles: share of the variance that is left when every tile's mean is taken away.

    Raises:
        InputError: other axes, fewer than two tiles or positions, or values that are not finite.
    """
    if patch.ndim != 4 or patch.shape[0] < 2 or patch.shape[1] * patch.shape[2] < 2:
        raise InputError(
            "patch embeddings", "at least 2 tiles and 2 positions (batch patch_row patch_col dim)",
            f"shape {tuple(patch.shape)}",
        )  # fmt: skip
    flat = patch.detach().cpu().double().flatten(1, 2)  # (tile position dim)
    checked("patch embeddings", flat.flatten(0, 1))
    num_tiles = len(flat)
    centred = flat - flat.mean((0, 1))
    of_tile, of_position = centred.mean(1, keepdim=True), centred.mean(0, keepdim=True)
    total = float(((centred - of_tile if within_tiles else centred) ** 2).sum())
    if total <= (_RESOLUTION**2) * float((flat**2).sum()):
        return 0.0
    between = num_tiles * float((of_position**2).sum())
    # Mean square of the remainder times the positions' degrees of freedom: (positions - 1) cancels.
    by_chance = float(((centred - of_tile - of_position) ** 2).sum()) / (num_tiles - 1)
    return min(1.0, max(0.0, (between - by_chance) / total))


def cross_modal_retrieval(first: Tensor, second: Tensor) -> tuple[float, float]:
    """How often a patch is found by another modality, and how often by chance.

    The share of patches whose token of one modality (sample dim) has as its nearest, by cosine, among the other's
    tokens of all patches that of the same patch; the mean of both ways. By chance it is 1 / samples.

    Raises:
        InputError: tokens of different shapes, no sample, or values that are not finite.
    """
    import torch

    one, other = (directions(part.cpu().double()) for part in _paired(first, second))
    right = 0
    for asked, among in ((one, other), (other, one)):
        for rows in slices(len(asked), len(among)):
            nearest = (asked[rows] @ among.T).argmax(1)
            right += int((nearest == torch.arange(rows.start, rows.stop)).sum())
    return right / (2 * len(one)), 1 / len(one)


def _paired(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise InputError("two looks", "the same samples and dimensions", [tuple(first.shape), tuple(second.shape)])
    return checked("first look", first), checked("second look", second)
