"""Loading an encoder with its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser


def load(
    source: str | Path,
    *,
    config: ModelConfig | str | None = None,
    statistics: Normaliser | str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    revision: str | None = None,
    token: str | None = None,
) -> AnySat:
    """Load an encoder with its weights, in eval mode.

    Args:
        source: `nano`, which ships with the package; a hub id such as `g-astruc/AnySat`; a published `.pth` file or
            training checkpoint; our `.safetensors` file, or a folder that holds one; or a file of a model's
            `state_dict()`.
        config: Configuration of the model, or the name of a size. Needed only if the file does not store it, as a
            published file or a state dict, and the model is not of the published base size with its 11 modalities.
        statistics: Statistics that `encode` standardises with: a `Normaliser`, a JSON file, the name of a preset, or
            `"from-data"` (computed from each batch, with a warning). None uses those stored in the file, or
            `"from-data"` if there are none.
        device: Device of the weights. `auto` is the first GPU, or else the CPU.
        dtype: Data type of the weights, or its name. bfloat16 halves the memory.
        revision: Branch, tag or commit of a hub repository.
        token: Token for private hub repositories. None uses the one that the hub's client knows.

    Returns:
        The encoder, in eval mode.

    Raises:
        MissingFileError: There is no such file or folder.
        InputError: The source or the statistics are of another kind.
        RecordError: This machine has no such device.
        UnknownNameError: There are no statistics or data type of this name.
        WeightsError: The weights cannot be fetched or read, tensors are missing, extra or of another shape, the file
            holds an encoder inside a larger model, or it is a pickle of more than tensors, which is never run.
    """
    return AnySat.from_pretrained(
        source, config=config, statistics=statistics, device=device, dtype=dtype, revision=revision, token=token
    )
