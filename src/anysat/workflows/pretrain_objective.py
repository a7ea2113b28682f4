"""What a pretraining trains: the student, new or from given weights, and its objective."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from anysat.errors import InputError
from anysat.model.checkpoint import load, read_weights
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.first_weights import init_isometric, isometric_std
from anysat.model.layers import init_transformer
from anysat.normalise import Normaliser
from anysat.pretrain.objective import Pretraining
from anysat.train.checkpoints import Checkpoint
from anysat.workflows.pretrain import PretrainConfig

if TYPE_CHECKING:
    from anysat.workflows.finetune import FinetuneConfig


def new_encoder(config: PretrainConfig | FinetuneConfig) -> AnySat:
    """The untrained encoder that a run begins with; the same for the same seed."""
    torch.manual_seed(config.seed)
    encoder = AnySat(config.model.config())
    if config.model.first_weights == "isometric":
        init_isometric(encoder)
    return encoder


def make_objective(config: PretrainConfig, normaliser: Normaliser, begun: Checkpoint | None = None) -> Pretraining:
    """The student, new or from given weights, and all that trains it; the same for the same seed.

    Where training goes on from a checkpoint, the weights it was begun with are not read again: they may be gone.

    Raises:
        InputError: the weights were made with other options.
    """
    torch.manual_seed(config.seed)
    if config.weights is None or begun is not None:
        student = new_encoder(config)
        student.normaliser = normaliser
    else:
        _check_made_alike(config.weights, config)
        student = load(config.weights, config=config.model.config(), statistics=normaliser)
    student.provenance = {
        "weights": f"pretrained by anysat, preset {config.preset}, goal {config.objective.goal}",
        "data": ", ".join(dict.fromkeys(part.dataset for part in config.data)),
        "seed": str(config.seed),
        "begun_from": config.weights or f"random weights, {config.model.first_weights}",
        **{name: student.provenance[name] for name in ("licence",) if name in student.provenance},
    }
    if begun is not None:
        student.provenance |= begun.encoder().provenance or {}
    objective = Pretraining(student, config.masking, config.objective, recompute=config.recompute)
    if config.model.first_weights == "isometric":
        init_transformer(objective.predictor, objective.predictor.blocks, isometric_std(config.model.dim))
    return objective


_HABITS = ("subpatch_order", "rpe_heads", "patch_position_unit_m")
"""What weights were trained with and their shapes do not show; files with the published names do not say it either.

How fusion attends is none: the published weights may have learned either way."""


def _check_made_alike(weights: str, config: PretrainConfig) -> None:
    """Refuse weights that other options than those of the run belong to."""
    asked = config.model.config()
    published = replace(asked, **{name: getattr(ModelConfig(), name) for name in _HABITS})
    kept = read_weights(weights).config or published
    differing = [name for name in asdict(kept) if getattr(kept, name) != getattr(asked, name)]
    if not differing:
        return
    told = [name for name in differing if name != "modalities"]
    options = [
        f"--model.{name.replace('_', '-')} {getattr(kept, name)}"
        for name in told
        if name in (*_HABITS, "fusion_attention")
    ]
    raise InputError(
        f"--weights {weights}", f"a model of the same {', '.join(differing)}",
        ", ".join(f"{name} {getattr(asked, name)}" for name in told) or "others",
        f"set the options of --model to those of the weights{': ' if options else ''}{' '.join(options)}",
    )  # fmt: skip
