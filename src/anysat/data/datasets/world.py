"""The generated world as a dataset: the folder holds one small file, and tiles are generated as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import FACTORS, World, WorldTile
from anysat.errors import AnySatError, InputError, RecordError, SourceError, UnknownNameError
from anysat.modalities import RELEASED
from anysat.observation import Observation

TILE_M, GSD_M, NESTING_M = 120.0, 10.0, 30
"""Side of a tile, pixel size of the targets, and what sides are multiples of, so that pixels fit, all in metres."""
KEYS = tuple(modality.key for modality in RELEASED)
MARKER = "world.json"
_TURN = {4: "val", 5: "test"}
_SPLIT_EVERY = 11  # coprime with the six themes of tiles, so that every split meets all of them
_ABOUT = {
    "land_cover": "what covers the ground",
    "species": "trees; -1 outside forest",
    "crop": "crops of the year; -1 outside fields",
    "change": "forest cut in the year",
    "flood": "under water on any day of the year",
}
_COLOURS = {
    "land_cover": {"water": "#2f6fb0", "forest": "#1f5d2b", "cropland": "#e6cc7f", "grassland": "#9ccb6b",
                   "built": "#b5413a", "bare": "#a07850", "shrub": "#6f7a1e"},
    "crop": {"wheat": "#d9a441", "barley": "#efdfa6", "rapeseed": "#f7e600", "maize": "#6fae3f", "beet": "#a8326e",
             "potato": "#7a4e2d"},
    "change": {"stable": "#c9d6b5", "cleared": "#c2571a"},
    "flood": {"dry": "#ece8d6", "flooded": "#2f6fb0"},
}  # fmt: skip
"""Colours as a map would have them; those of species are chosen to be told apart."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Which tiles of which world a folder holds: the content of `world.json`."""

    tiles: int
    """Number of tiles."""
    seed: int = 0
    """Seed of the world."""
    first: int = 0
    """Number of the first tile; folders whose ranges of numbers do not overlap share no tile."""
    year: int = 2020
    dates: int = 12
    """Number of dates of each series."""
    extent_m: float = TILE_M
    """Side of a tile, a multiple of 30 m."""
    modalities: tuple[str, ...] = KEYS
    """Keys of the modalities that are generated, in the order of the table; all released ones by default."""

    def __post_init__(self) -> None:
        limits = {"tiles": (1, 10**7), "seed": (0, 2**31), "first": (0, 10**9), "year": (1999, 2026), "dates": (1, 365)}
        for name, (least, most) in limits.items():
            number = getattr(self, name)
            if type(number) is not int or not least <= number <= most:
                raise RecordError(f"{MARKER}, {name}", number, f"a whole number from {least} to {most}")
        if not isinstance(self.extent_m, int | float) or self.extent_m <= 0 or self.extent_m % NESTING_M:
            raise RecordError(f"{MARKER}, extent_m", self.extent_m, f"a multiple of {NESTING_M} m")
        if type(self.modalities) not in (list, tuple):
            raise RecordError(f"{MARKER}, modalities", self.modalities, f"a list of {', '.join(KEYS)}")
        for key in self.modalities or ("none",):
            if key not in KEYS:
                raise UnknownNameError(f"modality of the generated world, in {MARKER},", key, KEYS)
        object.__setattr__(self, "extent_m", float(self.extent_m))
        object.__setattr__(self, "modalities", tuple(key for key in KEYS if key in self.modalities))

    @classmethod
    def of(cls, content: Any) -> WorldSettings:
        """Build the settings from the content of the file.

        Raises:
            AnySatError: the content is invalid.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping) or "tiles" not in content or not set(content) <= set(names):
            raise InputError(MARKER, f"`tiles`, and no other names than {', '.join(names)}", content)
        return cls(**{name: value for name, value in content.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {**asdict(self), "modalities": list(self.modalities)}


GENERATED = Layout(
    name="generated",
    marker=MARKER,
    entries=(
        Entry(name="settings", path=MARKER, dtype=TEXT,
              unit=f"{', '.join(field.name for field in fields(WorldSettings))}; all but tiles may be left out or null",
              about="seed and numbers of tiles, from which everything else follows", source="written by this package"),
    ),
    checked_against="nothing else: it is generated",
)  # fmt: skip


def read_settings(folder: DatasetFolder) -> WorldSettings:
    """Read `world.json`.

    Raises:
        MissingFileError, SourceError: it is missing or invalid.
    """
    content = folder.read("settings")
    try:
        return WorldSettings.of(content)
    except AnySatError as error:
        raise SourceError(folder.path("settings"), str(error)) from error


def list_samples(folder: DatasetFolder) -> Samples:
    """List the tiles by number; every row holds seed, year and side, so that tables of different worlds differ."""
    settings = read_settings(folder)
    numbers = range(settings.first, settings.first + settings.tiles)
    return Samples(
        id=[f"{settings.seed}-{number:06d}" for number in numbers],
        split=[_TURN.get(number % _SPLIT_EVERY, "train") for number in numbers],
        number=np.array(numbers),
        **{name: np.full(len(numbers), getattr(settings, name)) for name in ("seed", "year", "dates", "extent_m")},
    )


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Generate one tile; only the modalities asked for are computed."""
    held = read_settings(folder).modalities
    wanted = [key for key in modalities if key in held]
    if not wanted:
        raise SourceError(folder.path("settings"), f"it has no {', '.join(modalities)}, only {', '.join(held)}")
    seen = (observe(key, row["number"], *_place(row), row["dates"]) for key in wanted)
    tile = _tile(row["number"], *_place(row))
    targets = {name: tile.raster(name, GSD_M) for name in _ABOUT if folder.wants(name)}
    return Tile.of(*seen, targets=targets, geobox=tile.geobox(GSD_M))


