"""Statistics kept in a folder: computed again where tiles, files or their description are no longer the same."""

import os
from contextlib import contextmanager

import numpy as np
import pandas
import pytest

from anysat.cli import main
from anysat.data.kept_statistics import keep_statistics
from anysat.data.open import open_dataset
from anysat.normalise import Normaliser
from anysat.workflows.datasets.embed import run as dataset_embed_run
from anysat.workflows.finetune import run as finetune_run
from anysat.workflows.pretrain import run as pretrain_run
from geo_builders import ramp
from own_builders import S2, described, image

TABLE = "id,date,B2,B3\na,2020-05-01,1000,2000\na,2020-06-01,3000,6000\nb,2020-05-01,2000,1000\n"


def _kept(root):
    """Mean of the first band as it is kept after all is looked at, and when the file was written."""
    path = root / "kept" / "statistics.json"
    keep_statistics(path, open_dataset(str(root / "mine.yaml"), root, "all"))
    (table,) = Normaliser.read(path).statistics["mine"].values()
    return table.mean[0], path.stat().st_mtime_ns


def _series(root, text=TABLE, **said):
    (root / "series.csv").write_text(text)
    described(root, tile_m=10, modalities={"s2": {"table": "series.csv"} | said}, splits={"shares": {"train": 1.0}})


def test_they_are_computed_once_and_only_once(tmp_path):
    _series(tmp_path)
    assert _kept(tmp_path) == _kept(tmp_path)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"statistics.json", "statistics.of.json"}


@pytest.mark.parametrize(
    ("text", "said", "mean"),
    [(TABLE.replace("3000", "6000"), {}, 3000), (TABLE, {"scale": 0.0001}, 0.2), (TABLE, {"nodata": 3000}, 1500)],
)
def test_of_a_table_they_are_those_of_its_numbers_as_they_are_now_described(tmp_path, text, said, mean):
    _series(tmp_path)
    assert _kept(tmp_path)[0] == pytest.approx(2000)
    _series(tmp_path, text, **said)
    assert _kept(tmp_path)[0] == pytest.approx(mean)


def test_of_files_of_imagery_they_are_those_of_the_files_as_they_are_now(tmp_path):
    values = ramp(len(S2), 8, 8)
    described(tmp_path)
    image(tmp_path / "s2" / "a.tif", values)
    before = _kept(tmp_path)[0]
    image(tmp_path / "s2" / "a.tif", values + 100)
    os.utime(tmp_path / "s2" / "a.tif", ns=(1, 1))  # however soon, its time is another
    assert _kept(tmp_path)[0] == pytest.approx(before + 100)


def test_those_of_which_nobody_knows_where_from_are_computed_again(tmp_path):
    """As those of earlier versions."""
    _series(tmp_path)
    time = _kept(tmp_path)[1]
    (tmp_path / "kept" / "statistics.of.json").unlink()
    assert _kept(tmp_path)[1] != time


def test_what_was_begun_of_another_description_is_begun_again(tmp_path):
    _series(tmp_path)

    @contextmanager
    def stopped(_):
        def advance(done):
            if done:
                raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        keep_statistics(
            tmp_path / "kept" / "statistics.json", open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all"),
            opened=stopped,
        )  # fmt: skip
    assert (tmp_path / "kept" / "statistics.tmp").is_dir()
    _series(tmp_path, scale=0.0001)
    assert _kept(tmp_path)[0] == pytest.approx(0.2)


def test_a_table_of_embeddings_that_was_interrupted_goes_on_with_the_description_as_corrected(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    def command(out):
        return ["datasets", "embed", f"{tmp_path}/mine.yaml", str(tmp_path), "--out", f"{tmp_path}/{out}.parquet",
                "--precision", "float32", "--num-workers", "0"]  # fmt: skip

    _series(tmp_path, units="reflectance")
    with monkeypatch.context() as patch:
        patch.setattr(dataset_embed_run, "extract", stop)
        assert main(command("one")) == 130
    _series(tmp_path, units="reflectance_1e4", nodata=3000)
    assert [main(command(out)) for out in ("one", "fresh")] == [0, 0]
    one, fresh = (pandas.read_parquet(tmp_path / f"{out}.parquet")["embedding"] for out in ("one", "fresh"))
    np.testing.assert_array_equal(np.stack(one), np.stack(fresh))


def test_a_training_that_did_not_begin_is_not_gone_on_with_by_statistics_of_other_values(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    rows = [f"f{n},2020-05-0{d},{100 * n + d},{'pq'[n % 2]},{('train', 'val', 'test')[n % 3]}"
            for n in range(12) for d in (1, 2)]  # fmt: skip
    content = {"tile_m": 10, "targets": {"crop": {"column": "crop"}}}
    (tmp_path / "s.csv").write_text("\n".join(["id,date,B2,crop,split", *rows]))
    command = ["finetune", f"--data.dataset={tmp_path}/mine.yaml", f"--data.root={tmp_path}", "--data.target=crop",
               "--weights=nano", "--epochs=1", "--report=false", f"--out={tmp_path}/run"]  # fmt: skip
    described(tmp_path, modalities={"s2": {"table": "s.csv"}}, **content)
    with monkeypatch.context() as patch:
        patch.setattr(finetune_run, "fit", stop)
        assert main(command) == 130
    described(tmp_path, modalities={"s2": {"table": "s.csv", "nodata": 1}}, **content)
    assert main([*command, "--resume"]) == 2
    assert "run, statistics: expected those that the run was started with" in capsys.readouterr().err


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_pretraining_that_did_not_begin_is_not_gone_on_with_by_statistics_of_other_files(
    is_changed, tmp_path, monkeypatch, capsys
):
    begun = []

    def stop(*_, **__):
        begun.append(True)
        raise KeyboardInterrupt

    rows = [f"f{n},2020-05-0{d},{100 * n + d}" for n in range(12) for d in (1, 2)]
    (tmp_path / "s.csv").write_text("\n".join(["id,date,B2", *rows]))
    described(tmp_path, tile_m=10, modalities={"s2": {"table": "s.csv"}}, splits={"shares": {"train": 1.0}})
    part = f"[{{dataset: {tmp_path}/mine.yaml, root: {tmp_path}, patch_sizes_m: [10], val_split: null}}]"
    command = ["pretrain", f"--data={part}", "--num-steps=1", f"--out={tmp_path}/run"]
    monkeypatch.setattr(pretrain_run, "fit", stop)
    assert main(command) == 130
    if is_changed:
        (tmp_path / "s.csv").write_text("\n".join(["id,date,B2", *rows[:-1], "f11,2020-05-02,9999"]))
    assert main([*command, "--resume"]) == (2 if is_changed else 130)
    assert len(begun) == 2 - is_changed
    told = f"files or their description have changed since {tmp_path}/run/statistics.json was computed"
    assert (told in capsys.readouterr().err) == is_changed
