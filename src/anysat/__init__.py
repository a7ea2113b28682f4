"""Turn Earth-observation data from any combination of sensors into embeddings, with the AnySat encoder.

The public names are imported when first used, so that importing the package is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Environment variable that makes torch keep large tensors in pages of 2 MiB on Linux. Read at the first tensor."""
IS_TOLD_PAGES = LARGE_PAGES in os.environ
os.environ.setdefault(LARGE_PAGES, "1")

_HOME = {
    "AnySat": "anysat.model.encoder",
    "AnySatError": "anysat.errors",
    "Band": "anysat.modalities",
    "Batch": "anysat.batch",
    "Embeddings": "anysat.batch",
    "MODALITIES": "anysat.modalities",
    "Modality": "anysat.modalities",
    "ModelConfig": "anysat.model.config",
    "Normaliser": "anysat.normalise",
    "Observation": "anysat.observation",
    "PatchGrid": "anysat.patches",
    "Tile": "anysat.batch",
    "classify": "anysat.workflows.store_maps.classes",
    "embed": "anysat.workflows.embed.data",
    "load": "anysat.model.load",
    "load_task": "anysat.tasks.predictor",
    "open_dataset": "anysat.data.open",
    "read_modalities": "anysat.modalities",
    "similar": "anysat.workflows.store_maps.similarity",
    "zonal": "anysat.geo.zonal",
}

__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from anysat.batch import Batch as Batch
    from anysat.batch import Embeddings as Embeddings
    from anysat.batch import Tile as Tile
    from anysat.data.open import open_dataset as open_dataset
    from anysat.errors import AnySatError as AnySatError
    from anysat.geo.zonal import zonal as zonal
    from anysat.modalities import MODALITIES as MODALITIES
    from anysat.modalities import Band as Band
    from anysat.modalities import Modality as Modality
    from anysat.modalities import read_modalities as read_modalities
    from anysat.model.config import ModelConfig as ModelConfig
    from anysat.model.encoder import AnySat as AnySat
    from anysat.model.load import load as load
    from anysat.normalise import Normaliser as Normaliser
    from anysat.observation import Observation as Observation
    from anysat.patches import PatchGrid as PatchGrid
    from anysat.tasks.predictor import load_task as load_task
    from anysat.workflows.embed.data import embed as embed
    from anysat.workflows.store_maps.classes import classify as classify
    from anysat.workflows.store_maps.similarity import similar as similar


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'anysat' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
