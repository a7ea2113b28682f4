"""Options of the pretraining objective. This module does not import torch, so that help loads quickly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from anysat.choices import check_choices
from anysat.errors import RecordError

Pattern = Literal["blocks", "random"]
Goal = Literal["teacher", "projection"]
Distance = Literal["smooth_l1", "l2"]
ProjectionLoss = Literal["discriminate", "regress"]


def _check(table: str, config: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise RecordError(f"{table}.{name}", getattr(config, name), expected)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """What is hidden from the student (paper section 3.2).

    Raises:
        RecordError: A field has a value that is not possible.
    """

    pattern: Pattern = "blocks"
    """`blocks` predicts rectangles (targets) from the rest of one large rectangle (context). `random` predicts
    scattered patches from other scattered patches (an ablation in the paper)."""
    num_blocks: int = 4
    """Number of target rectangles per tile."""
    block_area_frac: tuple[float, float] = (0.2, 0.8)
    """Smallest and largest area of a target rectangle, as a fraction of the tile."""
    block_aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest ratio of height to width of a target rectangle, relative to that of the tile."""
    context_area_frac: tuple[float, float] = (0.85, 1.0)
    """Smallest and largest area of the context rectangle as a fraction of the tile, before the targets are removed."""
    random_context_frac: float = 0.2
    """Fraction of the patches that are context with pattern `random`."""
    hide_modalities_frac: float = 0.5
    """Fraction of the context's modality tokens that are hidden, not counting one in each patch that is always kept."""
    keep_dates_frac: tuple[float, float] = (0.5, 0.5)
    """Smallest and largest fraction of the dates of a series that the student sees, drawn for each batch and series. At
    least one date is kept."""

    def __post_init__(self) -> None:
        check = partial(_check, "masking", self)
        check_choices(self, "masking.")
        for name in ("block_area_frac", "block_aspect", "context_area_frac", "keep_dates_frac"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check("num_blocks", self.num_blocks >= 1, "one or more")
        for name in ("block_area_frac", "context_area_frac", "keep_dates_frac"):
            pair = getattr(self, name)
            check(name, len(pair) == 2 and 0 < pair[0] <= pair[1] <= 1, "two shares above 0, the smaller first")
        pair = self.block_aspect
        check("block_aspect", len(pair) == 2 and 0 < pair[0] <= pair[1], "two positive ratios, the smaller first")
        check("random_context_frac", 0 < self.random_context_frac < 1, "a share between 0 and 1")
        check("hide_modalities_frac", 0 <= self.hide_modalities_frac <= 1, "a share")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned from the hidden parts (paper section 3.2).

    Raises:
        RecordError: A field has a value that is not possible.
    """

    goal: Goal = "teacher"
    """What is predicted for hidden patches. `teacher`: their features by an averaged copy of the encoder, which sees
    everything (JEPA, the paper). `projection`: frozen random projections of their pixels, to be told apart from those
    of other patches (patch discrimination). As these targets never change, they cannot collapse with the encoder."""
    predict_weight: float = 1.0
    """Weight of the prediction loss."""
    complete_weight: float = 1.0
    """Weight of the same loss for the context patches, predicted from their own fused tokens: the student misses some
    of their dates and modalities. 0 as published, which predicts only wholly hidden patches."""
    dense_weight: float = 1.0
    """Weight of predicting from each sub-patch's token what its pixels hold over all dates, including those hidden from
    the student. 0 as published, which trains nothing on the tokens after the last spatial block, though they are half
    of the dense output."""
    harmonics: int = 2
    """Number of harmonics of the year that describe the pixels of a series, besides mean and standard deviation, for
    `dense_weight` and the goal `projection`: 2 resolve a season, 6 a month."""
    contrast_weight: float = 1.0
    """Weight of the contrast across modalities (paper equation 2)."""
    dates_weight: float = 0.0
    """Weight of the same contrast between two halves of the dates of a series (every other date), in each modality
    separately, after seasonal contrast (SeCo, 2021): it rewards what identifies a patch whichever dates were seen. It
    also works for data of one sensor, where modalities cannot be contrasted. 0 as published."""
    spread_weight: float = 1.0
    """Weight of keeping the student's tokens, both fused ones and those of each modality, spread over all features
    (variance and covariance terms of VICReg). 0 as published."""
    temperature: float = 0.1
    """Temperature of the contrast."""
    centred: bool = True
    """Subtract what all patches of a batch have in common, both from each modality's tokens before the contrast and
    from the teacher's features, which are then scaled to unit spread. False as published: while the common part is
    large, a small encoder comes to give every patch the same vector and does not recover."""
    gather_negatives: bool = False
    """Contrast modalities with the tiles of all devices, not only with those of the same device."""
    distance: Distance = "smooth_l1"
    """Distance between predictions and the teacher's features: `smooth_l1` (the published code) or `l2`, squared (the
    paper)."""
    momentum: float = 0.996
    """Momentum of the teacher at the first step."""
    final_momentum: float = 1.0
    """Momentum that the linear schedule would reach one step after the last. The paper keeps the momentum constant."""
    projection_loss: ProjectionLoss = "discriminate"
    """`discriminate` finds which of all patches a projection belongs to (patch discrimination). `regress` predicts its
    numbers, each scaled to unit spread."""
    projection_temperature: float = 0.1
    """Temperature of the discrimination of projections."""
    same_target_cosine: float = 0.999
    """Projections with a higher cosine than this count as the same patch and are not told apart."""
    predictor_depth: int = 4
    """Number of blocks of the predictor."""
    predictor_heads: int = 16
    """Number of attention heads of the predictor."""

    def __post_init__(self) -> None:
        check = partial(_check, "objective", self)
        check_choices(self, "objective.")
        goals = [f"{name}_weight" for name in ("predict", "complete", "dense", "contrast", "dates")]
        for name in (*goals, "spread_weight"):
            check(name, getattr(self, name) >= 0, "0 or more")
        expected = "one of the weights of prediction, completion, dense, contrast and dates above 0"
        check("predict_weight", any(getattr(self, name) for name in goals), expected)
        check("harmonics", self.harmonics >= 1, "one or more")
        check("temperature", self.temperature > 0, "a positive number")
        check("momentum", 0 <= self.momentum <= 1, "between 0 and 1")
        check("final_momentum", 0 <= self.final_momentum <= 1, "between 0 and 1")
        check("projection_temperature", self.projection_temperature > 0, "a positive number")
        check("same_target_cosine", 0 < self.same_target_cosine <= 1, "a cosine above 0")
        check("predictor_depth", self.predictor_depth >= 1, "one or more")
        check("predictor_heads", self.predictor_heads >= 1, "one or more, a divisor of the width")
