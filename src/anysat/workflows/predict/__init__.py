"""The command that applies a trained task to files of any sensors: its options and its run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from anysat.choices import check_choices
from anysat.errors import InputError, LargeGroundError, RecordError
from anysat.geo.write.outputs import Result, check_also, check_output, named, suffixes
from anysat.model.precision import AnyPrecision, find_device
from anysat.workflows.answer import Answer
from anysat.workflows.areas.options import AreaOptions
from anysat.workflows.kept import check_alone

if TYPE_CHECKING:
    from anysat.data.targets import Target


@dataclass(frozen=True, kw_only=True)
class PredictConfig(AreaOptions):
    """Apply a trained probe or fine-tuned model: write a georeferenced map, or the prediction for a tile."""

    run: str = field(
        metadata={"positional": "RUN", "help": "Run folder of `anysat probe` or `finetune`, or its predictor file."}
    )
    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "positional": "MODALITY=PATH",
            "optional": True,
            "help": "Inputs, as for `anysat embed`: s2=cube.nc s1=radar/ aerial=photo.tif, or one YAML file that "
            "describes them. What neither states is taken from the description of the training data.",
        },
    )
    out: str = field(
        metadata={
            "help": f"Output. For a target per pixel: {named(Result.MAP)} with classes or values, and a picture "
            f"NAME.png. For a target per tile: {named(Result.ANSWER)} with one answer for all ground. For an area: "
            f"{named(Result.AREA)}. These also ask for the map of a target per tile, which has one answer per window."
        }
    )
    """Output, whose suffix decides the format."""
    probabilities: bool = False
    """Also write the probability of every class, to NAME_probability.tif."""
    variants: int = 0
    """For an area: number of variants of the input to predict, up to 8. The first four are the input as it is and
    flipped; the others also use only half of the dates. Their mean is the answer; their disagreement is written as
    uncertainty. 0 predicts the input once, without uncertainty."""
    crop_m: float | None = None
    """For a tile: predict five overlapping crops of this side in metres, in the corners and the middle, and average
    their outputs; null predicts the whole tile. For an area, use --overlap instead."""
    units: list[str] = field(default_factory=list)
    """Units of inputs whose files do not state them, such as [s1=linear, l8.B10=K]; they take precedence over what a
    file says."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: AnyPrecision = "auto"
    """Precision of matrix products; auto uses bf16 if the device has units for it."""
    overwrite: bool = False
    """Replace existing outputs."""

    made: ClassVar[Result] = Result.CLASSES

    def __post_init__(self) -> None:
        check_choices(self)
        if "=" in self.run and not Path(self.run).exists():
            raise InputError("RUN", "the run's folder, or its predictor file, as the first argument", self.run)
        if not self.inputs:
            raise InputError("MODALITY=PATH", "inputs, such as s2=cube.nc", "none")
        check_output("--out", self.out, *([Result.AREA] if self.is_area else [Result.MAP, Result.ANSWER]))
        if not 0 <= self.variants <= 8:
            raise RecordError("--variants", self.variants, "0 to 8")
        if self.crop_m is not None and (self.is_area or not self.crop_m > 0):
            raise RecordError("--crop-m", self.crop_m, "a length above 0, for a tile; for an area, use --overlap")
        super().__post_init__()
        check_also(self.also, self.out, self.made)

    @property
    def asked_of_area(self) -> list[str]:
        """The given options that only apply to areas, as typed."""
        suffix, of_tile = Path(self.out).suffix, suffixes(Result.MAP, Result.ANSWER)
        own = {
            "--variants": self.variants > 0,
            f"--out NAME{suffix}": suffix in suffixes(Result.AREA) and suffix not in of_tile,
        }
        return [*super().asked_of_area, *(name for name, is_given in own.items() if is_given)]


def told_not_given(fitted: Sequence[str], given: Collection[str]) -> list[str]:
    """Return a line about modalities that the run was trained with but are not given."""
    lacking = [key for key in fitted if key not in given]
    if not lacking:
        return []
    return [f"not given, though the run was trained with {'it' if len(lacking) == 1 else 'them'}: {', '.join(lacking)}"]


def check_answered(dense: str | None, fitted: Sequence[str], given: Collection[str]) -> None:
    """Check that the modality whose sub-patches a run classifies is given.

    Raises:
        InputError: It is not.
    """
    if dense is not None and dense not in given:
        raise InputError(
            "inputs", f"the modality {dense}, whose sub-patches the run classifies", ", ".join(given),
            f"the run was trained on {', '.join(fitted)}: also give {dense}=PATH",
        )  # fmt: skip


def check_probabilities(asked: bool, target: Target) -> None:
    """Check that probabilities are not asked for if the target has values.

    Raises:
        RecordError: They are.
    """
    if asked and not target.classes:
        raise RecordError("--probabilities", True, f"false, because {target.name!r} has no classes")


def predict(config: PredictConfig) -> Answer:
    """Read, predict and write.

    Raises:
        MissingFileError, WeightsError: There is no such run.
        InputError: The run is over folds, each of which has its own predictor.
        MissingFileError, SourceError, UnknownNameError, InputError: An input cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
        InputError: Another process is writing the same output.
    """
    from anysat.geo.claims import alone_at
    from anysat.tasks.predictor import load_task
    from anysat.workflows.predict.area import predict_area
    from anysat.workflows.predict.tile import predict_tile

    check_alone(Path(config.run))
    suffix = Path(config.out).suffix
    with alone_at(Path(config.out)):
        predictor = load_task(config.run, device=find_device(config.device))
        target = predictor.task.target
        if config.is_area:
            return predict_area(config, predictor, config.told_as_area(config.out))
        if target.level == "tile" and suffix in suffixes(Result.AREA):
            if config.crop_m is not None:
                raise RecordError("--crop-m", config.crop_m, f"null with --out NAME{suffix}: {target.name!r} is per "
                                  "tile, and a map of it has one answer per window; see --window")  # fmt: skip
            why = f"treated as an area because {target.name!r} is per tile, and --out NAME{suffix} is a map"
            return predict_area(config, predictor, why)
        try:
            return predict_tile(config, predictor)
        except LargeGroundError as error:
            if config.crop_m is not None:  # only for one tile
                raise
            if suffix in suffixes(Result.AREA):
                return predict_area(config, predictor, config.told_as_area(config.out))
            raise LargeGroundError(f"--out {config.out}", f"it is one answer for all ground ({error})",
                                   f"for a map, give --out {named(Result.AREA)}") from error  # fmt: skip
