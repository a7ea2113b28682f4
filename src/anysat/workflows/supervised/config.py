"""Options that probes and fine-tuning share: labelled data, and the runs of a command. Imports nothing heavy."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from anysat.choices import check_choices
from anysat.errors import RecordError, UnknownNameError
from anysat.workflows.kept import check_heard, kept_options

ClassWeights = Literal["none", "balanced"]
BLOCK_KM = 10.0
"""Default side of the blocks of ground that folds are made of, in kilometres."""
FEWEST_FOLDS = "3 or more (one selects, one is scored, others train), or null"


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled tiles and their splits."""

    dataset: str = ""
    """Name of a dataset, dotted name of a module, or YAML file that describes your own data."""
    root: str | None = None
    """Its folder, loose or packed."""
    world: dict[str, Any] | None = None
    """For the dataset `world`: the contents of `world.json`. Tiles are generated and kept in the cache."""
    target: str | None = None
    """Name of the target; not needed if the dataset has only one."""
    modalities: list[str] | None = None
    """Modalities to use; null uses all."""
    train: str = "train"
    """Split to train on; join several with `+`, such as fold1+fold2."""
    val: str | None = "val"
    """Split on which settings and epochs are selected; null holds out `val_frac` of the training tiles."""
    val_frac: float = 0.2
    """Share of the training tiles to hold out if `val` is null or empty, drawn at random; as whole blocks of ground if
    your own data are split by `block_m`."""
    test: str = "test"
    """Split that is scored once, at the end."""
    train_frac: float = 1.0
    """Share of the training tiles to use, drawn at random, to see how much few labels are worth. Statistics need no
    labels and are those of all training tiles."""
    folds: list[str] | None = None
    """Cross-validate over these members, such as [fold1,fold2,fold3]. Each is scored once; the one before it selects,
    and all others train. Null uses `train`, `val` and `test`."""
    fold: dict[str, Any] | None = field(default=None, metadata={"help": SUPPRESS})
    """Filled by --folds in the options of each of its runs: how many `folds` were drawn from all splits, with which
    `seed`, in blocks of `side_km`, and which one is `scored`."""

    def __post_init__(self) -> None:
        if not 0 < self.val_frac < 1:
            raise RecordError("data.val_frac", self.val_frac, "a share between 0 and 1")
        if not 0 < self.train_frac <= 1:
            raise RecordError("data.train_frac", self.train_frac, "a share above 0, up to 1")
        if self.folds is not None and (len(self.folds) < 3 or len(set(self.folds)) < len(self.folds)):
            raise RecordError("data.folds", self.folds, "three or more members, each once")
        if self.fold is not None and set(self.fold) != {"folds", "scored", "side_km", "seed"}:
            raise RecordError("data.fold", self.fold, "folds, scored, side_km and seed")

    def check_heard(self) -> None:
        """Check that no splits are given besides `folds`, which determine them.

        Raises:
            RecordError: One is given.
        """
        if self.folds is not None:
            names = ("train", "val", "val_frac", "test")
            check_heard(self, names, "with --data.folds, which names all splits of a turn", prefix="data.")

    def turns(self) -> dict[str, LabelledData]:
        """Return the splits of each turn of `folds`, by the member that is scored.

        Without folds, return `{"": self}`.
        """
        if self.folds is None:
            return {"": self}
        found = {}
        for number, test in enumerate(self.folds):
            val = self.folds[number - 1]
            train = "+".join(member for member in self.folds if member not in (val, test))
            found[test] = replace(self, train=train, val=val, test=test, folds=None)
        return found

    @property
    def every_split(self) -> str:
        """Names of all splits that are used, joined by `+`."""
        names = self.folds or [name for name in (self.train, self.val, self.test) if name is not None]
        return "+".join(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Options that `anysat probe` and `anysat finetune` share.

    Raises:
        RecordError: A field has a value that is not possible.
    """

    preset: str | None = None
    """Options to start from, such as world-land-cover, which needs no files, or pastis, an experiment of the paper."""
    out: str | None = None
    """Run folder; load it with `anysat.load_task`."""
    resume: bool = False
    """Continue the run in that folder."""
    weights: Any = "nano"
    """Encoder: nano, a file, a run folder or a hub id."""
    data: LabelledData = field(default_factory=LabelledData)
    folds: int | None = None
    """Cross-validate over this many folds of whole blocks of ground of --block-km, drawn from the tiles of all splits
    together, as `anysat evaluate --compare --folds` does. Needs coordinates. Null uses the splits as they are, or
    --data.folds."""
    repeats: int = 1
    """Number of times to run all of it, with --seed, the next seed and so on. Folds are drawn anew each time; without
    folds, the splits stay, and only what is drawn at random differs."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres. If empty, the first one recommended for the dataset."""
    dense: str | None = None
    """Modality whose sub-patches are classified, for a target per pixel. Null chooses among the modalities that most
    tiles have: the one with the finest sub-patches that are not finer than the target's pixels, else the finest. The
    choice is printed."""
    head: str | None = None
    """Kind of head. For a target per tile: tile (the tile embedding), pooled (the mean of the patches) or both. For a
    target per pixel: dense, patches or conv. Null uses `both` and `dense`."""
    epochs: int = 50
    """Passes over the training tiles."""
    patience: int | None = None
    """Stop after this many epochs without a better validation score; null never does."""
    min_epochs: int = 0
    """Epochs to train before patience can end the run."""
    monitor: str | None = None
    """Validation score that selects settings, epoch and weights, such as accuracy or f1_macro; null uses the task's
    own."""
    batch_size: int = 1
    """Tiles per step."""
    class_weights: ClassWeights = "none"
    """`balanced` gives all classes the same weight in the loss."""
    void_output: bool = False
    """Add an output for pixels or tiles without a label, as in the published heads."""
    day_convention: str | None = None
    """How dates become day numbers, `day_of_year` or `days_since YYYY-MM-DD`; null does it as the weights were
    trained."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null uses those of the weights for this dataset, or computes them from the
    training split."""
    block_km: float | None = None
    """Side in kilometres of a block of ground, for tiles with coordinates: confidence intervals resample whole blocks,
    and --folds never separates tiles of one block. Null is 10 with --folds; without, intervals resample tiles."""
    seed: int = 0
    """Seed of all random draws."""
    report: bool = True
    """Write an HTML page, report.html."""

    COMMAND: ClassVar[str]
    """Name of the command."""

    def __post_init__(self) -> None:
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", LabelledData(**self.data))
        check_choices(self)
        for name, least in (("epochs", 1), ("batch_size", 1), ("repeats", 1), ("min_epochs", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise RecordError(_option(name), getattr(self, name), f"{least} or more")
        if self.patience is not None and self.patience < 1:
            raise RecordError("--patience", self.patience, "1 or more, or null")
        if self.block_km is not None and not self.block_km > 0:
            raise RecordError("--block-km", self.block_km, "a length above 0, or null")
        if self.folds is not None and self.folds < 3:
            raise RecordError("--folds", self.folds, FEWEST_FOLDS)
        if self.folds is not None and self.data.folds is not None:
            raise RecordError("--folds", self.folds, "null with --data.folds, which names the folds")
        if not self.resume:  # an existing run may have been started when these were accepted
            self.data.check_heard()
            self._check_heard(self._preset())

    def _check_heard(self, preset: Any) -> None:
        """Check that no options are given that have no effect, except for those of the preset."""

    @classmethod
    def presets(cls) -> Mapping[str, Callable[[], SupervisedConfig]]:
        """Return the presets of the command by name."""
        raise NotImplementedError

    def _preset(self) -> SupervisedConfig | None:
        """Return the config of the preset; None if none is named, or there is no such preset."""
        made = self.presets().get(self.preset) if self.preset is not None else None
        return None if made is None else made()

    @classmethod
    def starting_point(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that given ones replace: those of the preset, or of the run to resume.

        Raises:
            UnknownNameError: There is no such preset.
        """
        if given.get("preset") is None:
            return kept_options(given)
        presets = cls.presets()
        if given["preset"] not in presets:
            raise UnknownNameError("preset", given["preset"], presets)
        return asdict(presets[given["preset"]]())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML, as stored in the run folder.

        `resume` is always False, because it is not of the run.
        """
        return asdict(self) | {"resume": False}

    def runs(self) -> dict[str, Self]:
        """Return the options of each run, by the name of its folder. Without folds and repeats, `{"": self}`.

        The name is that of the fold, `seed3`, or `seed3/fold1`.
        """
        found = {}
        for seed in range(self.seed, self.seed + self.repeats):
            one = replace(self, seed=seed, repeats=1, report=self.report and self.repeats == 1)
            for fold, config in one._of_folds().items():
                found["/".join([f"seed{seed}"] * (self.repeats > 1) + [fold] * bool(fold))] = config
        return found

    def _of_folds(self) -> dict[str, Self]:
        if self.folds is None:
            return {name: replace(self, data=data) for name, data in self.data.turns().items()}
        km = self.block_km or BLOCK_KM
        drawn = {"folds": self.folds, "side_km": km, "seed": self.seed}
        return {
            f"fold{number + 1}": replace(
                self, folds=None, block_km=km, data=replace(self.data, fold={**drawn, "scored": number})
            )
            for number in range(self.folds)
        }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
