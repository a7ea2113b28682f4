"""A trained task on co-located files of any sensors: what can be asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import InputError, LargeGroundError, RecordError, UnknownNameError
from anysat.model.precision import PRECISIONS
from anysat.workflows.answer import Answer
from anysat.workflows.area_options import AREA_SUFFIXES, AreaOptions

_TILE_SUFFIXES = (".tif", ".json")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(AreaOptions):
    """Answer what a probe or fine-tuning has learnt: a georeferenced map, or the answer for the tile."""

    run: str = field(
        metadata={"positional": "RUN", "help": "Run folder of `anysat probe` or `finetune`, or its predictor file."}
    )
    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "positional": "MODALITY=PATH",
            "optional": True,
            "help": "Inputs, as for `anysat embed`: s2=cube.nc s1=radar/ aerial=photo.tif; or a YAML file that "
            "describes them. What neither it nor a file says is as in the description of the data trained on.",
        },
    )
    out: str
    """Output of a target of pixels: NAME.tif, of classes or values; a picture NAME.png is written beside it. Of a
    target of tiles: NAME.json. Of an area: NAME.tif, NAME.zarr or NAME.parquet, also of a target of tiles, which is
    answered for every window."""
    probabilities: bool = False
    """Write the probability of every class, too: NAME_probabilities.tif, of an area NAME_probability.tif."""
    variants: int = 0
    """Of an area: this many flips (up to 4) and halves of the dates (up to 8) are answered for, their mean is the
    answer, and how far they disagree is written as uncertainty; 0 for none."""
    crop_m: float | None = None
    """Of a tile: answer five overlapping crops of this side, in its corners and its middle, and average their outputs;
    null for the whole tile. Windows of an area overlap by --overlap."""
    units: list[str] = field(default_factory=list)
    """Units of the inputs where files do not tell, as [s1=linear, l8.B10=K]; they count before what a file says."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, a graphics card where there is one."""
    precision: str = "auto"
    """In what matrices are multiplied: float32, bf16, or auto, bf16 where the device has units for it."""
    overwrite: bool = False
    """Replace outputs that exist."""

    def __post_init__(self) -> None:
        if "=" in self.run and not Path(self.run).exists():
            raise InputError("RUN", "the run's folder, or its predictor file, as the first word", self.run)
        if not self.inputs:
            raise InputError("MODALITY=PATH", "inputs, such as s2=cube.nc", "none")
        allowed = AREA_SUFFIXES if self.is_area else _TILE_SUFFIXES
        if Path(self.out).suffix not in allowed:
            raise RecordError("--out", self.out, f"a name ending in {', '.join(allowed)}")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if not 0 <= self.variants <= 8:
            raise RecordError("--variants", self.variants, "0 to 8")
        if self.crop_m is not None and (self.is_area or not self.crop_m > 0):
            raise RecordError("--crop-m", self.crop_m, "a length above 0, of a tile; areas have --overlap")
        super().__post_init__()
        self.check_also(self.out)

    @property
    def asked_of_area(self) -> list[str]:
        """Options given that only an area has, as they are typed."""
        suffix = Path(self.out).suffix
        own = {
            "--variants": self.variants > 0,
            f"--out NAME{suffix}": suffix in AREA_SUFFIXES and suffix not in _TILE_SUFFIXES,
        }
        return [*super().asked_of_area, *(name for name, is_given in own.items() if is_given)]


def told_not_given(fitted: Sequence[str], given: Collection[str]) -> list[str]:
    """Of the modalities a run was fitted with, those it is to do without."""
    lacking = [key for key in fitted if key not in given]
    if not lacking:
        return []
    return [f"fitted with {', '.join(lacking)}, too, which {'is' if len(lacking) == 1 else 'are'} not given"]


def check_answered(dense: str | None, fitted: Sequence[str], given: Collection[str]) -> None:
    """Refuse inputs without the modality whose sub-patches a run answers for.

    Raises:
        InputError: it is not among those given.
    """
    if dense is not None and dense not in given:
        raise InputError(
            "inputs", f"the modality {dense}, whose sub-patches are answered for", ", ".join(given),
            f"the run was trained on {', '.join(fitted)}: give {dense}=PATH, too",
        )  # fmt: skip


def check_probabilities(asked: bool, kind: str, name: str) -> None:
    """Refuse to be asked for probabilities of values.

    Raises:
        RecordError: the target, of this kind and name, has no classes.
    """
    if asked and kind == "value":
        raise RecordError("--probabilities", True, f"nothing, because {name!r} has no classes")


def predict(config: PredictConfig) -> Answer:
    """Read, answer and write.

    Raises:
        MissingFileError, WeightsError: there is no such run.
        MissingFileError, SourceError, UnknownNameError, InputError: an input that cannot be used.
        WriteError: an output exists or cannot be written; nothing is left behind.
    """
    from anysat.workflows.predict_area import predict_area
    from anysat.workflows.predict_tile import predict_tile

    if config.is_area:
        return predict_area(config)
    try:
        return predict_tile(config)
    except LargeGroundError:
        if config.crop_m is not None or Path(config.out).suffix == ".json":  # answers of one tile
            raise
        return predict_area(config)
