"""Modules prepared for a pass without gradients: the same computation, with weights combined and cast beforehand.

A pass uses prepared ("ready") modules unless it needs gradients or is being exported. They are not kept between passes,
so that weights are never outdated, except within `keeping_ready`. Under `precision.multiplying("bf16")`, their matrices
are in bfloat16 and residual sums in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.optimizer import register_optimizer_step_post_hook

from anysat.model.chunks import num_workers
from anysat.model.layers import (
    HAS_FUSED_LINEAR,
    ChannelNorm,
    RelativePosition,
    RowLayers,
    is_plain,
    is_plain_linear,
    linear,
)
from anysat.model.projectors import ImageProjector, TemporalPooling

_log = logging.getLogger(__name__)

Step = Callable[[Tensor], Tensor]

FEWEST_INPUTS = 32
"""Layers with fewer inputs, those for the bands of a sensor, multiply in the type of the weights: bf16 is no faster."""
LEAST_GAIN = 1e-12
"""Replaces a norm's weight that is closer to zero, so that one can divide by it."""


@contextmanager
def made_ready(*modules: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the modules that this pass should use.

    They are ready ones, or the given ones if the pass needs gradients, is exported, or the modules are special.
    """
    learns, is_exported = torch.is_grad_enabled(), torch.compiler.is_exporting()
    if learns and (kept := _keeping()) is not None:  # weights will change
        kept.clear()
    if learns or is_exported or any(map(is_special, modules)):
        special = "parts are compiled, hooked, changed or foreign"
        why = "it learns" if learns else "it is exported" if is_exported else special
        _log.debug("%s runs as it is: %s", type(modules[0]).__name__, why)
        yield modules
        return
    device = _device_of(modules[0]).type
    mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    _log.debug("%s runs made ready, products in %s", type(modules[0]).__name__, mixed or "the type of its weights")
    with torch.autocast(device, enabled=False):
        yield tuple(_made(module, mixed) for module in modules)


def num_workers_of(modules: Sequence[nn.Module], made: Sequence[nn.Module]) -> int:
    """Return the number of Python threads that may share a pass of `modules`, of which `made` are the ready ones.

    It is 1 if modules are not ready, or if dropout may be active, whose draws depend on the order of calls.
    """
    draws = any(part.training for module in modules for part in module.modules())
    is_ready = all(one is not module for one, module in zip(made, modules, strict=True))
    return num_workers(_device_of(modules[0])) if is_ready and not draws else 1


def _device_of(module: nn.Module) -> torch.device:
    """Where a module's weights lie; replicas, whose weights are plain tensors, have none that could be asked."""
    return next(module.parameters()).device


class _Made(NamedTuple):
    """A ready module, and what it was made from."""

    module: nn.Module
    """The original module, held so that no other can get the same id."""
    made_of: tuple[Any, ...]
    ready: nn.Module


class _Kept(dict[tuple[int, torch.dtype | None], _Made]):
    """The ready modules that one `keeping_ready` block keeps, and the block around it."""

    def __init__(self, around: _Kept | None) -> None:
        super().__init__()
        self.around, self.has_ended = around, False


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


def _keeping() -> _Kept | None:
    """Return what the innermost active `keeping_ready` block keeps.

    Generators may end in any order, and in other contexts than they started in; blocks that have ended are skipped.
    """
    kept = _KEPT.get()
    while kept is not None and kept.has_ended:
        kept = kept.around
    return kept


@contextmanager
def keeping_ready() -> Iterator[None]:
    """Share prepared modules between all passes within a `with` block, to make loops over many tiles faster.

    Modules are prepared again if their weights are replaced, loaded, or changed in place or by an optimiser step, and
    after a pass with gradients. Other changes go unnoticed, so do not make them inside the block: changes through
    `.data`, by kernels that do not update torch's version counters, of memory shared with something else, or of
    anything that is not a weight, such as the `eps` of a norm or an activation. In bf16, products may be summed in
    another order inside the block than outside.
    """
    kept = _Kept(_keeping())
    _KEPT.set(kept)
    # Fused optimiser steps do not update the version counters of weights.
    watching = register_optimizer_step_post_hook(lambda *_: kept.clear())
    try:
        yield
    finally:
        watching.remove()
        kept.clear()
        kept.has_ended = True
        if _KEPT.get() is kept:
            _KEPT.set(_keeping())


def _made(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    kept, weights = _keeping(), list(module.parameters())
    if kept is None:
        return ready(module, dtype)
    if any(weight.is_inference() for weight in weights):  # no counter shows their changes
        token = _KEPT.set(None)
        try:
            return ready(module, dtype)
        finally:
            _KEPT.reset(token)
    modes = tuple(part.training for part in module.modules())
    made_of = (modes, *((id(weight), weight.data_ptr(), weight._version) for weight in weights))
    found = kept.get((id(module), dtype))
    if found is None or found.made_of != made_of:
        kept[id(module), dtype] = found = _Made(module, made_of, ready(module, dtype))
    return found.ready


def is_special(module: nn.Module) -> bool:
    """Whether a module cannot be made ready.

    This is so if parts of it are compiled, hooked, of foreign classes or of a kind that is not made ready, if its
    weights are distributed over several processes, or if it has tensors that are not parameters.
    """
    for part in module.modules():
        if part._compiled_call_impl is not None or hasattr(type(part), "unshard") or not is_plain(part):
            return True
        if not _is_known(part) or any(isinstance(value, Tensor) for value in vars(part).values()):
            return True
    return any(type(weight) is not nn.Parameter for weight in module.parameters())


def _is_known(part: nn.Module) -> bool:
    """Whether a part has no weights, is of ours, is a parametrisation, or is a known torch layer with all weights."""
    is_ours = type(part).__module__.startswith("anysat.")
    if not part._parameters or is_ours or isinstance(part, ParametrizationList):
        return True
    has_all = all(weight is not None for weight in part._parameters.values())
    return isinstance(part, nn.Conv2d) or (has_all and isinstance(part, nn.Linear | nn.LayerNorm))


def ready(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return a ready copy of a module, which shares what need not change.

    `dtype` is the type of its matrices; None keeps that of the weights.
    """
    if isinstance(module, RowLayers) and ReadyRows.fits(module):
        return ReadyRows(module, dtype)
    if isinstance(module, nn.Linear):
        return ReadyLinear(module, dtype or module.weight.dtype)
    if isinstance(module, nn.LayerNorm) and dtype is not None:
        return ReadyNorm(module)
    if isinstance(module, TemporalPooling):  # combines its own weights, in their type
        return module
    found = copy(module)
    found._modules = {name: None if child is None else ready(child, dtype) for name, child in module._modules.items()}
    if dtype is not None and isinstance(module, RelativePosition):
        found._parameters = {"weight": module.weight.to(dtype)}  # type: ignore[dict-item]
    if isinstance(module, ImageProjector) and module.is_embedding_plain and is_plain_linear(module.mlp[0]):
        found.__dict__["project"] = _ready_image(module, module.mlp[0], dtype)
    return found


def _ready_image(projector: ImageProjector, first: nn.Linear, dtype: torch.dtype | None) -> Step:
    """Combine the convolution with the first layer: both are linear."""
    _, *others = projector.mlp
    joined = _linear(first.weight @ projector.embed.weight.flatten(1), first.bias, dtype or first.weight.dtype)
    then = nn.Sequential(*(ready(other, dtype) for other in others))
    return lambda pixels: then(joined(pixels))


class ReadyLinear(nn.Linear):
    """A linear layer with weights, and therefore outputs, of another type."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: the weights are plain tensors
        self.__dict__ |= {"weight": _stored(layer.weight, dtype), "bias": layer.bias.to(dtype)}

    def forward(self, x: Float[Tensor, "*row in"]) -> Float[Tensor, "*row out"]:
        """Apply the layer."""
        return linear(x, self.weight, self.bias)


class ReadyNorm(nn.Module):
    """A layer norm whose weights stay in their type, whatever the type of its input. CPUs can mix types."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "*row dim"]) -> Float[Tensor, "*row dim"]:
        """Normalise each row."""
        return self.norm(x if x.device.type == "cpu" else x.to(self.norm.weight.dtype))


class ReadyRows(nn.Module):
    """Linear layers, norms over channels and what is between, which read the rows of each norm twice, not five times.

    A norm needs no mean if the mean of each group is subtracted from the weights of the layer before it. Its weight w
    and shift b are moved to the layer after it: with the sign of w moved to the layer before, `relu(w z + b)` is
    `|w| (max(z, -b / |w|) + b / |w|)`, where the factor and the sum are both linear.
    """

    @staticmethod
    def fits(layers: RowLayers) -> bool:
        """Whether all layers are of these kinds and no dropout is active."""
        known = all(isinstance(one, nn.Linear | ChannelNorm) or not [*one.parameters()] for one in layers)
        return known and not any(part.training for part in layers.modules())

    def __init__(self, layers: RowLayers, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.steps: list[Step] = []
        rest = [layer for layer in layers if not isinstance(layer, nn.Dropout)]
        waiting: _Waiting | None = None
        while rest:
            layer, *rest = rest
            if not isinstance(layer, nn.Linear):
                self.steps.append(layer)
                continue
            own = layer.weight.dtype if dtype is None or layer.in_features < FEWEST_INPUTS else dtype
            weight, bias = (layer.weight, layer.bias) if waiting is None else waiting.joined(layer, own)
            waiting, norm = None, rest[0] if rest else None
            if not isinstance(norm, ChannelNorm):
                self.steps.append(_linear(weight, bias, own))
                continue
            if [*map(type, rest[1:3])] == [nn.ReLU, nn.Linear]:
                waiting = _Waiting.of(norm, dtype or weight.dtype)
                rest, sign = rest[2:], torch.where(norm.weight < 0, -1.0, 1.0)
            else:
                rest, sign = rest[1:], None
            then = _affine(norm, dtype or weight.dtype) if waiting is None else waiting.clamped
            self.steps += [
                _linear(*_without_mean(weight, bias, norm, sign), own, dtype),
                _scaled(norm, then, dtype or weight.dtype),
            ]

    def forward(self, x: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """Apply the layers one after another."""
        for step in self.steps:
            x = step(x)
        return x


class _Waiting(NamedTuple):
    """The part of a norm's weight and shift that is moved to the next layer."""

    gain: Tensor
    """The factor |w|."""
    least: Tensor
    """The lower limit -b / |w|, in the type of the rows."""

    @classmethod
    def of(cls, norm: ChannelNorm, dtype: torch.dtype) -> _Waiting:
        exact = torch.promote_types(norm.weight.dtype, torch.float32)  # a type in which small numbers are not 0
        weight, bias = norm.weight.to(exact), norm.bias.to(exact)
        least = bias.abs() * (2 / torch.finfo(dtype).max)  # the division below must not overflow
        gain = weight.abs().maximum(least.clamp_min(LEAST_GAIN))
        return cls(gain, (-bias / gain).to(dtype))

    def clamped(self, x: Tensor) -> Tensor:
        """Apply the lower limit, in place."""
        return torch.clamp_min(x, self.least, out=x)

    def joined(self, layer: nn.Linear, own: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the next layer's weights and bias. The bias uses the rounded weights and the rounded limit."""
        weight = layer.weight * self.gain
        return weight, layer.bias - weight.to(own).to(weight.dtype) @ self.least.to(weight.dtype)


def _affine(norm: ChannelNorm, dtype: torch.dtype) -> Step:
    weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)
    return lambda x: torch.addcmul(bias, x, weight, out=x)


def _linear(weight: Tensor, bias: Tensor, own: torch.dtype, out: torch.dtype | None = None) -> Step:
    """Return a linear layer that multiplies in the type `own` and returns the type `out`, by default the same."""
    weight, bias = _stored(weight, own), bias.to(own).contiguous()
    return lambda x: linear(x, weight, bias).to(out or own)


def _stored(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix in a type.

    If it is cast to bfloat16 on a CPU and kept, it is stored by column, which oneDNN multiplies faster. For a single
    pass over a small tile, this would not be worth the copy.
    """
    is_cast = dtype == torch.bfloat16 != weight.dtype and weight.device.type == "cpu"
    by_column = is_cast and HAS_FUSED_LINEAR and _keeping() is not None
    weight = weight.to(dtype)
    return weight.t().contiguous().t() if by_column else weight.contiguous()


def _without_mean(weight: Tensor, bias: Tensor, norm: ChannelNorm, sign: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a linear layer whose outputs have mean 0 in each group, with signs changed by `sign`."""
    both = torch.cat([weight, bias[:, None]], dim=1)
    groups = both.view(norm.num_groups, -1, both.shape[1])
    both = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
    both = both if sign is None else both * sign[:, None].to(both.dtype)
    return both[:, :-1], both[:, -1]


SCALED_TOGETHER = 2**20
"""How many numbers a norm processes at a time, because it reads them several times: what fits the cache of a core."""


def _scaled(norm: ChannelNorm, then: Step, dtype: torch.dtype) -> Step:
    """Return what remains of a norm of rows whose groups have mean 0, followed by `then`; in place."""
    groups, width = norm.num_groups, norm.num_channels // norm.num_groups
    wider = torch.float32 if dtype == torch.float16 else None  # of numbers above 256, squares overflow in it
    least = norm.weight.new_tensor(norm.eps, dtype=wider or dtype)

    def run(x: Tensor) -> Tensor:
        for some in torch.split(x, max(1, SCALED_TOGETHER // x.shape[1])):
            parts = some.view(-1, groups, width)
            length = torch.linalg.vector_norm(parts, dim=-1, dtype=wider)
            square = torch.addcmul(least, length, length, value=1 / width)
            scale = square.rsqrt().add_(square, alpha=0)  # infinity gives NaN, not a scale of 0 that would hide it
            parts.mul_(scale[..., None].to(dtype))
            then(some)
        return x

    return run
