"""SpaceNet 7: buildings in monthly PlanetScope mosaics (published experiments on an unseen sensor; spec 4.11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import FACTORS, World
from anysat.errors import SourceError

CLASSES = ("none", "building")
IGNORE = -1
TILE_M = 3072.0
SIDE_PX = 1024
_SPEC = "files of the challenge; spec 4.11"
_STEM = "global_monthly_{year}_{month}_mosaic_{aoi}"
_COARSE = 8  # the world is drawn in pixels of 24 m, so that miniatures stay small
_AOIS = {
    "train": """
        0331E-1257N_1327_3160 0358E-1220N_1433_3310 0457E-1135N_1831_3648 0487E-1246N_1950_3207 0577E-1243N_2309_3217
        0586E-1127N_2345_3680 0595E-1278N_2383_3079 0632E-0892N_2528_4620 0683E-1006N_2732_4164 0924E-1108N_3699_3757
        1015E-1062N_4061_3941 1138E-1216N_4553_3325 1203E-1203N_4815_3378 1204E-1202N_4816_3380 1209E-1113N_4838_3737
        1210E-1025N_4840_4088 1276E-1107N_5105_3761 1298E-1322N_5193_2903 1389E-1284N_5557_3054 1438E-1134N_5753_3655
        1439E-1134N_5759_3655 1481E-1119N_5927_3715 1538E-1163N_6154_3539 1615E-1206N_6460_3366 1669E-1153N_6678_3579
        1669E-1160N_6679_3549 1672E-1207N_6691_3363 1703E-1219N_6813_3313 1709E-1112N_6838_3742 1716E-1211N_6864_3345
    """,
    "val": """
        0357E-1223N_1429_3296 0361E-1300N_1446_2989 0368E-1245N_1474_3210 0566E-1185N_2265_3451 0614E-0946N_2459_4406
        0760E-0887N_3041_4643 1014E-1375N_4056_2688 1049E-1370N_4196_2710 1185E-0935N_4742_4450 1289E-1169N_5156_3514
        1296E-1198N_5184_3399 1615E-1205N_6460_3370 1617E-1207N_6468_3360 1669E-1160N_6678_3548 1748E-1247N_6993_3202
    """,
    "test": """
        0387E-1276N_1549_3087 0434E-1218N_1736_3318 0506E-1204N_2027_3374 0544E-1228N_2176_3279 0977E-1187N_3911_3441
        1025E-1366N_4102_2726 1172E-1306N_4688_2967 1200E-0847N_4802_4803 1204E-1204N_4819_3372 1335E-1166N_5342_3524
        1479E-1101N_5916_3785 1690E-1211N_6763_3346 1691E-1211N_6764_3347 1848E-0793N_7394_5018
    """,
}
SPLIT_OF: Mapping[str, str] = {f"L15-{aoi}_13": split for split, aois in _AOIS.items() for aoi in aois.split()}
"""Split of each area (spec, appendix X2)."""

_PLANET = Entry(
    name="planet", path=f"train/{{aoi}}/images_masked/{_STEM}.tif", dtype="uint8", shape=(4, "H", "W"),
    modality="planet", bands=("R", "G", "B", "alpha"), unit="DN",
    about="1024 x 1024 or one less; alpha is 0 where the image is masked",
)  # fmt: skip
PUBLISHED = Layout(
    name="published",
    marker="train/*/labels",
    source=_SPEC,
    entries=(
        _PLANET,
        Entry(name="buildings", path=f"train/{{aoi}}/labels/{_STEM}_Buildings.geojson", key="features", dtype=TEXT,
              unit="footprints, longitude and latitude"),
        Entry(name="masked", path=f"train/{{aoi}}/labels/{_STEM}_UDM.geojson", key="features", dtype=TEXT,
              unit="areas without usable data, longitude and latitude", is_optional=True),
    ),
)  # fmt: skip
TRAINING = Layout(
    name="training",
    marker="metadata_train.json",
    source=_SPEC,
    entries=(
        Entry(name="metadata", path="metadata_train.json", dtype=TEXT,
              unit="by area a list of aoi_id, year, month, mask, label"),
        _PLANET,
        Entry(name="raster", path=f"train/{{aoi}}/labels_raster/{_STEM}_Buildings.tif", dtype="uint8",
              shape=(1, "H", "W"), unit="above 0 is a building"),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the labelled months of the listed areas: those with files, or those in the table; skip other areas."""
    rows = _listed(folder) if "metadata" in folder.layout else folder.find("buildings", "planet")
    return Samples.of_rows([
        {"id": f"{row['aoi']}_{row['year']}_{row['month']}", "split": SPLIT_OF[row["aoi"]], **row}
        for row in rows if row["aoi"] in SPLIT_OF
    ])  # fmt: skip


