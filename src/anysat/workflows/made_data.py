"""Data that the package prepares itself: a generated world, or a dataset from an installed package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysat.data.cache import cache_folder
from anysat.data.open import find_dataset
from anysat.errors import InputError
from anysat.normalise import Normaliser

if TYPE_CHECKING:
    from anysat.data.work import Advance


def made_data(
    dataset: str, root: str | None, world: Mapping[str, Any] | None,
    progress: Callable[[str, int], AbstractContextManager[Advance]],
) -> tuple[Path, Normaliser | None] | None:  # fmt: skip
    """Prepare data in the cache and return their folder, and statistics if they come with some.

    Args:
        root: Folder of existing data; None if not given.
        world: Contents of `world.json`, for tiles to generate; None if not given.
        progress: Makes a progress bar from a title and a total.

    Returns:
        None if there is nothing to prepare, and the data must be in a folder.

    Raises:
        InputError: Both a folder and a world to generate are given.
    """
    from anysat.data.prepare import prepare_fetched, prepare_world

    if world is not None and root is not None:
        raise InputError(
            f"dataset {dataset!r}", "either `root`, an existing folder, or `world`, tiles to generate",
            f"both, with root {root}", "leave one of them out",
        )  # fmt: skip
    if world is not None:
        from anysat.data.datasets.world import WorldSettings

        return prepare_world(WorldSettings.of(world), cache_folder(), workers=2, progress=progress)
    if root is None and find_dataset(dataset).fetch is not None:
        return prepare_fetched(dataset, cache_folder(), progress=progress)
    return None
