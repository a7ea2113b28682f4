"""Embeddings to files and back: the same place, no-data and names; all of it or nothing."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import rasterio
import torch
import xarray

from anysat.batch import Embeddings
from anysat.errors import OutputExistsError, WriteError
from anysat.geo.grid import Footprint, plan_grid
from anysat.geo.write.writers import CogWriter, Product, ZarrWriter, staged
from anysat.modalities import MODALITIES as M
from geo_builders import SOUTH, geobox

STANDARDS = Path(__file__).parents[4] / "shared" / "standards"
DIM = 6


@pytest.fixture
def product() -> Product:
    """A rectangular tile of 2 x 3 patches and 4 x 6 sub-patches, one of each unseen."""
    footprint = Footprint(name="s2.nc", modality=M["s2"], geoboxes=(geobox((5, 7)),))
    grid = plan_grid([footprint], 20)
    patch, dense = torch.randn(1, 2, 3, DIM), torch.randn(1, 4, 6, 2 * DIM)
    valid, dense_valid = torch.ones(1, 2, 3, dtype=torch.bool), torch.ones(1, 4, 6, dtype=torch.bool)
    valid[0, 1, 2], dense_valid[0, 0, 5] = False, False
    patch[~valid], dense[~dense_valid] = torch.nan, torch.nan
    embeddings = Embeddings(
        tile=torch.randn(1, DIM), patch=patch, valid=valid, grid=grid.patches, dense=dense, dense_valid=dense_valid,
        dense_modality=M["s2"],
    )  # fmt: skip
    return Product(
        embeddings=embeddings, grid=grid, modalities=[M["s2"]], model="g-astruc/AnySat", sources=["s2.nc"],
        provenance={"version": "0", "inputs": {"s2": {"dates": ["2020-01-01"]}}},
    )  # fmt: skip


def test_a_cog_reads_back_at_the_same_place_with_nodata_and_names(tmp_path, product):
    CogWriter().write(product, tmp_path / "e.tif")
    for file, name, (vectors, valid, box) in zip(
        ("e.tif", "e_dense.tif"), ("patch", "dense"), product.maps.values(), strict=True
    ):
        with rasterio.open(tmp_path / file) as tif:
            assert (tif.crs, tif.transform, tif.shape) == (SOUTH, box.affine, valid.shape)
            assert np.isnan(tif.nodata)
            assert tif.transform.e < 0
            assert tif.descriptions == tuple(f"{name}_{i}" for i in range(vectors.shape[-1]))
            assert np.array_equal(np.moveaxis(tif.read(), 0, -1), vectors, equal_nan=True)
            assert (np.isfinite(tif.read(1)) == valid).all()
            assert json.loads(tif.tags()["ANYSAT"]) == product.provenance


def test_the_geotiffs_are_cloud_optimised(tmp_path, product):
    from rio_cogeo.cogeo import cog_validate

    CogWriter().write(product, tmp_path / "e.tif")
    assert cog_validate(tmp_path / "e.tif", strict=True, quiet=True)[0]


def test_a_zarr_reads_back_at_the_same_place_with_nodata_and_names(tmp_path, product):
    import odc.geo.xr  # noqa: F401

    ZarrWriter().write(product, tmp_path / "e.zarr")
    with xarray.open_zarr(tmp_path / "e.zarr", consolidated=False) as root:
        assert np.array_equal(root["tile"].values, product.embeddings.tile[0].numpy())
        assert root.attrs["anysat"] == product.provenance
    for name, (vectors, valid, box) in product.maps.items():
        with xarray.open_zarr(tmp_path / "e.zarr", group=name, consolidated=False, decode_coords="all") as cube:
            assert cube["embedding"].odc.geobox == box
            assert cube["embedding"].dims == ("dim", "y", "x")
            assert np.array_equal(np.moveaxis(cube["embedding"].values, 0, -1), vectors, equal_nan=True)
            assert (cube["valid"].values == valid).all()


def test_the_zarr_is_format_3_and_follows_the_conventions(tmp_path, product):
    if not STANDARDS.is_dir():
        pytest.skip("no schemas beside the repository (../shared/standards)")
    ZarrWriter().write(product, tmp_path / "e.zarr")
    for group in ("", "patch", "dense"):
        metadata = json.loads((tmp_path / "e.zarr" / group / "zarr.json").read_text())
        assert metadata["zarr_format"] == 3
        for convention in ("geoemb", "proj", "spatial") if group else ("geoemb",):
            jsonschema.validate(metadata, json.loads((STANDARDS / f"zarr-{convention}.schema.json").read_text()))


def test_chips_are_counted_in_pixels_of_the_finest_sensor(tmp_path, product):
    ZarrWriter().write(product, tmp_path / "e.zarr")
    attributes = json.loads((tmp_path / "e.zarr" / "patch" / "zarr.json").read_text())["attributes"]
    assert (attributes["geoemb:gsd"], attributes["geoemb:chip_layout"]["chip_size"]) == (10.0, [2, 2])
    assert attributes["geoemb:model"] == "https://huggingface.co/g-astruc/AnySat"


def replace_all(finals, error=None):
    with staged(finals, overwrite=True) as folder:
        for path in finals:
            (folder / path.name).write_text("new")
        if error:
            raise error


def test_files_appear_together_or_not_at_all(tmp_path):
    finals = [tmp_path / "a", tmp_path / "b"]
    finals[1].write_text("old")
    with pytest.raises(WriteError, match="could not be written"):
        replace_all(finals, OSError(28, "No space left on device"))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert finals[1].read_text() == "old"


def test_old_files_come_back_when_the_last_step_fails(tmp_path, monkeypatch):
    finals = [tmp_path / "a", tmp_path / "b"]
    for path in finals:
        path.write_text("old")
    rename = Path.rename

    def failing(self, target):
        if self.parent.name == "new" and self.name == "b":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(WriteError, match="no"):
        replace_all(finals)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert [path.read_text() for path in finals] == ["old", "old"]


def test_several_files_exist_and_one_exists():
    assert "a, b exist; give" in str(OutputExistsError(["a", "b"]))
    assert "a exists; give" in str(OutputExistsError(["a"]))


def test_what_exists_is_not_replaced_unless_asked_to(tmp_path):
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(WriteError, match="a exists; give another name, or replace it with --overwrite true"),
        staged([tmp_path / "a"]),
    ):
        pass
    with staged([tmp_path / "a", tmp_path / "stale"], overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_an_older_file_of_what_is_not_written_again_goes_too(tmp_path):
    (tmp_path / "a_dense.tif").write_text("old")
    with staged([tmp_path / "a.tif", tmp_path / "a_dense.tif"], overwrite=True) as folder:
        (folder / "a.tif").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
