"""`anysat datasets predict`: what a run says of the tiles of a dataset, in a table or as rasters."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import rasterio
import torch
import yaml
import zarr

from anysat.batch import Batch
from anysat.cli import main
from anysat.data.open import find_dataset, open_dataset
from anysat.model.load import load
from anysat.normalise import Normaliser
from anysat.probing.cache import extract
from anysat.tasks.base import make_task
from anysat.tasks.predictor import PREDICTOR_FILE, Predictor, View, load_task
from anysat.tasks.probe import outputs_of
from anysat.workflows.tile_tables import answers as tile_answers
from geo_builders import LEFT, TOP, geobox, ramp, write_tif
from labelled import randomise
from miniatures import miniature, samples_of
from own_builders import COVER, S2, described
from task_commands import scores_of

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "tasks.md"
NAMES = [f"t{number}" for number in range(12)]
SPECIES = ("beech", "oak", "spruce")
TARGETS = {
    "species": {"column": "species", "ignore": -1},
    "genera": {"column": "genera", "classes": ["x", "y"], "separator": ";"},
    "height": {"column": "height_m", "unit": "m"},
    "cover": COVER,
}


def table(names=NAMES, species=SPECIES):
    rows = [f"{name},{species[n % len(species)]},{('x', '', 'x;y')[n % 3]},{10 + n}.1,{('train', 'val', 'test')[n % 3]}"
            for n, name in enumerate(names)]  # fmt: skip
    rows[2] = f"{names[2]},,y,,test"
    return "\n".join(["id,species,genera,height_m,split", *rows])


def write_files(root, names, shift=0.0):
    """One date of 8 x 8 pixels of each tile, that of the last one dark, and 4 x 4 labels of which one has no class."""
    for number, name in enumerate(names):
        box = geobox((8, 8), left=LEFT + 1000 * number + shift)
        values = ramp(len(S2), 8, 8) * (1 + number % 5)
        write_tif(root / "s2" / f"{name}.tif", values if name != names[-1] else np.zeros_like(values), box, names=S2,
                  tags={"DATETIME": "2020:06:01"}, nodata=0)  # fmt: skip
        labels = np.full((1, 4, 4), number % 2, "uint8")
        labels[0, 1, 1] = 255
        write_tif(root / "cover" / f"{name}.tif", labels, geobox((4, 4), 20.0, LEFT + 1000 * number + shift, TOP))


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """Twelve tiles with every kind of target. Shared: never change it."""
    root = tmp_path_factory.mktemp("forest")
    (root / "s2").mkdir()
    (root / "cover").mkdir()
    write_files(root, NAMES)
    (root / "tiles.csv").write_text(table())
    described(root, tiles="tiles.csv", targets=TARGETS)
    return root


def saved(where, name, root, target, head, *, patch=20.0, keys=("s2",), dense=None):
    """A predictor with a random head in a folder, as a run leaves it."""
    encoder = load("nano").requires_grad_(False)
    tiles = open_dataset(name, root, "all", modalities=keys)
    encoder.normaliser = Normaliser.from_batch(Batch.of([tiles[n] for n in range(min(4, len(tiles)))]))
    view = View(patch_sizes_m=(patch,), modalities=tuple(keys), dense=dense)
    made = Predictor(encoder, make_task(find_dataset(name).target(target)), view, head)
    randomise(made.head)
    made.save(where / PREDICTOR_FILE)
    return where


@pytest.fixture(scope="module")
def runs(forest, tmp_path_factory):
    """A run for each target. Shared: never change it."""
    root = tmp_path_factory.mktemp("runs")
    for target in TARGETS:
        is_pixel = target == "cover"
        saved(root / target, f"{forest}/mine.yaml", forest, target, "dense" if is_pixel else "both",
              dense="s2" if is_pixel else None)  # fmt: skip
    return root


def command(run, root, out, *more, yaml_file="mine.yaml"):
    return ["datasets", "predict", str(run), f"{root}/{yaml_file}", str(root), "--out", str(out), "--num-workers", "0",
            *map(str, more)]  # fmt: skip


def predicted(run, root, out, *more, **options):
    assert main(command(run, root, out, *more, **options)) == 0
    return pandas.read_parquet(out)


def answers(run, root, count=12):
    """What the predictor says of the tiles, as many at a time as scores are of."""
    predictor, tiles = load_task(run), open_dataset(f"{root}/mine.yaml", root, "all", modalities=["s2"])
    return [predictor.predict(Batch.of([tiles[n] for n in range(start, min(start + 8, count))]))
            for start in range(0, count, 8)]  # fmt: skip


# --- the table


def test_a_row_per_tile_with_class_probabilities_and_label(forest, runs, tmp_path, capsys):
    rows = predicted(runs / "species", forest, tmp_path / "t.parquet")
    assert list(rows) == ["id", "split", "species", "species_name", "lon", "lat", "predicted", "predicted_name",
                          "confidence", "probabilities", "geometry"]  # fmt: skip
    assert rows["id"].tolist() == NAMES
    assert rows["split"].tolist()[:3] == ["train", "val", "test"]
    assert rows["species_name"].fillna("").tolist()[:4] == ["beech", "oak", "", "beech"]
    shares = torch.cat([one.probabilities for one in answers(runs / "species", forest)]).numpy()[:-1]
    np.testing.assert_array_equal(np.stack(rows["probabilities"][:-1]), shares)
    assert rows["predicted_name"].tolist()[:-1] == [SPECIES[n] for n in shares.argmax(1)]
    np.testing.assert_array_equal(rows["confidence"][:-1], shares.max(1))
    assert rows.iloc[-1][["predicted", "predicted_name", "confidence", "probabilities"]].isna().all()
    told = capsys.readouterr().out
    assert "1 tile without valid values, null in the table: t11" in told
    assert "labels: species, of 11 of 12 tiles" in told
    kept = json.loads(pyarrow.parquet.read_schema(tmp_path / "t.parquet").metadata[b"anysat"])
    assert (kept["target"], kept["classes"], kept["precision"]) == ("species", list(SPECIES), "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_values_are_in_the_unit_of_the_target_and_places_in_degrees(forest, runs, tmp_path):
    import geopandas

    out = tmp_path / "t.parquet"
    rows = predicted(runs / "height", forest, out)
    wanted = torch.cat([one.answer for one in answers(runs / "height", forest)]).double().numpy()
    np.testing.assert_array_equal(rows["predicted"], wanted)
    np.testing.assert_allclose(rows["height"][:4], [10.1, 11.1, np.nan, 13.1], rtol=1e-6)
    assert "probabilities" not in rows
    points = geopandas.read_parquet(out)
    assert points.crs.to_authority() == ("OGC", "CRS84")
    assert (points.geometry.x == rows["lon"]).all()
    assert rows["lon"].is_monotonic_increasing


def test_several_labels_are_lists_with_a_score_for_each(forest, runs, tmp_path):
    rows = predicted(runs / "genera", forest, tmp_path / "t.parquet")
    shares = np.stack(rows["probabilities"][:-1])
    assert np.stack(rows["predicted"][:-1]).tolist() == (shares > 0.5).astype(int).tolist()
    assert [list(names) for names in rows["predicted_names"][:-1]] == [
        [name for name, share in zip("xy", row, strict=True) if share > 0.5] for row in shares
    ]
    assert rows["predicted"].isna().tolist() == [False] * 11 + [True]
    assert [list(names) for names in rows["genera_names"][:3]] == [["x"], [], ["y"]]


def test_row_groups_and_workers_change_nothing(forest, runs, tmp_path, monkeypatch):
    predicted(runs / "species", forest, tmp_path / "a.parquet")
    monkeypatch.setattr(tile_answers, "ROWS", 3)
    predicted(runs / "species", forest, tmp_path / "b.parquet", "--num-workers", "1")
    assert pyarrow.parquet.ParquetFile(tmp_path / "b.parquet").num_row_groups == 2
    one, other = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert one.equals(other)


def test_the_number_of_tiles_at_a_time_changes_no_more_than_the_last_digits(forest, runs, tmp_path):
    ours, theirs = (predicted(runs / "height", forest, tmp_path / f"{size}.parquet", "--batch-size", size)
                    for size in (1, 5))  # fmt: skip
    np.testing.assert_allclose(ours["predicted"], theirs["predicted"], rtol=1e-4)
    assert ours["id"].tolist() == theirs["id"].tolist()


@pytest.mark.filterwarnings("ignore")  # of classes that a random head never predicts
def test_the_example_of_the_documentation_scores_the_table(forest, runs, tmp_path, monkeypatch, capsys):
    predicted(runs / "species", forest, tmp_path / "predictions.parquet")
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text().split("## Predict the tiles of a dataset")[1]
    exec(re.search(r"```python\n(.*?)```", section, re.S)[1], {})
    assert "beech" in capsys.readouterr().out.split("precision")[1]


# --- other tiles


@pytest.fixture
def new(tmp_path):
    """Four tiles elsewhere, two of the species; a test may change it."""
    root = tmp_path / "new"
    (root / "s2").mkdir(parents=True)
    (root / "cover").mkdir()
    names = [f"n{number}" for number in range(4)]
    write_files(root, names, shift=50_000)
    (root / "tiles.csv").write_text(table(names, ("spruce", "beech")))
    described(root, tiles="tiles.csv", targets=TARGETS, name="other")
    return root


def test_labels_of_new_tiles_have_the_numbers_of_the_run(runs, new, tmp_path):
    """The new table has two classes, which it would number 0 and 1."""
    rows = predicted(runs / "species", new, tmp_path / "t.parquet")
    assert rows["species_name"].fillna("").tolist() == ["spruce", "beech", "", "beech"]
    assert rows["species"].fillna(-1).tolist() == [2, 0, -1, 0]


def test_statistics_are_those_of_the_run(forest, runs, new, tmp_path):
    """New tiles with the pixels of the old ones get the same answers, whatever their dataset is called."""
    rows = predicted(runs / "height", new, tmp_path / "t.parquet", "--split", "all")
    first = answers(runs / "height", forest, count=4)[0].answer.double().numpy()[:3]
    np.testing.assert_array_equal(rows["predicted"][:3], first)


def test_tiles_without_labels_need_no_target(runs, new, tmp_path, capsys):
    described(new, tiles="tiles.csv", name="other")
    rows = predicted(runs / "species", new, tmp_path / "t.parquet")
    assert "species" not in rows
    assert rows["predicted"].notna().tolist() == [True, True, True, False]
    assert "labels: none, because the dataset has no target 'species'" in capsys.readouterr().out


def test_missing_labels_are_told_with_the_option_that_does_without(runs, new, tmp_path, capsys):
    for path in (new / "cover").iterdir():
        path.unlink()
    assert main(command(runs / "cover", new, tmp_path / "maps")) == 2
    told = capsys.readouterr().err
    assert "the raster of target 'cover'" in told
    assert "--labels false predicts without reading labels" in told
    assert not (tmp_path / "maps").exists()
    assert main(command(runs / "cover", new, tmp_path / "maps", "--labels", "false")) == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["predicted", "tiles.parquet"]


def test_a_class_that_the_run_does_not_know_is_refused(runs, new, tmp_path, capsys):
    text = (new / "tiles.csv").read_text()
    (new / "tiles.csv").write_text(text.replace("n1,beech", "n1,willow"))
    assert main(command(runs / "species", new, tmp_path / "t.parquet")) == 2
    assert "expected classes that the run knows: beech, oak, spruce, got also willow" in capsys.readouterr().err
    rows = predicted(runs / "species", new, tmp_path / "t.parquet", "--labels", "false")
    assert "species" not in rows


def test_tiles_of_another_side_than_those_of_the_training_are_told(forest, tmp_path, capsys):
    for target, head, told in (("species", "both", True), ("cover", "dense", False)):
        (tmp_path / f"run-{target}").mkdir()
        run = saved(tmp_path / f"run-{target}", f"{forest}/mine.yaml", forest, target, head,
                    dense="s2" if target == "cover" else None)  # fmt: skip
        predictor = load_task(run)
        for side_m in (80.0, 40.0):
            predictor.tile_m = side_m
            predictor.save(run / PREDICTOR_FILE)
            out = tmp_path / f"{target}{side_m:.0f}{'.parquet' if target == 'species' else ''}"
            assert main(command(run, forest, out)) == 0
            found = "one answer per tile of 40 m; the run was trained on tiles of 80 m" in capsys.readouterr().out
            assert found == (told and side_m == 80)


def test_a_description_that_differs_from_that_of_the_training_data_is_told(runs, new, tmp_path, capsys):
    run = load_task(runs / "species")
    run.sources = {"s2": {"units": "reflectance_1e4", "quality": "scl"}}
    run.save(tmp_path / "run" / PREDICTOR_FILE)
    said = {"path": "s2/{id}.tif", "units": "reflectance_1e4"}
    described(new, tiles="tiles.csv", name="other", modalities={"s2": said})
    assert main(command(tmp_path / "run", new, tmp_path / "t.parquet")) == 0
    assert "s2: quality is not stated here, and scl for the training data\n" in capsys.readouterr().out


# --- rasters


def test_pixels_are_written_as_a_georeferenced_raster_per_tile_beside_its_labels(forest, runs, tmp_path):
    out = tmp_path / "maps"
    assert main(command(runs / "cover", forest, out, "--probabilities")) == 0
    rows = pandas.read_parquet(out / "tiles.parquet")
    assert rows["file"].tolist() == [f"{name}.tif" for name in NAMES]
    assert rows["predicted_frac"].tolist() == [1.0] * 11 + [0.0]
    found = torch.cat([one.answer for one in answers(runs / "cover", forest)])
    shares = torch.cat([one.probabilities for one in answers(runs / "cover", forest)])
    with rasterio.open(out / "predicted" / "t3.tif") as file:
        np.testing.assert_array_equal(file.read(1), found[3].numpy())
        assert (file.crs.to_epsg(), file.res) == (32737, (20.0, 20.0))
        assert (file.bounds.left, file.bounds.top) == (LEFT + 3000 + 20, TOP - 20)  # 40 m in the middle of 80 m
        assert file.tags()["CLASS_1"] == "b"
        assert json.loads(file.tags()["ANYSAT"])["tile"] == "t3"
    with rasterio.open(out / "label" / "t3.tif") as file:
        assert file.read(1).tolist() == [[255, 1], [1, 1]]
    with rasterio.open(out / "probabilities" / "t3.tif") as file:
        np.testing.assert_array_equal(file.read(), np.moveaxis(shares[3].numpy(), -1, 0))
        assert file.descriptions == ("a", "b")
    with rasterio.open(out / "predicted" / "t11.tif") as file:
        assert (file.read(1) == 255).all()


def test_maps_hold_the_numbers_by_which_the_label_rasters_store_classes(forest, tmp_path, capsys):
    """Also those of a run of the dataset, on ground larger than a tile, and beside the labels as they are stored."""
    (root := tmp_path / "data").mkdir()
    for name in ("s2", "cover", "tiles.csv"):
        (root / name).symlink_to(forest / name)
    described(root, tiles="tiles.csv", targets={"cover": COVER | {"classes": ["b", "a"], "values": [1, 0]}})
    run = saved(tmp_path / "run", f"{root}/mine.yaml", root, "cover", "dense", dense="s2")
    assert main(command(run, root, tmp_path / "maps")) == 0
    found = torch.cat([one.answer for one in answers(run, root)])
    with rasterio.open(tmp_path / "maps" / "predicted" / "t3.tif") as file:
        np.testing.assert_array_equal(file.read(1), 1 - found[3].numpy())
        assert (file.tags()["CLASS_1"], file.colormap(1)[1][:3]) == ("b", (237, 232, 209))
    with rasterio.open(tmp_path / "maps" / "label" / "t3.tif") as file:
        assert file.read(1).tolist() == [[255, 1], [1, 1]]
    image = root / "s2" / "t3.tif"
    for out in ("area.zarr", "tile.tif"):
        assert main(["predict", str(run), f"s2={image}", "--out", str(tmp_path / out)]) == 0
    with rasterio.open(tmp_path / "tile.tif") as file:
        classes = file.read(1)
    assert f"b {np.mean(classes == 1):.0%}" in capsys.readouterr().out.rpartition("cover:")[2]
    stored = zarr.open_array(tmp_path / "area.zarr", path="class/class", mode="r")
    assert stored.attrs["flag_values"] == [1, 0]
    np.testing.assert_array_equal(stored[0], classes)


@pytest.mark.parametrize(("names", "is_told"), [(("30", "10", "20"), False), (("70000", "10", "20"), True)])
def test_a_table_says_which_numbers_of_classes_do_not_fit(forest, tmp_path, capsys, names, is_told):
    (root := tmp_path / "data").mkdir()
    (root / "s2").symlink_to(forest / "s2")
    (root / "tiles.csv").write_text(table(species=names))
    described(root, tiles="tiles.csv", targets={"species": TARGETS["species"]})
    run = saved(tmp_path / "run", f"{root}/mine.yaml", root, "species", "both")
    assert main(command(run, root, tmp_path / "a.parquet")) == 0
    assert main(["datasets", "embed", f"{root}/mine.yaml", str(root), "--weights=nano",
                 f"--out={tmp_path / 'b.parquet'}"]) == 0  # fmt: skip
    assert capsys.readouterr().out.count("counted from 0, because") == 2 * is_told


def test_classes_of_a_column_that_are_whole_numbers_are_predicted_as_these(forest, tmp_path):
    (root := tmp_path / "data").mkdir()
    (root / "s2").symlink_to(forest / "s2")
    (root / "tiles.csv").write_text(table(species=("30", "10", "20")))
    described(root, tiles="tiles.csv", targets={"species": TARGETS["species"]})
    run = saved(tmp_path / "run", f"{root}/mine.yaml", root, "species", "both")
    rows = predicted(run, root, tmp_path / "a.parquet").dropna()
    assert set(rows["predicted"]) | set(rows["species"]) <= {10, 20, 30}
    for name in ("predicted", "species"):
        assert rows[name].astype(int).astype(str).tolist() == rows[f"{name}_name"].tolist()


def test_tiles_whose_place_nobody_knows_are_rasters_in_metres(tmp_path):
    root, record = miniature("bradd_s1ts"), find_dataset("bradd_s1ts")
    key = record.modalities[0]
    run = saved(tmp_path / "run", "bradd_s1ts", root, record.targets[0].name, "dense", keys=(key,), dense=key,
                patch=record.patch_sizes_m[0])  # fmt: skip
    words = [
        "datasets",
        "predict",
        str(run),
        "bradd_s1ts",
        str(root),
        "--out",
        str(tmp_path / "maps"),
        "--num-workers=0",
        "--split=test",
    ]
    assert main(words) == 0
    rows = pandas.read_parquet(tmp_path / "maps" / "tiles.parquet")
    assert rows["lon"].isna().all()
    with rasterio.open(tmp_path / "maps" / "label" / rows["file"][0]) as file:
        assert (file.crs, file.bounds[:2], file.res) == (None, (0, 0), (10, 10))
        labels = samples_of("bradd_s1ts", "test")[0].targets[record.targets[0].name]
        np.testing.assert_array_equal(file.read(1), np.where(labels == record.targets[0].ignore, 255, labels))


def test_rasters_have_names_that_files_may_have_and_none_twice(forest, runs):
    kept = tile_answers.Answers(load_task(runs / "cover"), open_dataset(f"{forest}/mine.yaml", forest, "all"), None, {},
                                with_probabilities=False)  # fmt: skip
    assert [kept._file(name) for name in ("D1/Z3 UU/7", "D1_Z3_UU_7", "é")] == [
        "D1_Z3_UU_7.tif",
        "D1_Z3_UU_7_2.tif",
        "é.tif",
    ]


# --- the run's own report


def confusion_of(truth, answer, count):
    known = truth.notna()
    found = np.zeros((count, count + 1), int)
    np.add.at(found, (truth[known].astype(int), answer[known].fillna(count).astype(int)), 1)
    return found.tolist()


def words_of(forest, target):
    """The words of a command that learns one of the forest's targets."""
    data = [f"--data.dataset={forest}/mine.yaml", f"--data.root={forest}", f"--data.target={target}"]
    return [*data, "--patch-sizes-m=[20]"]


