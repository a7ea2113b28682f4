"""What a user said of the files of a training holds for later files that do not say it, and nothing else does."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import yaml

from anysat.cli import main
from anysat.data.open import find_dataset, open_dataset
from anysat.geo.read.sources import open_sources
from anysat.geo.stores.stored import provenance_of
from anysat.modalities import MODALITIES as M
from anysat.model.checkpoint import save
from anysat.tasks.predictor import load_task
from area_builders import CROPS, predictor
from geo_builders import geobox, ramp, write_tif

BOX = geobox((50, 50), 0.2)
RGBN = ["R", "G", "B", "NIR"]
PHOTO = {"path": "{id}.tif", "bands": RGBN, "units": "reflectance", "nodata": 7, "scale": 0.5}
MASKED = {"path": "{id}.tif", "bands": [*RGBN, "-"], "quality": {"kind": "values", "layer": "mask", "invalid": [1]}}


def described(tmp_path, key="aerial", **said):
    """What a predictor keeps of a description."""
    content = {"name": "mine", "tile_m": 10, "modalities": {key: said}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return json.loads(json.dumps(find_dataset(str(tmp_path / "mine.yaml")).sources))


def photo(tmp_path, bands=4, **said):
    return write_tif(tmp_path / "a05.tif", ramp(bands, 50, 50, start=1), BOX, **said)


def opened(tmp_path, trained, given="", units=None):
    source = open_sources([given or f"aerial={tmp_path / 'a05.tif'}"], M, units, trained=trained)["aerial"]
    seen = source.observe(BOX)[0]
    return SimpleNamespace(seen=seen, values=seen.values[:, 0, 0], units=source.units, notes=source.notes)


def test_a_file_without_names_and_numbers_is_read_as_the_tiles_of_the_training(tmp_path):
    photo(tmp_path)
    trained = described(tmp_path, **PHOTO)
    tile = open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all")[0].observations["aerial"]
    found = opened(tmp_path, trained)
    np.testing.assert_array_equal(found.seen.values, tile.values)
    np.testing.assert_array_equal(found.seen.valid, tile.valid)
    assert not found.seen.valid.all()
    assert tuple(found.units.values()) == tile.units
    assert "reflectance (as in training)" in found.notes
    assert "as in training: bands R G B NIR, scale 0.5, nodata 7" in found.notes
    assert opened(tmp_path, None).values.tolist() != found.values.tolist(), "without it, the model's order"


def test_what_a_file_says_counts_before_the_training(tmp_path):
    photo(tmp_path, names=["NIR", "G", "B", "R"], nodata=1, scale=(2.0, 0.0), units="dn")
    found = opened(tmp_path, described(tmp_path, **PHOTO))
    np.testing.assert_array_equal(found.values, [0, 5002, 10002, 15002])
    assert "DN (as the file says)" in found.notes
    assert "nodata is 1 as the file says, though in training 7" in found.notes
    assert not [note for note in found.notes if note.startswith("as in training")]


def test_another_unit_than_in_training_is_told(tmp_path):
    photo(tmp_path, units="dn")
    found = opened(tmp_path, described(tmp_path, **PHOTO))
    assert "DN (as the file says, though in training reflectance)" in found.notes
    assert found.values.tolist() == [7501, 2501, 5001, 1], "and then its scale is none of theirs either"


def test_options_and_descriptions_count_before_the_training(tmp_path):
    path, trained = photo(tmp_path), described(tmp_path, **PHOTO)
    found = opened(tmp_path, trained, units={("aerial", None): "DN"})
    assert (found.values.tolist(), set(found.units.values())) == ([7501, 2501, 5001, 1], {"DN"})
    own = {"aerial": {"path": str(path), "bands": ["NIR", "R", "G", "B"], "scale": 3, "nodata": 1}}
    source = open_sources(own, M, trained=trained)["aerial"]
    values = source.observe(BOX)[0].values[:, 0, 0]
    np.testing.assert_array_equal(values, [0, 15003, 22503, 7503])
    assert not any("as in training" in note for note in source.notes)


def test_a_file_with_another_number_of_bands_is_taken_as_before_and_told(tmp_path):
    photo(tmp_path)
    found = opened(tmp_path, described(tmp_path, path="{id}.tif", bands=[*RGBN, "-"]))
    assert found.values.tolist() == [1, 2501, 5001, 7501]
    assert "in training files had 5 bands, R G B NIR -" in found.notes


@pytest.mark.parametrize("is_there", [True, False])
def test_what_masked_in_training_masks_where_it_is_there(tmp_path, is_there):
    names = ["R", "G", "B", "NIR", "mask" if is_there else "haze"]
    values = ramp(5, 50, 50)
    values[4] = np.arange(2500).reshape(50, 50) % 2
    write_tif(tmp_path / "a05.tif", values, BOX, names=names)
    trained = described(tmp_path, **(MASKED | {"bands": []}))
    source = open_sources([f"aerial={tmp_path / 'a05.tif'}"], M, trained=trained)["aerial"]
    assert source.observe(BOX)[0].valid.mean() == (0.5 if is_there else 1)
    told = "as in training: quality" if is_there else "nothing is masked; in training it was, by values of mask"
    assert any(note.startswith(told) for note in source.notes)


def test_a_predictor_keeps_what_was_said_and_predict_goes_by_it(tmp_path, capsys):
    made = predictor(CROPS, keys=("s2",))
    made.sources = {"s2": {"units": "reflectance"}}
    made.save(tmp_path / "run.safetensors")
    assert load_task(tmp_path / "run.safetensors").sources == made.sources
    values = np.random.default_rng(0).random((10, 16, 16), np.float32)
    path = write_tif(tmp_path / "20200601.tif", values, geobox((16, 16)), names=M["s2"].band_names)
    for out, *words in (["tile.tif"], ["area.tif", "--period=year"]):
        argv = ["predict", tmp_path / "run.safetensors", f"s2={path}", f"--out={tmp_path / out}", *words]
        assert main([str(word) for word in argv]) == 0
        assert "reflectance (as in training)" in capsys.readouterr().out
    with rasterio.open(tmp_path / "tile.tif") as tile, rasterio.open(tmp_path / "area.tif") as area:
        np.testing.assert_array_equal(tile.read(1), area.read(1))


def test_embed_with_the_weights_of_a_run_goes_by_what_was_said_in_its_training(tmp_path, capsys):
    run, made = tmp_path / "run", predictor(CROPS, keys=("s2",))
    made.sources = {"s2": {"units": "reflectance"}}
    made.save(run / "predictor.safetensors")
    save(made.encoder, run / "model.safetensors")
    values = np.random.default_rng(0).random((10, 16, 16), np.float32)
    path = write_tif(tmp_path / "20200601.tif", values, geobox((16, 16)), names=M["s2"].band_names)
    store = tmp_path / "store.zarr"
    words = {"tile.tif": [run], "area.zarr": [run / "model.safetensors", "--period=year"],
             "store.zarr": [run, "--keep=series"]}  # fmt: skip
    for out, (weights, *more) in words.items():
        argv = ["embed", f"s2={path}", f"--out={tmp_path / out}", f"--weights={weights}", "--patch-size-m=40", *more]
        assert main([str(word) for word in argv]) == 0
        assert "reflectance (as in training)" in capsys.readouterr().out
    assert provenance_of(store)["made_from"]["trained"] == made.sources
    write_tif(tmp_path / "20200701.tif", values, geobox((16, 16)), names=M["s2"].band_names)
    assert main(["embed", f"s2={tmp_path / '20200701.tif'}", f"--update={store}"]) == 0
    assert "reflectance (as in training)" in capsys.readouterr().out
    argv = ["embed", f"s2={path}", f"--out={tmp_path / 'own.tif'}", f"--weights={run}", "--patch-size-m=40"]
    assert main([*argv, "--units=s2=reflectance_1e4"]) == 0
    assert "as in training" not in capsys.readouterr().out


def test_days_and_places_of_the_training_are_not_kept(tmp_path):
    said = described(tmp_path, "s2", path="{id}.tif", dates=["2020-01-01", "2020-12-31"], units={"B4": "DN"})
    assert said == {"s2": {"units": {"B4": "DN"}}}
    assert described(tmp_path, path="{id}.tif") == {}
