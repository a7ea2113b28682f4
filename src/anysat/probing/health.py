"""Health of a representation: figures of the embeddings of held-out tiles, and limits that reveal a collapse.

The figures show whether the vectors differ at all, and what makes them differ. They do not show how good they are.
All functions raise InputError if there are too few samples, shapes do not fit, or values are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any

from anysat.errors import InputError, RecordError
from anysat.probing.samples import checked, directions, slices

if TYPE_CHECKING:
    from torch import Tensor

MAX_SAMPLES = 2048
"""Largest number of patches that `measure` uses. Of more, it uses a random part that is the same every time."""
DEAD_SPREAD = 0.01
"""Spread below which a dimension is dead: a hundredth of that of vectors in all directions."""
_RESOLUTION = 2.0**-23
"""Resolution of float32: singular values below this fraction of the vectors' size are rounding errors."""


@dataclass(frozen=True, kw_only=True)
class HealthLimits:
    """Limits of healthy figures: `NAME_min` and `NAME_max` for figures of `Health`, each between 0 and 1.

    They are set to detect a collapse, not a merely poor representation. In 64 to 768 dimensions, singular values that
    fall like k^-1 or k^-1.5, or by a factor of e every ten dimensions, are still healthy, as is one mean direction that
    all vectors share up to a cosine of 0.997.

    Uniformity has no limit because it tells the same as spread. Alignment, retrieval and the position share within
    tiles have none because their right values depend on the looks, the objective and the ground.

    Raises:
        RecordError: A limit is not between 0 and 1.
    """

    finite_frac_min: float = 1.0
    """Any NaN in an observed patch is a fault."""
    spread_min: float = 0.05
    """A twentieth of the spread of independent vectors: two vectors then have a mean cosine of 0.9975."""
    rank_frac_min: float = 0.015
    """4 of 256 dimensions, or 12 of 768. With fewer dimensions or samples, `top_frac_max` reacts first."""
    top_frac_max: float = 0.95
    """Above this, one direction holds nearly all variance. Noise raises the effective rank of such vectors, but cannot
    hide this."""
    dead_frac_max: float = 0.5
    """Half of the dimensions carry no information."""
    position_share_max: float = 0.8
    """Four fifths of the variance are the same in every tile."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value <= 1:
                raise RecordError(item.name, value, "a share from 0 to 1")

    def of(self, figure: str) -> tuple[float | None, float | None]:
        """Return the smallest and the largest healthy value of a figure, None where there is no limit."""
        return getattr(self, f"{figure}_min", None), getattr(self, f"{figure}_max", None)


@dataclass(frozen=True, kw_only=True)
class Health:
    """Figures of a representation, each explained at the function of its name or in `ABOUT`.

    A figure is None if its inputs were not given or are too few.
    """

    num_samples: int
    """Number of vectors that were used."""
    finite_frac: float
    """Fraction of the observed patches whose vectors are finite."""
    effective_rank: float | None = None
    rank_frac: float | None = None
    """Effective rank divided by its highest possible value: the dimensions, or the samples minus one if fewer."""
    top_frac: float | None = None
    spread: float | None = None
    dead_frac: float | None = None
    uniformity: float | None = None
    alignment: float | None = None
    position_share: float | None = None
    position_within_share: float | None = None
    """The same for the variance within tiles: 1 if the patches of a tile differ by their place alone."""
    retrieval: float | None = None
    retrieval_chance: float | None = None
    """Retrieval by chance."""

    def figures(self) -> dict[str, float]:
        """Return the measured figures by name, without the number of samples."""
        named = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "num_samples"}
        return {name: float(value) for name, value in named.items() if value is not None}

    def problems(self, limits: HealthLimits | None = None) -> tuple[str, ...]:
        """Describe every figure beyond its limit: the figure, the limit, what it means and what to try."""
        return problems(self.figures(), limits)


def problems(figures: dict[str, float], limits: HealthLimits | None = None) -> tuple[str, ...]:
    """Do the same as `Health.problems` for figures by name, such as those from a log. NaN is beyond every limit."""
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
    "finite_frac": "share of the patches with data whose vectors are finite",
    "effective_rank": "number of directions that the vectors use; 1 for constant ones, at most the dimensions",
    "rank_frac": "effective rank as a share of the highest possible: the number of dimensions or, if smaller, of "
    "samples minus one",
    "top_frac": "share of the variance along the main direction; 1 for constant vectors",
    "spread": "how far vectors scaled to length 1 differ: 0 for constant ones, 1 for random directions",
    "dead_frac": "share of the dimensions that are nearly the same for every patch",
    "uniformity": "how evenly directions fill the sphere: 0 for constant vectors, towards -4 for independent ones",
    "alignment": "mean squared distance, at length 1, of embeddings of a patch from all and from half the dates: 0 for "
    "equal directions, 2 for unrelated ones; also 0 for constant vectors",
    "position_share": "share of the variance that the position in the tile explains: 1 for vectors that are the same "
    "in every tile",
    "position_within_share": "the same for the variance within tiles: 1 if patches of a tile differ only by their "
    "position",
    "retrieval": "how often the most similar token of another modality is of the same patch",
    "neighbours": "how often the nearest patch of other tiles has the class of a patch, averaged over classes",
    "linear": "how often a linear probe predicts the class of a patch, averaged over classes",
}
"""One line about each figure of health. The last two are about the target that is watched."""
MOSTLY_POSITION = 0.5
"""Position share within tiles above which patches differ mostly by position. It is reported, but is not an alarm, see
`HealthLimits`."""

_COLLAPSE = (
    "Try some weight on the contrastive loss (without it, nothing keeps vectors apart), a teacher momentum closer to "
    "1, a lower learning rate or a longer warm-up."
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
    """Measure the health of patch embeddings of held-out tiles of one size.

    Vectors that are not finite are counted and left out, so no figure is NaN.

    Args:
        patch: (batch patch_row patch_col dim), embeddings from one look at the tiles.
        valid: (batch patch_row patch_col), True where a patch was observed. None if all were.
        second: Embeddings of the same patches from another look (other dates or modalities), for the alignment.
        tokens: Pairs of the tokens (sample dim) of two modalities for the same patches, for the retrieval.

    Raises:
        InputError: The axes are wrong, or fewer than two patches were observed.
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
        values = _singular_values(features)
        rank, highest = _rank(values), min(len(features) - 1, features.shape[1])
        found |= {"effective_rank": rank, "rank_frac": rank / highest, "top_frac": _top(values)}
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
        found["retrieval"], found["retrieval_chance"] = (fmean(each) for each in zip(*rates, strict=True))
    return Health(**found)


