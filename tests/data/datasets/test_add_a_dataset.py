"""A stranger adds a dataset: the module of the how-to page, outside the package, by its dotted name."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import anysat
from anysat.batch import Batch
from anysat.cli import main
from anysat.data.absent import tile_of
from anysat.data.base import Samples
from anysat.data.layout import DatasetFolder, Entry, Layout
from anysat.data.open import find_dataset, open_dataset
from anysat.data.pack.write import pack_dataset
from anysat.data.world import World
from anysat.errors import UnknownNameError

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "dataset.md"


@pytest.fixture
def clearings(tmp_path, monkeypatch):
    """The page's module under a name of its own, and its miniature."""
    package = tmp_path / "stranger_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "clearings.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "stranger_package.clearings", tmp_path / "miniature"
    for name in [name for name in sys.modules if name.startswith("stranger_package")]:
        del sys.modules[name]


def test_the_module_of_the_page_is_a_dataset(clearings):
    name, root = clearings
    record = find_dataset(name)
    record.write_miniature(DatasetFolder(root, record.layouts[0]), World(0), 8)
    tiles = list(open_dataset(name, root, "all"))
    assert len(tiles) == 8
    assert len(Batch.of(tiles)) == 8
    assert {tile.dataset for tile in tiles} == {"clearings"}
    seen = World(0).tile(0, extent_m=240).observe("s1", count=6)
    np.testing.assert_allclose(tiles[0].observations["s1"].values[:, :2], seen.values[:, :2], atol=0.01)


def test_what_to_do_next_with_its_miniature_is_told_by_the_name_it_was_asked_for(clearings, capsys):
    name, root = clearings
    assert main(["world", "make", str(root), f"--layout={name}", "--tiles=3"]) == 0
    assert f"Next: anysat datasets check {name} {root}" in capsys.readouterr().out


def test_a_module_that_is_not_on_the_path_is_told_with_what_to_do():
    with pytest.raises(
        UnknownNameError, match=r"No module named 'no_such_package'.*`python -m anysat …`.*PYTHONPATH=\."
    ):
        find_dataset("no_such_package.clearings")
    with pytest.raises(UnknownNameError, match="No module named 'anysat.nowhere'$"):
        find_dataset("anysat.nowhere")


DRONE = anysat.Modality(key="drone", sensor="my drone", gsd_m=0.5, is_temporal=False, subpatch_px=4,
                        bands=(anysat.Band(name="R", wavelength_nm=650), anysat.Band(name="NIR", wavelength_nm=840)))  # fmt: skip
PHOTO = Entry(name="photo", path="{id}.npy", dtype="float32", shape=(2, 40, 40), modality="drone", bands=("R", "NIR"),
              unit="DN", is_optional=True, source="the test")  # fmt: skip


def _read_photo(folder, row, modalities):
    seen = folder.observe("photo", folder.read("photo", **row), id=row["id"]) if folder.has("photo", **row) else None
    return tile_of([seen], modalities, 20, sensors=folder.sensors)


def _write_photos(folder, world, num_tiles):
    for number in range(num_tiles):
        photo = world.tile(number, extent_m=20).observe(folder.sensors["drone"])
        folder.write({"photo": folder.store("photo", photo)}, id=f"t{number}")


@pytest.fixture
def photos(monkeypatch):
    """A module whose dataset is of a sensor that the package does not know."""
    DATASET = replace(
        find_dataset("bigearthnet_pairs"), name="photos", modalities=("drone",), tile_m=20, targets=(), fetch=None,
        layouts=(Layout(name="published", marker="*.npy", entries=(PHOTO,)),), sensors={"drone": DRONE},
        list_samples=lambda folder: Samples.of_rows([{**f, "split": "train"} for f in folder.find("photo")]),
        read_sample=_read_photo, write_miniature=_write_photos, list_labels=None, read_notes=None,
        splits={"train": ("train",)},
    )  # fmt: skip
    module = ModuleType("stranger.photos")
    module.DATASET = DATASET
    monkeypatch.setitem(sys.modules, "stranger", ModuleType("stranger"))
    monkeypatch.setitem(sys.modules, "stranger.photos", module)
    return "stranger.photos"


def test_a_dataset_of_a_sensor_of_its_own_is_made_packed_and_read(photos, tmp_path, capsys):
    root = tmp_path / "photos"
    assert main(["world", "make", str(root), f"--layout={photos}", "--tiles=2"]) == 0, capsys.readouterr().err
    tiles = list(open_dataset(photos, root))
    assert [tile.observations["drone"].modality for tile in tiles] == [DRONE, DRONE]
    pack_dataset(open_dataset(photos, root, "all"), tmp_path / "packed")
    assert open_dataset(photos, tmp_path / "packed")[0].observations["drone"].modality == DRONE
    (root / "t0.npy").rename(tmp_path / "t0.npy")
    absent = _read_photo(find_dataset(photos).folder(root), {"id": "t0"}, ("drone",)).observations["drone"]
    assert (absent.modality, absent.shape_px, absent.valid.any()) == (DRONE, (40, 40), False)


def test_a_modality_of_the_layout_table_without_a_record_is_named(tmp_path):
    folder = DatasetFolder(tmp_path, Layout(name="l", marker="*", entries=(PHOTO,)))
    with pytest.raises(UnknownNameError, match="modality 'drone'"):
        folder.observe("photo", np.zeros((2, 40, 40)), id="t0")
