"""Small folders of a user's own data: a description, a table, one file of imagery, one label raster."""

from pathlib import Path

import yaml

from anysat.data.open import open_dataset
from anysat.modalities import MODALITIES
from geo_builders import LEFT, TOP, geobox, ramp, write_tif

S2 = MODALITIES["s2"].band_names
COVER = {"path": "cover/{id}.tif", "classes": ["a", "b"], "gsd_m": 20}


def described(root: Path, **content) -> str:
    """A description of one modality, changed as given; no files."""
    given = {"name": "mine", "tile_m": 40, "modalities": {"s2": {"path": "s2/{id}.tif"}}}
    (root / "mine.yaml").write_text(yaml.safe_dump(given | content))
    return str(root / "mine.yaml")


def image(path: Path, values=None, **options) -> Path:
    """One date of 8 x 8 pixels of 10 m, values that all differ unless given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = ramp(len(S2), 8, 8) if values is None else values
    given = {"names": S2, "tags": {"DATETIME": "2020:06:01"}} | options
    return write_tif(path, values, geobox((8, 8)), **given)


def tabled(root: Path, text: str, table: str = "tiles.csv", **content):
    """The dataset of a table; one file of imagery, so that its layout is recognised."""
    image(root / "s2" / "t0.tif")
    (root / table).write_text(text)
    return open_dataset(described(root, tiles=table, **content), root, "all")


def cover(root: Path, values, target, **options):
    """A label raster of 2 x 2 pixels of 20 m as the dataset reads it."""
    (root / "cover").mkdir()
    write_tif(root / "cover" / "t0.tif", values, geobox((2, 2), 20.0, LEFT + 20, TOP - 20), **options)
    return tabled(root, "id\nt0\n", targets={"cover": target})[0].targets["cover"]
