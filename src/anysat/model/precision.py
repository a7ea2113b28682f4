"""The device of computations, and the number type of matrix products.

Torch is imported only when needed, because the command-line help uses these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, get_args

from anysat.errors import InputError, RecordError, UnknownNameError

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bf16"]
AnyPrecision = Literal["auto", "float32", "bf16"]
PRECISIONS = get_args(AnyPrecision)


def find_device(name: str | torch.device, option: str = "--device") -> torch.device:
    """Return the device for a name. `auto` is the first GPU that torch sees, or else the CPU.

    `option` is what the user gave the name to, for messages.

    Raises:
        RecordError: This machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        problem = str(error).split("\n")[0]
        raise RecordError(option, name, f"a device of this machine such as cpu ({problem})") from error


def find_precision(name: str, device: torch.device) -> Precision:
    """Return the precision for a name. `auto` is bf16 if the device multiplies it faster, or else float32.

    Raises:
        UnknownNameError: The name is none of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise UnknownNameError("precision", name, PRECISIONS)
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "float32"
    return "bf16" if name == "bf16" else "float32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16, as CPUs with AMX and NVIDIA GPUs since Ampere do."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


@contextmanager
def multiplying(
    precision: Precision | None, device: torch.device, weights: torch.dtype | None = None
) -> Iterator[None]:
    """Multiply matrices in a given precision within a `with` block.

    Sums, norms and the values between layers stay in the type of the weights.

    Args:
        precision: `float32` or `bf16`. None leaves the choice to an enclosing `torch.autocast`.
        weights: Type of the weights, if known.

    Raises:
        UnknownNameError: There is no such precision.
        InputError: Weights of this type cannot be multiplied in bf16.
    """
    import torch

    if precision not in (None, "float32", "bf16"):
        raise UnknownNameError("precision", str(precision), get_args(Precision))
    if precision == "bf16" and weights not in (None, torch.float32, torch.bfloat16):
        raise InputError("precision bf16", "weights in float32 or bfloat16", weights, "call `.float()` on the model")
    in_bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with nullcontext() if precision is None else in_bf16:
        yield
