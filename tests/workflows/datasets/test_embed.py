"""`anysat datasets embed`: a table of tile embeddings with splits, places and labels."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest

from anysat.cli import main
from anysat.data.open import open_dataset
from anysat.geo.claims import alone_at
from anysat.model.load import load
from anysat.probing.cache import extract
from anysat.workflows.datasets.embed import run as dataset_embed_run
from geo_builders import geobox, ramp, write_tif
from miniatures import miniature
from own_builders import S2, described

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "datasets.md"
TABLE = """id,lon,lat,species,genera,height_m,split
a,10.1,51.1,beech,x;y,24.5,train
b,10.2,51.2,spruce,,18,train
c,10.3,51.3,,y,,test
d,10.4,51.4,beech,x,3,test
"""
TARGETS = {
    "species": {"column": "species", "ignore": -1},
    "genera": {"column": "genera", "classes": ["x", "y"], "separator": ";"},
    "height": {"column": "height_m", "unit": "m"},
}


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """Four tiles of one date, of which the last shows nothing. Shared: never change it."""
    root = tmp_path_factory.mktemp("forest")
    (root / "s2").mkdir()
    for number, name in enumerate("abcd"):
        values = ramp(len(S2), 8, 8) * (1 + number)
        write_tif(root / "s2" / f"{name}.tif", values if name != "d" else np.zeros_like(values), geobox((8, 8)),
                  names=S2, tags={"DATETIME": "2020:06:01"}, nodata=0)  # fmt: skip
    (root / "tiles.csv").write_text(TABLE)
    described(root, tiles="tiles.csv", targets=TARGETS)
    return root


def command(root, out, *more):
    return ["datasets", "embed", f"{root}/mine.yaml", str(root), "--out", str(out), "--patch-size-m", "20",
            "--precision", "float32", "--num-workers", "0", *map(str, more)]  # fmt: skip


@pytest.fixture(scope="module")
def table(forest, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "t.parquet"
    assert main(command(forest, out)) == 0
    return out


def test_a_row_per_tile_with_split_place_and_labels(table):
    rows = pandas.read_parquet(table)
    assert rows["id"].tolist() == ["a", "b", "c", "d"]
    assert rows["split"].tolist() == ["train", "train", "test", "test"]
    assert rows["species_name"].fillna("").tolist() == ["beech", "spruce", "", "beech"]
    assert rows["species"].tolist()[:2] == [0, 1]
    assert np.isnan(rows["species"][2])
    assert [list(names) for names in rows["genera_names"]] == [["x", "y"], [], ["y"], ["x"]]
    assert np.stack(rows["genera"]).tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    np.testing.assert_equal(rows["height"].to_numpy(), [24.5, 18, np.nan, 3])


def test_embeddings_are_those_of_the_encoder_and_null_where_nothing_was_seen(table, forest, tmp_path):
    rows = pandas.read_parquet(table)
    assert rows["embedding"].isna().tolist() == [False, False, False, True]
    assert rows["seen_frac"].tolist() == [1, 1, 1, 0]
    encoder, tiles = load("nano"), open_dataset(f"{forest}/mine.yaml", forest, "all")
    told = json.loads(pyarrow.parquet.read_schema(table).metadata[b"anysat"])
    from anysat.data.statistics import compute_statistics

    train = open_dataset(f"{forest}/mine.yaml", forest, "train")
    encoder.normaliser = compute_statistics(train, partial=tmp_path / "p")
    found = extract(encoder, tiles, 20.0, tmp_path / "f", modalities=("s2",)).embeddings(range(3))
    np.testing.assert_array_equal(np.stack(rows["embedding"][:3]), found.tile.numpy())
    assert (told["patch_size_m"], told["precision"], told["dataset"]["modalities"]) == (20, "float32", ["s2"])
    assert told["classes"] == {"species": ["beech", "spruce"], "genera": ["x", "y"]}
    assert told["weights"]["digest"]


def test_the_file_is_geoparquet_with_points_in_longitude_and_latitude(table):
    import geopandas

    from anysat.geo.degrees import centre_deg

    rows = geopandas.read_parquet(table)
    place = centre_deg(geobox((8, 8)))
    assert rows.crs.to_authority() == ("OGC", "CRS84")
    np.testing.assert_allclose(rows[["lon", "lat"]], [place] * 4, atol=1e-6)
    assert (rows.geometry.x == rows["lon"]).all()


def test_what_was_done_is_told_with_tiles_without_a_valid_value(forest, tmp_path, capsys):
    assert main(command(forest, tmp_path / "t.parquet", "--split", "test")) == 0
    told = capsys.readouterr().out
    assert "mine: 2 tiles (2 test)" in told
    assert "1 tile without valid values, null in the table: d" in told
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    assert len(pandas.read_parquet(tmp_path / "t.parquet")) == 2


def test_row_groups_and_workers_change_nothing(table, forest, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_embed_run, "ROWS", 3)
    assert main([*command(forest, tmp_path / "t.parquet"), "--num-workers", "1"]) == 0
    assert pyarrow.parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 2
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").equals(pyarrow.parquet.read_table(table))


def test_an_interrupted_command_goes_on_with_what_is_there(forest, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset_embed_run, "_write", stop)
        assert main(command(forest, tmp_path / "t.parquet")) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet.partial"]
    assert main(command(forest, tmp_path / "t.parquet")) == 0
    assert "4 tiles were already embedded" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_without_a_known_place_the_table_is_plain_parquet_with_folds_of_the_dataset(tmp_path):
    words = ["--split", "testing", "--patch-size-m", "80", "--num-workers", "0"]
    assert (
        main(["datasets", "embed", "so2sat", str(miniature("so2sat")), f"--out={tmp_path / 't.parquet'}", *words]) == 0
    )
    rows = pandas.read_parquet(tmp_path / "t.parquet")
    assert set(rows["split"]) == {"test"}
    assert set(rows["member"]) == {"testing"}
    assert not {"lon", "lat", "geometry"} & set(rows)
    assert b"geo" not in pyarrow.parquet.read_schema(tmp_path / "t.parquet").metadata


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--out", "t.csv"], "--out: expected a name ending in .parquet, got 't.csv'"),
        (["--modalities", "s1"], "unknown modality of mine 's1'"),
        (["--split", "val"], "mine, split val: expected at least one tile"),
        (["--patch-size-m", "0"], "--patch-size-m"),
        (["--weights", "unheard-of.pth"], "unheard-of.pth"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(more, words, forest, tmp_path, capsys):
    assert main(command(forest, tmp_path / "t.parquet", *more)) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_that_lack_a_modality_say_which_are_left(tmp_path, capsys):
    root = miniature("treesatai_ts")
    assert main(["datasets", "embed", "treesatai_ts", str(root), "--out", str(tmp_path / "t.parquet")]) == 2
    told = capsys.readouterr().err
    assert "unknown modality of the weights 's1-des'" in told
    assert "Leave it out: --modalities [aerial,s2,s1-asc]" in told
    assert not list(tmp_path.iterdir())


def test_a_target_may_not_have_the_name_of_another_column(forest, tmp_path, capsys):
    targets = {"embedding": {"column": "height_m", "unit": "m"}}
    (tmp_path / "tiles.csv").write_text(TABLE)
    described(tmp_path, tiles=str(forest / "tiles.csv"), targets=targets)
    words = command(forest, tmp_path / "t.parquet")
    assert main([*words[:2], str(tmp_path / "mine.yaml"), *words[3:]]) == 2
    assert "a name other than those of other columns" in capsys.readouterr().err


def test_a_table_that_exists_is_not_replaced_unasked(table, forest, capsys):
    assert main(command(forest, table)) == 2
    assert "t.parquet" in capsys.readouterr().err


def test_the_example_of_the_documentation_fits_and_scores(tmp_path, monkeypatch, capsys):
    root = miniature("so2sat")
    block = re.search(
        r"## Embeddings for scikit-learn.*?```bash\n(.*?)```.*?```python\n(.*?)```", PAGE.read_text(), re.S
    )
    words = block[1].strip().removeprefix("anysat ").replace("data/So2Sat", str(root)).split()
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    exec(block[2], {})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1


def test_a_table_that_is_no_table_of_embeddings_is_not_replaced_even_if_asked(table, forest, tmp_path, capsys):
    """It may be the dataset's own."""
    own = tmp_path / "tiles.parquet"
    pandas.read_csv(forest / "tiles.csv").to_parquet(own)
    before = own.read_bytes()
    assert main(command(forest, own, "--overwrite", "true")) == 2
    assert "expected a table of embeddings that `anysat datasets embed` wrote" in capsys.readouterr().err
    assert own.read_bytes() == before
    shutil.copy(table, own)
    assert main(command(forest, own, "--overwrite", "true", "--split", "test")) == 0
    assert len(pandas.read_parquet(own)) == 2


def test_a_folder_of_other_files_is_neither_used_nor_removed(forest, tmp_path, capsys):
    folder = tmp_path / "t.parquet.partial"
    folder.mkdir()
    for name in ("precious.txt", "weights.safetensors"):
        (folder / name).write_text("mine")
        assert main(command(forest, tmp_path / "t.parquet")) == 2
        assert f"t.parquet.partial: expected unfinished work of this command, got {name!r}" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [name]
        (folder / name).unlink()


def test_two_commands_do_not_work_on_one_table_at_a_time(forest, tmp_path, capsys):
    with alone_at(tmp_path / "t.parquet"):
        assert main(command(forest, tmp_path / "t.parquet")) == 2
        assert f"got process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()
