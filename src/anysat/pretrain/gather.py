"""Tokens of the other processes that train together, as further negatives of the contrast."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional


def from_other_ranks(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Tokens (other dim) and validity (other) of all other ranks, with gradients; None for a process alone.

    Ranks may have different numbers of tokens.

    Args:
        tokens: (batch modality patch dim) of this rank.
        valid: (batch modality patch), None when all are.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    flat = tokens.flatten(0, 2)
    seen = flat.new_ones(len(flat), dtype=torch.bool) if valid is None else valid.flatten()
    most = torch.tensor(len(flat), device=flat.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    missing = int(most) - len(flat)
    all_tokens = all_gather(functional.pad(flat, (0, 0, 0, missing)))  # type: ignore[no-untyped-call]
    all_seen = [torch.empty(int(most), dtype=torch.bool, device=flat.device) for _ in all_tokens]
    distributed.all_gather(all_seen, functional.pad(seen, (0, missing)))
    own = distributed.get_rank()
    others = [rank for rank in range(len(all_tokens)) if rank != own]
    return torch.cat([all_tokens[rank] for rank in others]), torch.cat([all_seen[rank] for rank in others])
