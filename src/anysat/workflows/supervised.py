"""Options for labelled data, for probes, fine-tuning and comparisons. Imports nothing heavy, because help needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from anysat.errors import RecordError
from anysat.workflows.kept import check_heard


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

    def __post_init__(self) -> None:
        if not 0 < self.val_frac < 1:
            raise RecordError("data.val_frac", self.val_frac, "a share between 0 and 1")
        if not 0 < self.train_frac <= 1:
            raise RecordError("data.train_frac", self.train_frac, "a share above 0, up to 1")
        if self.folds is not None and (len(self.folds) < 3 or len(set(self.folds)) < len(self.folds)):
            raise RecordError("data.folds", self.folds, "three or more members, each once")

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
