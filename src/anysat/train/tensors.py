"""Conversion of a training's weights and optimiser state, which may be sharded, to whole tensors by name, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from anysat.model.checkpoint import check_fitting

_OBJECTIVE, _ADAM = "objective/", "adam/"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def training_tensors(objective: nn.Module, optimiser: torch.optim.Optimizer, *, wanted: bool) -> dict[str, Tensor]:
    """Return all tensors of a training, on the CPU and without shards. All ranks take part.

    On the CPU these are the tensors themselves, not copies: write them before the next step.

    Args:
        objective: The objective, whose state dict is included as it is, with the weights of a teacher.
        optimiser: AdamW. Its moments are included under the names of the parameters. A parameter that never had a
            gradient has none.
        wanted: False on ranks that do not write, which get nothing.
    """
    found: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in _remembered(objective, optimiser):
        whole = on_cpu(tensor, wanted)
        if whole is not None:  # safetensors needs copies of weights that have two names
            found[name] = whole.clone() if whole.data_ptr() in addresses else whole
            addresses.add(whole.data_ptr())
    return found


def _remembered(objective: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in objective.state_dict().items():
        yield _OBJECTIVE + name, tensor
    for name, parameter in objective.named_parameters():
        for moment in _MOMENTS if parameter in optimiser.state else ():
            yield f"{_ADAM}{moment}/{name}", optimiser.state[parameter][moment]


def on_cpu(tensor: Tensor, wanted: bool = True) -> Tensor | None:
    """Return a tensor on the CPU, gathered from all ranks if it is sharded."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous() if wanted else None


def load_objective(objective: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load the weights from `training_tensors` into an objective that is not sharded yet.

    Args:
        source: Where the tensors come from, for messages.

    Raises:
        WeightsError: The tensors do not fit the objective.
    """
    own = {name.removeprefix(_OBJECTIVE): t for name, t in tensors.items() if name.startswith(_OBJECTIVE)}
    check_fitting(source, own, objective.state_dict())
    objective.load_state_dict(own)


def load_moments(objective: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the moments from `training_tensors` into a new optimiser, sharded like the parameters.

    A fused update needs the step on the device of the parameter, the others need it on the CPU.
    """
    fused = {p for group in optimiser.param_groups if group.get("fused") for p in group["params"]}
    for name, parameter in objective.named_parameters():
        if f"{_ADAM}step/{name}" in tensors:
            step, *moments = (tensors[f"{_ADAM}{moment}/{name}"] for moment in _MOMENTS)
            placed = [_placed_like(moment, parameter) for moment in moments]
            step = step.to(parameter.device if parameter in fused else "cpu", copy=True)
            optimiser.state[parameter] = dict(zip(_MOMENTS, (step, *placed), strict=True))


def _placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    tensor = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor
