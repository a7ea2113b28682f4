"""A made-up dataset on disk: tiles of the generated world in the layout of a known dataset."""

from __future__ import annotations

from dataclasses import dataclass, field

from anysat.errors import RecordError


@dataclass(frozen=True, kw_only=True)
class WorldMakeConfig:
    """Write a small generated dataset in the layout of a known one."""

    out: str = field(metadata={"positional": "OUT", "help": "Folder to make; it must not exist, or be empty."})
    layout: str
    """Name of the dataset whose files are imitated, such as treesatai_ts; `anysat datasets list` tells all."""
    form: str | None = None
    """Which of its layouts: `published` or `training`. Null takes the first the dataset has."""
    tiles: int = 6
    """Number of tiles; of very few, some datasets get two or three, so that none of their lists is empty."""
    seed: int = 0
    """Seed of the world; the same seed gives the same files."""
    overwrite: bool = False
    """Replace a folder that exists, with all that is in it."""

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise RecordError("--tiles", self.tiles, "one tile or more")
        if self.seed < 0:
            raise RecordError("--seed", self.seed, "0 or more")


def make(config: WorldMakeConfig) -> str:
    """Write the dataset; the folder appears whole or not at all. Returns what was written and what to do next.

    Raises:
        UnknownNameError: there is no such dataset, or it has no such layout.
        InputError: the dataset has no generated form.
        OutputExistsError: the folder holds something and is not to be replaced.
        WriteError: it cannot be written.
    """
    from anysat.workflows.world_make import make_dataset

    return make_dataset(config)
