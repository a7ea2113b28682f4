"""Where is computed, and in which type of numbers matrices are multiplied.

Torch is imported where it multiplies, not before: help lists these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, get_args

from anysat.errors import InputError, RecordError, UnknownNameError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bf16"]
PRECISIONS = ("auto", "float32", "bf16")


def find_device(name: str) -> torch.device:
    """The device that a name stands for: `auto` is the first graphics card where torch sees one, else the processor.

    Raises:
        RecordError: this machine does not have it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        problem = str(error).split("\n")[0]
        raise RecordError("--device", name, f"a device of this machine such as cpu ({problem})") from error


def find_precision(name: str, device: torch.device) -> Precision:
    """The type that a name stands for: `auto` is bf16 where the device multiplies it faster, else float32.

    Raises:
        UnknownNameError: it is none of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise UnknownNameError("precision", name, PRECISIONS)
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "float32"
    return "bf16" if name == "bf16" else "float32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16: processors with AMX, graphics cards since Ampere."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


@contextmanager
def multiplying(
    precision: Precision | None, device: torch.device, weights: torch.dtype | None = None
) -> Iterator[None]:
    """Matrices are multiplied in this type; sums, norms and what lies between layers stay in that of the weights.

    None leaves it to the `torch.autocast` around. `weights` is their type, where it is known.

    Raises:
        UnknownNameError: it is none of them.
        InputError: weights of this type are not multiplied in bf16.
    """
    import torch

    if precision not in (None, "float32", "bf16"):
        raise UnknownNameError("precision", str(precision), get_args(Precision))
    if precision == "bf16" and weights not in (None, torch.float32, torch.bfloat16):
        raise InputError("precision bf16", "weights in float32 or bfloat16", weights, "call `.float()` of the model")
    in_bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with nullcontext() if precision is None else in_bf16:
        yield