def test_the_test_split_is_predicted_exactly_as_a_probe_was_scored(forest, run_task, tmp_path):
    """From the same outputs, to the last bit; those of the run are kept with its embeddings."""
    status, _, err = run_task(
        "probe", *words_of(forest, "species"), "--epochs=2", "--learning-rates=[0.01]", "--report=false"
    )
    assert status == 0, err
    rows = predicted(tmp_path / "run", forest, tmp_path / "t.parquet", "--split", "test")
    run, tiles = load_task(tmp_path / "run"), open_dataset(f"{forest}/mine.yaml", forest, "test")
    kept = extract(run.encoder, tiles, 20.0, tmp_path / "run" / "features", modalities=("s2",))
    assert kept.num_new == 0
    with torch.inference_mode():
        shares = run.task.probabilities(outputs_of(run.head, [kept.embeddings(range(len(kept)))])).numpy()
    np.testing.assert_array_equal(np.stack(rows["probabilities"].dropna()), shares[np.isfinite(shares).all(1)])
    assert rows["predicted"].isna().tolist() == (~np.isfinite(shares).all(1)).tolist()
    wanted = scores_of(tmp_path / "run")["scores"]["test"]
    assert confusion_of(rows["species"], rows["predicted"], len(SPECIES)) == wanted["confusion"]