def _share(claims: Tensor) -> float:
    return float(claims.double().mean())


def _part(features: Tensor) -> Tensor:
    """Return at most MAX_SAMPLES rows, always the same ones."""
    import torch

    if len(features) <= MAX_SAMPLES:
        return features
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MAX_SAMPLES]
    return features[order.to(features.device)]


def effective_rank(features: Tensor) -> float:
    """Compute how many directions vectors (sample dim) use: exp(-sum p log p), with p = singular values / their sum.

    The singular values are those of the centred vectors (Roy and Vetterli 2007, eq. 3; as RankMe, Garrido et al. 2023,
    but centred, so that a mean shared by all vectors is no direction). The rank of constant vectors is 1. The highest
    rank is the dimensions, or the samples minus one if fewer. Noise of small variance in many dimensions raises it, see
    `top_frac`.
    """
    return _rank(_singular_values(features))


def _rank(values: Tensor) -> float:
    shares = values[values > 0] / values.sum()
    return float((-(shares * shares.log()).sum()).exp())


def top_frac(features: Tensor) -> float:
    """Compute the fraction of the variance of vectors (sample dim) along the direction of most variance.

    It is 1 for constant vectors.
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
    """Compute the standard deviation of vectors (sample dim) scaled to length 1, mean over dimensions, times sqrt(dim).

    It is 1 for independent directions and 0 for constant ones (Chen and He 2021, SimSiam, section 4.1). If all pairs
    have the cosine c, it is sqrt(1 - c).
    """
    return float(_deviations(features).mean())


def dead_frac(features: Tensor) -> float:
    """Compute the fraction of the dimensions with a spread below `DEAD_SPREAD`."""
    return _share(_deviations(features) < DEAD_SPREAD)


def _deviations(features: Tensor) -> Tensor:
    unit = directions(checked("features", features, fewest=2).cpu().double())
    return unit.std(0, correction=0) * unit.shape[1] ** 0.5


def uniformity(features: Tensor) -> float:
    """Compute the log of the mean over pairs of exp(-2 |x - y|^2), for vectors (sample dim) of length 1.

    It is 0 for constant vectors and approaches -4 for independent ones; lower is more uniform (Wang and Isola 2020,
    eq. 2, with their t = 2).
    """
    unit = directions(checked("features", features, fewest=2).cpu().double())
    square = unit.square().sum(1)  # 1, or 0 for a vector of zeros
    # Each vector paired with itself adds exp(0), which is subtracted below.
    total = sum(
        float((-2 * (square[rows, None] + square - 2 * unit[rows] @ unit.T).clamp_min(0)).exp().sum())
        for rows in slices(len(unit), len(unit))
    )
    pairs = len(unit) * (len(unit) - 1)
    return min(0.0, math.log((total - len(unit)) / pairs))


def alignment(first: Tensor, second: Tensor) -> float:
    """Compute the mean of |x - y|^2 between two looks (sample dim) at the same samples, with vectors of length 1.

    It is 0 for equal directions and 2 for unrelated ones (Wang and Isola 2020, eq. 1). Constant vectors are aligned,
    too, so read it together with `uniformity`.
    """
    one, other = (directions(part.cpu().double()) for part in _paired(first, second))
    return float(((one - other) ** 2).sum(1).mean())


def position_share(patch: Tensor, *, within_tiles: bool = False) -> float:
    """Compute the fraction of the variance of patch embeddings that is explained by the position in the tile.

    This is epsilon squared (Kelley 1935) of an analysis of variance without replication, with positions as the factor
    and tiles as blocks: the sum of squares of the positions' means, minus what chance adds to it (its degrees of
    freedom times the mean square of the remainder), divided by the total. It is near 0 for vectors that do not depend
    on position, however few or smooth the tiles are, 1 for vectors that are the same in every tile, and 0 for constant
    ones.

    Args:
        patch: (batch patch_row patch_col dim), patch embeddings of independent tiles.
        within_tiles: Use the variance that is left after subtracting the mean of every tile.
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
    """Compute how often a patch is found through another modality, and how often it would be by chance.

    A patch is found if, among the tokens of all patches in the other modality (sample dim), that of the same patch has
    the highest cosine. The rate is the mean of both directions. By chance it is 1 / samples.
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