def observe(key: str, number: int, seed: int, year: int, extent_m: float, num_dates: int) -> Observation:
    """Return the observation of a tile by one modality; the only step that takes long."""
    tile = _tile(number, seed, year, extent_m)
    return tile.observe(key, count=num_dates) if _IS_TEMPORAL[key] else tile.observe(key)


_IS_TEMPORAL = {modality.key: modality.is_temporal for modality in RELEASED}


def _place(row: Row) -> tuple[int, int, float]:
    return row["seed"], row["year"], row["extent_m"]


def _tile(number: int, seed: int, year: int, extent_m: float) -> WorldTile:
    return World(seed).tile(number, extent_m=extent_m, year=year)


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write the settings of the first tiles of a world, in all modalities."""
    folder.write({"settings": WorldSettings(tiles=num_tiles, seed=world.seed).to_dict()})


DATASET = DatasetRecord(
    name="world",
    title="Generated world",
    about="A made-up landscape seen by all released modalities, any number of tiles: for tests, demos and ablations",
    modalities=KEYS,
    tile_m=TILE_M,
    patch_sizes_m=(30.0, 60.0, 120.0),
    targets=tuple(
        Target(name=name, level="pixel", kind="class", classes=FACTORS[name], gsd_m=GSD_M, about=about,
               ignore=-1 if "-1" in about else None, colours=tuple(_COLOURS[name][c] for c in FACTORS[name])
               if name in _COLOURS else ())
        for name, about in _ABOUT.items()
    ),
    split_rule="by number: of eleven tiles in a row the fifth is validation and the sixth is test; places are drawn "
    "independently over 400 km, so that splits do not touch",
    date_rule="generated: dates in the year of world.json as the revisit of the sensor and clouds allow",
    licence="none needed: generated",
    size="one file; a tile takes 0.3 s to generate, 1.1 s with aerial photos, only once if it is packed",
    homepage="`anysat world make OUT --layout world`",
    citation="none; generated by this package",
    layouts=(GENERATED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "Tiles are generated whenever they are read: pack them for training (`anysat datasets pack`).",
        "Nothing in it is real; it shows that code works and models learn, not how well they do on Earth.",
        "Without Landsat 7 and ALOS-2, whose pixels are 30 m, patches of 10, 20 and 40 m fit as well.",
        "world.json can set another side than 120 m, another year, other modalities or another first tile.",
    ),
)  # fmt: skip
