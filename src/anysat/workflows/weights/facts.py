"""Facts about weights, including traits that reveal how they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from anysat.batch import Batch, Tile
from anysat.errors import RecordError
from anysat.model.encoder import AnySat
from anysat.workflows.embed import EmbedConfig


def weight_facts(model: AnySat) -> dict[str, str]:
    """Return facts about weights, and two traits that reveal how they were trained."""
    c = model.config
    tables = [p.detach() for name, p in model.named_parameters() if name.endswith("relative.weight")]
    never_used, used = (
        sum(float(t[..., part].std()) for t in tables) / len(tables) for part in (slice(3), slice(3, 8))
    )
    fills = {name.split(".")[1]: p.item() for name, p in model.named_parameters() if name.endswith(".fill")}
    learned = ", ".join(f"{key} {value:.3g}" for key, value in fills.items() if value != 0)
    return {
        **model.provenance,
        "size": f"dim {c.dim}, depth {c.depth}, {c.num_heads} heads",
        "tensors": f"{len(model.state_dict()):,}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "modalities": ", ".join(m.key for m in c.modalities),
        "conventions": f"subpatch_order {c.subpatch_order}, rpe_heads {c.rpe_heads}, "
        f"fusion_attention {c.fusion_attention}, {c.day_convention}",
        "statistics": "none"
        if model.normaliser is None
        else f"{', '.join(model.normaliser.statistics)} ({model.normaliser.source})",
        "fill of missing values": learned or "0 for every series, as if never trained",
        "relative-position tables": f"spread {used:.3g} in used entries, {never_used:.3g} in those never reached",
    }


def attention_agreement(
    model: AnySat,
    inputs: list[str],
    patch_size_m: float,
    dataset: str | None = None,
    trained: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Compare the patches of each pair of sensors, encoded separately, under both readings of the fusion attention.

    `trained` is the description of the training files, see `open_sources`.

    Raises:
        RecordError: There are fewer than two sensors whose pixels lie in patches.
        AnySatError: The inputs cannot be used, see `embed`.
    """
    from anysat.workflows.embed.tile import read_tile  # reading files needs the geo extra, the other facts do not

    asked = EmbedConfig(inputs=inputs, out="tile", patch_size_m=patch_size_m, dense=None, dataset=dataset)
    tile, _ = read_tile(asked, model, trained=trained)
    alone = [
        Batch.of([Tile.of(o, dataset=tile.dataset)]) for o in tile.observations.values() if not o.modality.covers_tile
    ]
    if len(alone) < 2:
        raise RecordError("--inputs", inputs, "two sensors or more that lie in patches")
    found = {}
    for attention in ("tokens", "within_token"):
        other = AnySat(replace(model.config, fusion_attention=attention), normaliser=model.normaliser).eval()
        other.load_state_dict(model.state_dict())
        with torch.inference_mode():
            seen = [(next(iter(b.observations)), other.encode(b, patch_size_m)) for b in alone]
        found[f"agreement with fusion_attention {attention}"] = ", ".join(
            f"{key} and {key_b} {_centred_cosine(one.patch, two.patch):.3f}"
            for (key, one), (key_b, two) in combinations(seen, 2)
        )
    return found


def _centred_cosine(one: Tensor, two: Tensor) -> float:
    """Return the mean cosine similarity of two maps of vectors, each minus its mean, where both are finite."""
    both = one.isfinite().all(-1) & two.isfinite().all(-1)
    one, two = (vectors[both] - vectors[both].mean(0) for vectors in (one, two))
    return float(torch.nn.functional.cosine_similarity(one, two, dim=-1).mean())