def test_the_test_split_is_predicted_exactly_as_fine_tuning_was_scored(forest, run_task, tmp_path):
    status, _, err = run_task("finetune", *words_of(forest, "height"), "--epochs=1", "--batch-size=3", "--report=false")
    assert status == 0, err
    rows = predicted(tmp_path / "run", forest, tmp_path / "t.parquet", "--split", "test")
    sheet = load_task(tmp_path / "run").task.metric()
    sheet.update(*(torch.tensor(rows[name].to_numpy(), dtype=torch.float32) for name in ("predicted", "height")), None)
    wanted = scores_of(tmp_path / "run")["scores"]["test"]["figures"]
    assert sheet.compute().to_dict()["figures"] == wanted


def test_pixels_of_the_test_split_are_those_that_were_scored(forest, run_task, tmp_path):
    own = [f"--data.dataset={forest}/mine.yaml", f"--data.root={forest}", "--data.target=cover", "--patch-sizes-m=[20]"]
    status, _, err = run_task("probe", *own, "--epochs=2", "--learning-rates=[0.01]", "--report=false")
    assert status == 0, err
    assert main(command(tmp_path / "run", forest, tmp_path / "maps", "--split", "test")) == 0
    files = pandas.read_parquet(tmp_path / "maps" / "tiles.parquet")["file"]
    pixels = {}
    for kind in ("label", "predicted"):
        read = [rasterio.open(tmp_path / "maps" / kind / name).read(1).ravel() for name in files]
        pixels[kind] = pandas.Series(np.concatenate(read)).replace(255, pandas.NA)
    wanted = scores_of(tmp_path / "run")["scores"]["test"]["confusion"]
    assert confusion_of(pixels["label"], pixels["predicted"], 2) == wanted


