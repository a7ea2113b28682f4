"""Entry points for `torch.hub.load(<this repository>, "anysat", source="local" or "github")`."""

import sys
from pathlib import Path

dependencies = ["torch", "numpy", "einops", "safetensors", "huggingface_hub", "jaxtyping", "yaml"]

sys.path.insert(0, str(Path(__file__).parent / "src"))

import torch  # noqa: E402

from anysat.errors import InputError, UnknownNameError  # noqa: E402
from anysat.model.checkpoint import PUBLISHED_REPO, find_dtype  # noqa: E402
from anysat.model.config import SIZES  # noqa: E402
from anysat.model.encoder import AnySat  # noqa: E402
from anysat.model.load import load  # noqa: E402
from anysat.model.precision import find_device  # noqa: E402


def anysat(
    pretrained: bool = True,
    size: str = "base",
    weights: str = PUBLISHED_REPO,
    *,
    flash_attn: bool = True,  # noqa: ARG001
    device="cpu",
    dtype=torch.float32,
    **options,
):
    """The encoder, in eval mode.

    Args:
        pretrained: load `weights`; False gives an untrained model of `size`.
        size: `base`, `small` or `tiny`; only base has published weights.
        weights: hub id, file or folder, of any size; see `anysat.load`, which also takes `options`.
        flash_attn: an option of the authors' entry, taken for its callers; torch chooses how attention is computed.
        device, dtype: where the weights go, and of which type they are, as in `anysat.load`.
        options: those of `anysat.load`, or of the configuration of an untrained model.

    Raises:
        UnknownNameError: there is no such size.
        InputError: `weights` for an untrained model, or with a `size`, which they have themselves.
    """
    if size not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    if weights != PUBLISHED_REPO and (not pretrained or size != "base"):
        given = "pretrained=False" if not pretrained else f"size={size!r}"
        raise InputError("weights", f"none with {given}", repr(weights), f"leave out {given} to load them")
    if pretrained:
        return load(weights if size == "base" else size, device=device, dtype=dtype, **options)
    device, dtype = find_device(device, "device"), find_dtype(dtype)
    return AnySat(SIZES[size](**options)).to(device=device, dtype=dtype).eval()
