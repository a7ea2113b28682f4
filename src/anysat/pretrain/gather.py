"""Exchange of tokens between processes that train together, as further negatives of the contrast."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional

_gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
"""The name since torch 2.13, else the older one."""


def from_other_ranks(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Gather the tokens of all other ranks, with gradients. Ranks may have different numbers of tokens.

    Args:
        tokens: (batch modality patch dim) of this rank.
        valid: (batch modality patch); None if all are valid.

    Returns:
        Tokens (other dim) and validity (other) of the other ranks; None for a single process.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    flat = tokens.flatten(0, 2)
    seen = flat.new_ones(len(flat), dtype=torch.bool) if valid is None else valid.flatten()
    most = torch.tensor(len(flat), device=flat.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if int(most) == 0:  # the same in all processes
        return flat, seen
    missing = int(most) - len(flat)
    padded = functional.pad(flat, (0, 0, 0, missing))
    everyone = distributed.group.WORLD
    assert everyone is not None, "there is a group, as checked above"
    gathered = _gather(padded, 0, everyone)
    all_tokens = gathered.unflatten(0, (-1, int(most)))
    all_seen = [torch.empty(int(most), dtype=torch.bool, device=flat.device) for _ in all_tokens]
    distributed.all_gather(all_seen, functional.pad(seen, (0, missing)))
    own = distributed.get_rank()
    others = [rank for rank in range(len(all_tokens)) if rank != own]
    return torch.cat([all_tokens[rank] for rank in others]), torch.cat([all_seen[rank] for rank in others])
