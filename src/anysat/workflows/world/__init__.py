"""The command that generates a dataset: tiles of the generated world in the layout of a known dataset."""

from __future__ import annotations

from dataclasses import dataclass, field

from anysat.errors import RecordError


@dataclass(frozen=True, kw_only=True)
class WorldMakeConfig:
    """Generate a small dataset in the layout of a published one."""

    out: str = field(metadata={"positional": "OUT", "help": "Folder to create; if it exists, it must be empty."})
    layout: str
    """Name of the dataset whose layout to use, such as treesatai_ts; see `anysat datasets list`."""
    form: str | None = None
    """Which of its layouts to use, if it has several: `published` or `training`. Null uses the first."""
    tiles: int = 6
    """Number of tiles. For some datasets at least two or three are made, so that no split is empty."""
    seed: int = 0
    """Seed of the generator; the same seed gives the same files."""
    overwrite: bool = False
    """Replace an existing folder and everything in it."""

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise RecordError("--tiles", self.tiles, "one tile or more")
        if self.seed < 0:
            raise RecordError("--seed", self.seed, "0 or more")


def make(config: WorldMakeConfig) -> str:
    """Write the dataset, and return what was written and what to do next. A failed write leaves no partial folder.

    Raises:
        UnknownNameError: There is no such dataset, or it has no such layout.
        InputError: The dataset cannot be generated.
        OutputExistsError: The folder is not empty, and `overwrite` is False.
        WriteError: The folder cannot be written.
    """
    from anysat.workflows.world.tiles import make_dataset

    return make_dataset(config)