def _listed(folder: DatasetFolder) -> list[dict[str, str]]:
    """Return the labelled months in the training layout's table."""
    table = folder.read("metadata")
    try:
        months = [month for months in table.values() for month in months]
        return [
            {"aoi": month["aoi_id"], "year": f"{int(month['year'])}", "month": f"{int(month['month']):02}"}
            for month in months if month["label"]
        ]  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"expected {folder.layout['metadata'].unit}"
        raise SourceError(folder.path("metadata"), f"an entry cannot be read ({error!r})", expected) from error


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one month of one area, padded to 1024 x 1024 pixels."""
    del modalities  # there is only one
    image = _fitted(folder, "planet", row)
    geobox = folder.geobox("planet", **row)
    seen, targets = image[3] > 0, {}
    if folder.has("masked", **row):
        seen &= ~_drawn(folder, "masked", row, geobox)
    if folder.wants("buildings"):
        is_raster = "raster" in folder.layout
        buildings = _fitted(folder, "raster", row)[0] > 0 if is_raster else _drawn(folder, "buildings", row, geobox)
        targets["buildings"] = np.where(seen, buildings, IGNORE).astype(np.int64)
    observation = folder.observe("planet", image, valid=seen[None], **row)
    return Tile.of(observation, targets=targets, geobox=geobox and geobox.expand((SIDE_PX, SIDE_PX)))


def _fitted(folder: DatasetFolder, name: str, row: Row) -> NDArray[np.uint8]:
    """Return a raster, with a row or column of 0 appended where it is one pixel short."""
    array: NDArray[np.uint8] = folder.read(name, **row)
    short = [SIDE_PX - side for side in array.shape[1:]]
    if not set(short) <= {0, 1}:
        raise SourceError(folder.path(name, **row), f"it has {array.shape[1]} x {array.shape[2]} pixels",
                          f"expected {SIDE_PX} or one less")  # fmt: skip
    return np.pad(array, ((0, 0), (0, short[0]), (0, short[1])))


def _drawn(folder: DatasetFolder, name: str, row: Row, geobox: Any) -> NDArray[np.bool_]:
    """Draw polygons as a mask (row col) that is True where the centre of a pixel is inside."""
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    if geobox is None:
        raise SourceError(folder.path("planet", **row), "it has no georeference, so footprints cannot be drawn")
    features = folder.read(name, **row)
    try:
        geometries = [feature["geometry"] for feature in features]
        shapes = [geometry for geometry in geometries if geometry and geometry["coordinates"]]
        moved = transform_geom("EPSG:4326", str(geobox.crs), shapes)
        mask = rasterize(moved, out_shape=(SIDE_PX, SIDE_PX), transform=geobox.affine, dtype="uint8")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"expected {folder.layout[name].unit}"
        raise SourceError(folder.path(name, **row), f"a feature cannot be drawn ({error!r})", expected) from error
    return np.asarray(mask, bool)


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world as months of the listed areas, the three splits taking turns."""
    listed: dict[str, list[dict[str, Any]]] = {}
    for index in range(num_tiles):
        tile = world.tile(index, extent_m=TILE_M, year=2018)
        aois = [aoi for aoi, split in SPLIT_OF.items() if split == list(_AOIS)[(index + index // 6 + 1) % 3]]
        row = {"aoi": aois[index // 3 % len(aois)], "year": str(2018 + index // 84), "month": f"{index % 12 + 1:02}"}
        coarse = tile.geobox(3.0 * _COARSE)
        built = (tile.raster("building", 3.0 * _COARSE) == FACTORS["building"].index("building")).astype(np.uint8)
        image = folder.store("planet", tile.observe("planet", gsd_m=3.0 * _COARSE, keep_clouds=True))
        image[3] = 255
        image[:, :12, :12] = 0
        image = image.repeat(_COARSE, -1).repeat(_COARSE, -2)
        size = slice(None), slice(None, SIDE_PX - 1 if index % 6 == 1 else None)
        folder.write({"planet": image[:, *size]}, geobox=tile.geobox(3.0)[size], **row)
        if "raster" in folder.layout:
            raster = built.repeat(_COARSE, -1).repeat(_COARSE, -2)[None, *size]
            folder.write({"raster": raster}, geobox=tile.geobox(3.0)[size], **row)
        else:
            masked = np.zeros_like(built)
            masked[-16:, -16:] = index % 2
            folder.write({"buildings": _features(built, coarse), "masked": _features(masked, coarse)}, **row)
        fact = {"aoi_id": row["aoi"], "year": int(row["year"]), "month": int(row["month"])}
        listed.setdefault(row["aoi"], []).append({**fact, "mask": True, "label": True})
    if "metadata" in folder.layout:
        folder.write({"metadata": listed})


def _features(mask: NDArray[np.uint8], geobox: Any) -> list[dict[str, Any]]:
    """Return the outlines of the ones of a mask, in longitude and latitude."""
    from rasterio.features import shapes
    from rasterio.warp import transform_geom

    outlines = [outline for outline, _ in shapes(mask, mask=mask == 1, transform=geobox.affine)]
    moved = transform_geom(str(geobox.crs), "EPSG:4326", outlines) if outlines else []
    return [{"type": "Feature", "properties": {}, "geometry": dict(outline)} for outline in moved]


DATASET = DatasetRecord(
    name="spacenet7",
    title="SpaceNet 7",
    about="Building footprints in about 1,400 monthly mosaics of 59 places around the world",
    modalities=("planet",),
    tile_m=TILE_M,
    patch_sizes_m=(48.0,),
    targets=(Target(name="buildings", level="pixel", kind="class", classes=CLASSES, ignore=IGNORE, gsd_m=3.0,
                    about="a pixel whose centre is in a footprint; masked pixels are ignored"),),
    splits={split: (split,) for split in _AOIS},
    split_rule="fixed lists of 30, 15 and 14 areas of the folder `train` (PANGAEA); an area in no list is left out",
    date_rule="none: a mosaic is an image without dates; year and month are columns of the samples",
    licence="CC-BY-SA-4.0",
    size="about 1,400 mosaics",
    homepage="https://spacenet.ai/sn7-challenge/",
    citation="Van Etten et al. 2021",
    layouts=(PUBLISHED, TRAINING),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "The published loader validates on the test areas; here the 15 areas of the validation list are used.",
        "Mosaics have pixels of about 4 m and are taken as 3 m, the spacing of the modality: a sub-patch is 4 pixels, "
        "a patch of 48 m is 16.",
        "Alpha 0 and the polygons of unusable data are invalid, and their pixels ignored; the published loader drops "
        "alpha.",
        "Validation area L15-1669E-1160N_6678_3548_13 touches training area L15-1669E-1160N_6679_3549_13.",
    ),
)  # fmt: skip
