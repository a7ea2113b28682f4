"""Weight updates during the backward pass, so that gradients need not all be held at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def update_in_backward(optimiser: torch.optim.AdamW, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
    """Update each weight as soon as its gradient is complete, and free the gradient.

    AdamW treats every weight on its own, so the result is the same as that of one update after the backward pass.
    `optimiser.step` then has nothing left to do.

    Args:
        optimiser: AdamW, whose learning rates and moments are used and updated in place.
        seen: Called with each weight's gradient before the update.

    Returns:
        The hooks, to be removed when training ends.
    """
    return [
        weight.register_post_accumulate_grad_hook(_update_of(weight, group, optimiser, seen))
        for group in optimiser.param_groups
        for weight in group["params"]
    ]


def _update_of(
    weight: nn.Parameter, group: dict[str, object], optimiser: torch.optim.AdamW, seen: Callable[[Tensor], None]
) -> Callable[[Tensor], None]:
    alone = torch.optim.AdamW([{**group, "params": [weight]}])
    alone.state = optimiser.state

    def update(_: Tensor) -> None:
        assert weight.grad is not None
        seen(weight.grad)
        alone.param_groups[0]["lr"] = group["lr"]
        alone.step()
        weight.grad = None

    return update
