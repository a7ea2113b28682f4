"""`anysat evaluate --compare --features`: tables of embeddings that others made, beside our own."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas
import pytest

from anysat.cli import main
from anysat.errors import SourceError
from anysat.workflows.evaluate.given import read_given
from own_builders import described
from task_commands import world_words

PAGE = Path(__file__).parents[3] / "docs/howto/tasks.md"
NAMES = [f"f{number:03}" for number in range(120)]


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """120 pixels of two crops, of which the last has no label. Shared: never change it."""
    root, draw = tmp_path_factory.mktemp("fields"), np.random.default_rng(0)
    rows = ["id,date,B2,B3,crop,split"]
    for number, name in enumerate(NAMES):
        crop = "pq"[draw.integers(2)]
        for month in range(4, 9):
            blue, green = draw.normal(1000 + 400 * (crop == "p") * (month > 5), 150, 2).round()
            label = "" if number == len(NAMES) - 1 else crop
            rows.append(f"{name},2020-0{month}-01,{blue},{green},{label},{('train', 'val', 'test')[number % 3]}")
    (root / "series.csv").write_text("\n".join(rows))
    crop = {"column": "crop", "ignore": -1}
    described(root, tile_m=10, modalities={"s2": {"table": "series.csv"}}, targets={"crop": crop})
    return root


@pytest.fixture(scope="module")
def ours(fields):
    """The table of our own embeddings."""
    path = fields / "ours.parquet"
    assert main(["datasets", "embed", f"{fields}/mine.yaml", str(fields), f"--out={path}", "--patch-size-m=10",
                 "--precision=float32", "--num-workers=0"]) == 0  # fmt: skip
    return path


@pytest.fixture
def compared(fields, tmp_path, capsys):
    """Compares tables on the fields; gives exit status, lines by features and model, the record, report and errors."""

    def call(*words):
        path = tmp_path / "all.json"
        given = {"--weights": "[]", "--models": "[logistic,neighbours]"} | dict(word.split("=", 1) for word in words)
        status = main(["evaluate", "--compare", f"--data.dataset={fields}/mine.yaml", f"--data.root={fields}",
                       "--patch-sizes-m=[10]", f"--cache={tmp_path / 'cache'}", f"--out={path}",
                       *(f"{name}={value}" for name, value in given.items())])  # fmt: skip
        said = capsys.readouterr()
        record = json.loads(path.read_text()) if path.exists() else None
        lines = {(one["features"], one["model"]): one for one in record["lines"]} if record else None
        return status, lines, record, said.out, said.err

    return call


def test_another_baseline_is_compared_with_on_the_same_draws(ours, compared):
    _, lines, record, out, err = compared("--weights=[nano]", f"--features=theirs={ours}", "--against=theirs")
    assert record["baseline"] == "theirs", err
    best = max(lines["theirs", model]["figures"]["f1_macro"] for model in ("logistic", "neighbours"))
    (itself,) = [one for one in record["lines"] if one["against_baseline"] == "baseline"]
    assert (itself["features"], itself["figures"]["f1_macro"], itself["difference"]) == ("theirs", best, [0, 0])
    assert lines["nano, 10 m, tile", itself["model"]]["difference"] == [0, 0]
    low, high = lines["statistics", "neighbours"]["difference"]
    assert low <= lines["statistics", "neighbours"]["figures"]["f1_macro"] - best <= high
    assert "than theirs; " in out
    assert "than band statistics" not in out
    record = compared("--weights=[nano]", f"--features=theirs={ours}", "--against=nano")[2]
    (itself,) = [one for one in record["lines"] if one["against_baseline"] == "baseline"]
    assert itself["weights"] == "nano"
    status, _, _, _, err = compared("--against=thiers")
    assert status == 2
    assert "unknown --against 'thiers'" in err


@pytest.mark.parametrize("folds", [[], ["--data.folds=[train,val,test]"]])
def test_our_own_embeddings_from_a_table_have_exactly_the_scores_of_our_weights(folds, ours, compared, tmp_path):
    rows = pandas.read_parquet(ours)
    rows.sample(frac=1, random_state=3).to_parquet(tmp_path / "shuffled.parquet")
    wide = pandas.DataFrame(np.stack(rows["embedding"]).astype(float)).rename(columns=str)
    wide.assign(id=rows["id"], crop=rows["crop"]).to_csv(tmp_path / "wide.csv", index=False)
    tables = f"same={ours},shuffled={tmp_path}/shuffled.parquet,wide={tmp_path}/wide.csv"
    status, lines, _, _, err = compared("--weights=[nano]", f"--features=[{tables}]", *folds)
    assert status == 0, err
    for model in ("logistic", "neighbours"):
        for name in ("shuffled", "wide"):
            assert lines[name, model]["figures"] == lines["same", model]["figures"]
            assert lines[name, model]["intervals"] == lines["same", model]["intervals"]
        if not folds:  # in turns, ours are standardised by the training tiles of each
            wanted = lines["nano, 10 m, tile", model]
            for key in ("figures", "intervals", "difference", "num_features", "num_samples", "against_baseline"):
                assert lines["same", model][key] == wanted[key], key


def test_random_vectors_score_at_chance_and_worse_than_ours(ours, compared, tmp_path):
    draw = np.random.default_rng(1)
    rows = pandas.DataFrame({"id": NAMES, "v": [list(one) for one in draw.normal(size=(len(NAMES), 16))]})
    rows.to_parquet(tmp_path / "random.parquet")
    _, lines, _, out, _ = compared(f"--features=[random={tmp_path}/random.parquet,ours={ours}]")
    for model in ("logistic", "neighbours"):
        low, high = lines["random", model]["intervals"]["kappa"]
        assert low < 0 < high
        assert lines["random", model]["against_baseline"] == "worse"
        assert lines["ours", model]["figures"]["accuracy"] > 0.9
    assert re.search(
        r"^  random +logistic .* worse than band statistics; 16 features from the table; fitted", out, re.M
    )


def test_the_record_and_the_report_name_the_table_and_what_was_used_of_it(ours, compared):
    _, lines, record, out, _ = compared(f"--features=theirs={ours}")
    digest = hashlib.sha256(ours.read_bytes()).hexdigest()
    assert record["features"] == {"theirs": {
        "name": "theirs", "file": str(ours), "sha256": digest, "columns": ["embedding"], "rows": len(NAMES),
        "left_out": ["split", "crop", "crop_name", "seen_frac"], "tiles_without_values": 0,
    }}  # fmt: skip
    assert lines["theirs", "logistic"]["weights"] is None
    assert (
        f"theirs: `embedding` of {ours} (SHA-256 {digest[:12]}…); not used: 'split', 'crop', 'crop_name', and 1 more"
        in out
    )


def test_a_tile_without_values_is_one_everywhere_and_one_without_a_label_needs_no_row(ours, compared, tmp_path):
    rows = pandas.read_parquet(ours).iloc[:-1]
    vectors = [None if number == 5 else vector.copy() for number, vector in enumerate(rows["embedding"])]
    vectors[8][0] = np.nan
    rows.assign(embedding=vectors).to_parquet(tmp_path / "some.parquet")
    status, lines, record, out, err = compared(f"--features=[some={tmp_path}/some.parquet]")
    assert status == 0, err
    assert record["features"]["some"]["tiles_without_values"] == 1
    assert "some.parquet (SHA-256" in out
    assert "; 1 tiles without values" in out
    assert lines["some", "logistic"]["num_samples"] == lines["statistics", "logistic"]["num_samples"]


ROW = {"id": ["a", "b"], "v": [[1.0, 2.0], [3.0, 4.0]]}


@pytest.mark.parametrize(("content", "told"), [
    ({"v": ROW["v"]}, "unknown column of .* 'id'.*names of the tiles"),
    ({**ROW, "id": ["a", "a"]}, "the id 'a' is repeated, in row 2; write one row per tile"),
    ({**ROW, "id": ["a", None]}, "row 2 has no `id`"),
    ({**ROW, "v": [[1.0], [1.0, 2.0]]}, "vector of 'b' in `v` has 2 numbers, that of 'a' has 1"),
    ({**ROW, "v": [[1.0, np.inf], [1.0, 2.0]]}, "values of 'a' are not all finite"),
    ({**ROW, "w": ROW["v"]}, "several columns of vectors: v, w; keep one of them, or name it `embedding`"),
    ({"id": ["a", "b"], "name": ["x", "y"], "lon": [1.0, 2.0]}, "neither a column of vectors nor columns of numbers"),
    ({**ROW, "v": [[], []]}, "`v` has no numbers"),
])  # fmt: skip
def test_a_table_that_cannot_be_features_is_refused(content, told, tmp_path):
    pandas.DataFrame(content).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=told):
        read_given("x", tmp_path / "t.parquet")


def test_ids_are_text_and_labels_places_and_text_are_no_features(tmp_path):
    (tmp_path / "t.csv").write_text("id,b1,b2,lon,crop,note\n007,1,2.5,9,1,x\n8,,4,9,0,y\n")
    found = read_given("x", tmp_path / "t.csv", labels={"crop"})
    assert (list(found.ids), list(found.columns), list(found.left_out)) == (
        ["007", "8"], ["b1", "b2"], ["lon", "crop", "note"],
    )  # fmt: skip
    np.testing.assert_equal(found.vectors, [[1, 2.5], [np.nan, 4]])
    pandas.DataFrame({"id": [1, 2], "embedding": [[1, None], None]}).to_parquet(tmp_path / "t.parquet")
    found = read_given("x", tmp_path / "t.parquet")
    assert list(found.ids) == ["1", "2"]
    np.testing.assert_equal(found.vectors, [[1, np.nan], [np.nan, np.nan]])


def test_what_names_a_tile_or_its_place_is_no_feature_and_x_and_y_are_refused_unless_vectors_are_there(tmp_path):
    names = ["fold", "Tile", "index", "lat", "easting", "fid"]
    rows = pandas.DataFrame({"id": ["a", "b"], **{name: [1, 2] for name in names}, "f0": [1.0, 2.0]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    found = read_given("x", tmp_path / "t.csv")
    assert (list(found.columns), list(found.left_out)) == (["f0"], names)
    rows.assign(x=1.0, Y=2.0).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SourceError, match="columns of numbers 'x', 'Y' may be places.*give them other names"):
        read_given("x", tmp_path / "t.csv")
    rows.assign(x=1.0, v=ROW["v"]).to_parquet(tmp_path / "t.parquet")
    assert list(read_given("x", tmp_path / "t.parquet").columns) == ["v"]


def test_the_index_that_pandas_writes_is_no_feature(tmp_path):
    table = pandas.DataFrame({"id": ["a", "b"], "f0": [1.0, 2.0], "f1": [3.0, 4.0]}, index=[4, 7])
    table.to_csv(tmp_path / "t.csv")
    table.to_csv(tmp_path / "again.csv")
    pandas.read_csv(tmp_path / "again.csv").to_csv(tmp_path / "again.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "again.csv", "t.parquet"):
        assert read_given("x", tmp_path / name).columns == ["f0", "f1"]


@pytest.mark.parametrize(("change", "told"), [
    (lambda rows: rows.drop(index=[3, 4]), "a row for each of the 119 labelled tiles, got none for 2: 'f003', 'f004'"),
    (lambda rows: rows.assign(id="x" + rows["id"]), "such as 'f000', 'f001', 'f002', and 117 more, got 'xf000'"),
    (lambda rows: rows.assign(embedding=[[np.nan]] * len(rows)), "values for the labelled tiles, got none for any"),
])  # fmt: skip
def test_a_table_of_other_tiles_is_refused(change, told, ours, compared, tmp_path):
    change(pandas.read_parquet(ours)).to_parquet(tmp_path / "t.parquet")
    status, _, _, _, err = compared(f"--features=[theirs={tmp_path}/t.parquet]")
    assert status == 2
    assert "--features theirs, " in err
    assert told in err


@pytest.mark.parametrize(("words", "told"), [
    ("x", "NAME=FILE, each name once"), ("a=x.csv,a=y.csv", "each name once"), ("=x.csv", "NAME=FILE"),
    ("statistics=x.csv", "another name than"), ("theirs=none.csv", "none.csv: no such file"),
    ("theirs=x.txt", "unknown kind of table x.txt '.txt'"),
])  # fmt: skip
def test_words_that_name_no_table_are_refused(words, told, compared):
    status, _, _, _, err = compared(f"--features=[{words}]")
    assert status == 2
    assert told in err


def test_targets_per_pixel_take_no_table(ours, run_task):
    status, _, err = run_task("evaluate", "--compare", *world_words()[:4], "--weights=[]", f"--features=[x={ours}]")
    assert status == 2
    assert "--features x: expected a target per tile, got 'land_cover', a target per pixel" in err


def test_the_lines_of_the_page_compare_two_embeddings(tmp_path, monkeypatch, capsys):
    page = PAGE.read_text().split("### Compare with another system")[1].split("\n##")[0]
    commands = [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", page, re.S)
                for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert main(commands[0][1:]) == 0
    assert main(commands[1][1:]) == 0
    exec(lines, {})  # the page is ours
    capsys.readouterr()
    assert main([*commands[2][1:], "--models=[logistic]"]) == 0
    assert "theirs" in capsys.readouterr().out
