"""The command that finds places like given ones in a store: its options and its run."""

from __future__ import annotations

from dataclasses import dataclass, field

from anysat.geo.write.outputs import Result, check_output
from anysat.workflows.answer import Answer
from anysat.workflows.store_maps import StoreMapOptions


@dataclass(frozen=True, kw_only=True)
class SimilarConfig(StoreMapOptions):
    """Search a store for places like given ones: write a map of the similarity of every patch, from -1 to 1."""

    to: str = field(
        metadata={
            "help": "Places to search for: longitude,latitude in degrees, such as 4.35,50.85, or a file of points and "
            "polygons (FILE:LAYER if it has several layers). Of several, the mean of their embeddings is searched for."
        }
    )
    """Places to search for."""
    unlike: str | None = None
    """Places that the others should not be like, given in the same way. The map is then the similarity to the first
    minus the similarity to these, from -2 to 2."""

    def __post_init__(self) -> None:
        check_output("--out", self.out, Result.AREA)


def similar(config: SimilarConfig) -> Answer:
    """Search, and write the map.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError, RecordError: A store or the places cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
        InputError: Another process is writing the same output.
    """
    from anysat.workflows.progress import progress_bar
    from anysat.workflows.similar import run

    found = run.similar(config.store, config.to, config.out, unlike=config.unlike, group=config.group,
                        overwrite=config.overwrite, bar=progress_bar)  # fmt: skip
    return Answer(found.report)
