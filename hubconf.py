"""Entry points for `torch.hub.load(<this repository>, "anysat", source="local" or "github")`."""

import sys
from pathlib import Path

dependencies = ["torch", "numpy", "einops", "safetensors", "huggingface_hub", "jaxtyping", "yaml"]

sys.path.insert(0, str(Path(__file__).parent / "src"))

from anysat.model.checkpoint import PUBLISHED_REPO, load  # noqa: E402
from anysat.model.config import SIZES  # noqa: E402
from anysat.model.encoder import AnySat  # noqa: E402


def anysat(pretrained: bool = True, size: str = "base", weights: str = PUBLISHED_REPO, **options):
    """The encoder, in eval mode.

    Args:
        pretrained: load `weights`; False gives an untrained model of `size`.
        size: `base`, `small` or `tiny`; only base has published weights.
        weights: hub id, file or folder; see `anysat.load`, which also takes `options`.
    """
    if pretrained:
        return load(weights if weights != PUBLISHED_REPO or size == "base" else size, **options)
    return AnySat(SIZES[size](**options)).eval()
