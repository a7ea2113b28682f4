"""A trained task on co-located files of any sensors: what can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import RecordError
from anysat.workflows.probe import Scored


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Answer what a probe or fine-tuning has learnt: a georeferenced map, or the answer for the tile."""

    run: str = field(
        metadata={"positional": "RUN", "help": "Run folder of `anysat probe` or `finetune`, or its predictor file."}
    )
    inputs: list[str] = field(
        metadata={
            "positional": "MODALITY=PATH",
            "help": "Inputs, as for `anysat embed`: s2=cube.nc s1=radar/ aerial=photo.tif.",
        }
    )
    out: str
    """Output of a target of pixels: NAME.tif, of classes or values; a picture NAME.png is written beside it. Of a
    target of tiles: NAME.json."""
    probabilities: bool = False
    """Write the probability of every class, too: NAME_probabilities.tif."""
    units: list[str] = field(default_factory=list)
    """Units of the inputs where files do not tell, as [s1=linear, l8.B10=K]; they count before what a file says."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Replace outputs that exist."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix not in (".tif", ".json"):
            raise RecordError("--out", self.out, "a name ending in .tif, or in .json for a target of tiles")


def predict(config: PredictConfig) -> Scored:
    """Read, answer and write.

    Raises:
        MissingFileError, WeightsError: there is no such run.
        MissingFileError, SourceError, UnknownNameError, InputError: an input that cannot be used.
        WriteError: an output exists or cannot be written; nothing is left behind.
    """
    from anysat.workflows.predict_tile import predict_tile

    return predict_tile(config)