def test_precision_is_that_of_the_scores_unless_another_is_asked_for(forest, runs, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / PREDICTOR_FILE).write_bytes((runs / "species" / PREDICTOR_FILE).read_bytes())
    for options, wanted in (({"precision": "bf16"}, "bf16"), ({"engine": {"precision": "bf16"}}, "bf16"),
                            ({"engine": {"precision": "32"}}, "float32")):  # fmt: skip
        (run / "config.yaml").write_text(yaml.safe_dump(options))
        assert main(command(run, forest, tmp_path / "t.parquet", "--overwrite")) == 0
        assert f"computed in {wanted}" in capsys.readouterr().out
    assert main(command(run, forest, tmp_path / "t.parquet", "--overwrite", "--precision", "bf16")) == 0
    assert "computed in bf16" in capsys.readouterr().out


# --- mistakes


@pytest.mark.parametrize(
    ("target", "more", "words"),
    [
        ("species", ["--out", "t.csv"], "--out: expected a name ending in .parquet, because 'species' is per tile"),
        ("cover", ["--out", "t.parquet"], "--out: expected a folder, because 'cover' is per pixel"),
        ("species", ["--probabilities"], "--probabilities: expected false, because 'species' is per tile"),
        ("species", ["--split", "fold9"], "unknown split of mine 'fold9'"),
        ("species", ["--batch-size", "0"], "--batch-size: expected 1 or more"),
        ("species", ["--num-workers", "-1"], "--num-workers: expected 0 or more"),
        ("species", ["--precision", "fp8"], "unknown --precision 'fp8'"),
        ("nothing", [], "expected the folder of a finished probe or fine-tuning run"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(target, more, words, forest, runs, tmp_path, capsys):
    assert main(command(runs / target, forest, tmp_path / "t.parquet", *more)) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("target", "out"), [("species", "t.parquet"), ("cover", "maps")])
def test_a_dataset_without_the_modalities_of_the_run_is_refused(target, out, forest, runs, tmp_path, capsys):
    words = ["datasets", "predict", str(runs / target), "hls_burn_scars", str(forest), "--out", str(tmp_path / out)]
    assert main(words) == 2
    assert "(the run was trained on s2), got hls" in capsys.readouterr().err


def test_labels_that_mean_something_else_are_refused(runs, new, tmp_path, capsys):
    described(new, tiles="tiles.csv", targets={"height": {"column": "height_m", "unit": "cm"}}, name="other")
    assert main(command(runs / "height", new, tmp_path / "t.parquet")) == 2
    assert "target 'height' of other: expected unit 'm', as in training, got 'cm'" in capsys.readouterr().err


def test_what_exists_is_not_replaced_unasked_nor_inputs_ever(forest, runs, tmp_path, capsys):
    (tmp_path / "t.parquet").write_text("mine")
    assert main(command(runs / "species", forest, tmp_path / "t.parquet")) == 2
    assert "t.parquet exists" in capsys.readouterr().err
    assert (tmp_path / "t.parquet").read_text() == "mine"
    for out in (forest, forest.parent, forest / "cover", runs / "cover"):
        assert main(command(runs / "cover", forest, out, "--overwrite")) == 2
        assert "--out: expected a path other than that of an input" in capsys.readouterr().err
    assert (forest / "cover" / "t0.tif").is_file()


def test_a_run_over_folds_says_which_folders_have_predictors(forest, tmp_path, capsys):
    (tmp_path / "folds.json").write_text(json.dumps({"folds": {"fold1": {}, "fold2": {}}}))
    assert main(command(tmp_path, forest, tmp_path / "t.parquet")) == 2
    assert f"give one of {tmp_path / 'fold1'}, {tmp_path / 'fold2'}" in capsys.readouterr().err


def test_a_target_may_not_have_the_name_of_another_column(forest, runs, tmp_path, capsys):
    run = load_task(runs / "height")
    run.task = replace(run.task, target=replace(run.task.target, name="predicted"))
    run.save(tmp_path / "run" / PREDICTOR_FILE)
    described(tmp_path, tiles=str(forest / "tiles.csv"), targets={"predicted": {"column": "height_m", "unit": "m"}})
    words = command(tmp_path / "run", forest, tmp_path / "t.parquet")
    assert main([*words[:3], str(tmp_path / "mine.yaml"), *words[4:]]) == 2
    assert "a name other than those of other columns" in capsys.readouterr().err
