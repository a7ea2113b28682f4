"""A stranger adds two kinds of target from outside the package: the counts of the how-to page, and classes in an order."""

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas
import pytest
import rasterio
import zarr

from anysat.cli import main
from anysat.data.base import Target
from anysat.data.open import find_dataset
from anysat.data.targets import KINDS
from anysat.errors import RecordError, WeightsError
from anysat.modalities import MODALITIES
from anysat.tasks.base import TASKS, make_task
from anysat.tasks.predictor import load_task
from anysat.tasks.simple import models, outputs
from geo_builders import cube, geobox, write_nc
from task_commands import scores_of

PAGE = Path(__file__).parents[2] / "docs/howto/tasks.md"
STEPS = '''
import torch
from torch.nn import functional

from anysat.data.targets import KINDS
from anysat.tasks.base import TASKS, labelled, nothing
from anysat.tasks.classification import Classification, MultiLabel


class Steps(Classification):
    """Classes in an order: an output for each step from one class to the next, which says that the truth lies above."""

    @property
    def num_outputs(self):
        return len(self.target.classes) - 1

    def loss(self, outputs, truth):
        kept = outputs.isfinite().all(-1) & labelled(self.target, truth)
        wanted, _ = self.wanted(truth[kept])
        return functional.binary_cross_entropy_with_logits(outputs[kept], wanted) if kept.any() else nothing(outputs)

    def wanted(self, truth):
        return (truth[..., None] > torch.arange(self.num_outputs)).float(), labelled(self.target, truth)

    outputs_of = staticmethod(MultiLabel.outputs_of)

    def logits(self, outputs):
        above = outputs.float().sigmoid().cummin(-1).values
        edge = torch.ones_like(above[..., :1])
        return Classification.outputs_of(torch.cat([edge, above], -1) - torch.cat([above, 0 * edge], -1))


KINDS["steps"] = "class"
TASKS["steps"] = Steps
'''
DATASET = """
from dataclasses import replace

import numpy as np

from anysat.data.base import Target
from anysat.data.datasets.world import DATASET as WORLD
from stranger_tasks import counts, steps


def read_sample(folder, row, modalities):
    tile = WORLD.read_sample(replace(folder, targets=("land_cover",)), row, modalities)
    cover = tile.targets["land_cover"]
    return replace(tile, targets={"land_cover": cover, "trees": np.array((cover == 1).sum(), np.float32)})


TARGETS = (replace(WORLD.target("land_cover"), kind="steps"), Target(name="trees", level="tile", kind="count"))
DATASET = replace(WORLD, name="stranger", targets=TARGETS, read_sample=read_sample)
"""
NAME = "stranger_tasks.world"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package with two tasks and a dataset, imported; and a folder of twelve tiles."""
    root, patch = tmp_path_factory.mktemp("stranger"), pytest.MonkeyPatch()
    (root / "stranger_tasks").mkdir()
    counts = re.search(r"```python\n([^`]*class Counts.*?)```", PAGE.read_text(), re.S)[1]
    for name, text in {"__init__": "", "counts": counts, "steps": STEPS, "world": DATASET}.items():
        (root / "stranger_tasks" / f"{name}.py").write_text(text)
    (root / "data").mkdir()
    (root / "data/world.json").write_text('{"tiles": 12, "seed": 7, "modalities": ["s2"], "extent_m": 60, "dates": 3}')
    patch.syspath_prepend(str(root))
    import_module(NAME)
    yield root / "data"
    patch.undo()
    for table in (KINDS, TASKS):
        del table["steps"], table["count"]
    for name in [name for name in sys.modules if name.startswith("stranger_tasks")]:
        del sys.modules[name]


def words(root, target):
    return [f"--data.dataset={NAME}", f"--data.root={root}", f"--data.target={target}", "--data.modalities=[s2]",
            "--patch-sizes-m=[30]"]  # fmt: skip


QUICK = "--epochs=1", "--batch-size=4"


@pytest.fixture
def s2(tmp_path):
    values = np.random.default_rng(0).integers(100, 4000, (2, 10, 24, 24)).astype(np.float32)
    dates = ["2020-01-03", "2020-06-30"]
    return write_nc(tmp_path / "s2.nc", cube(values, geobox((24, 24)), dates, MODALITIES["s2"].band_names))


def test_ordered_classes_are_learned_scored_reported_and_mapped(package, s2, run_task, tmp_path):
    for command in ("probe", "finetune"):
        status, _, errors = run_task(command, *words(package, "land_cover"), *QUICK, out=command)
        assert status == 0, errors
        assert load_task(tmp_path / command).head.linear.out_features == 6
        assert "land_cover" in (tmp_path / command / "report.html").read_text()
        assert 0 <= scores_of(tmp_path / command)["scores"]["test"]["figures"]["miou"] <= 1
    status, told, errors = run_task("evaluate", str(tmp_path / "probe"), "--split=val")
    assert (status, "mean IoU" in told) == (0, True), errors
    out = tmp_path / "map.zarr"
    assert main(["predict", str(tmp_path / "probe"), f"s2={s2}", "--out", str(out), "--probabilities", "--variants=2",
                 "--dates=2020-01-01/2020-12-31", "--window=4"]) == 0  # fmt: skip
    group = zarr.open_group(out, mode="r")
    shares, classes = group["probability/probability"][:], group["class/class"][:]
    np.testing.assert_array_equal(np.squeeze(shares).argmax(0), np.squeeze(classes))
    assert group["class/class"].attrs["class_names"][0] == "water"


def test_ordered_classes_of_a_tile_are_a_map(package, s2, run_task, tmp_path):
    status, _, errors = run_task("probe", *words(package, "land_cover"), "--method=knn", "--num-neighbours=[1,3]")
    assert status == 0, errors
    assert main(["predict", str(tmp_path / "run"), f"s2={s2}", "--out", str(tmp_path / "map.tif")]) == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.tags()["CLASS_1"] == "forest"
        assert file.read(1).max() < 7


def test_counts_are_learned_scored_reported_and_written(package, run_task, tmp_path):
    status, _, errors = run_task("probe", *words(package, "trees"), *QUICK)
    assert status == 0, errors
    assert scores_of(tmp_path / "run")["primary"] == "rmse"
    assert "prediction: " in (tmp_path / "run/report.html").read_text()
    out = tmp_path / "t.parquet"
    assert (
        main(["datasets", "predict", str(tmp_path / "run"), NAME, str(package), "--out", str(out), "--num-workers=0"])
        == 0
    )
    rows = pandas.read_parquet(out)
    assert (rows["predicted"] > 0).all()
    assert rows["trees"].between(0, 36).all()


@pytest.mark.parametrize(
    ("target", "truth"), [("land_cover", [0, 1, 2, 4, 6] * 8), ("trees", [0.0, 3.0, 9.0, 30.0] * 10)]
)
def test_simple_models_give_outputs_of_the_stranger_s_task(package, target, truth):
    """Without noise, forests find the truth again."""
    task, truth = make_task(find_dataset(NAME).target(target)), np.array(truth)
    features = truth[:, None] + np.zeros(2)
    model = models(task.target, 0, len(truth))["forest"][0].fit(features, truth)
    told = outputs(model, features, task)
    assert told.shape == (40, task.num_outputs)
    np.testing.assert_allclose(task.answer(told).numpy(), truth, atol=0.01)


def test_a_predictor_of_a_task_that_is_not_known_here_names_the_module_to_import(
    package, run_task, tmp_path, monkeypatch
):
    status, _, errors = run_task("probe", *words(package, "trees"), "--method=knn")
    assert status == 0, errors
    monkeypatch.delitem(TASKS, "count")
    with pytest.raises(WeightsError, match="target 'count' is not registered; `import stranger_tasks.counts`"):
        load_task(tmp_path / "run")


def test_a_kind_that_is_not_known_is_refused():
    with pytest.raises(RecordError, match="one of .*'labels'.*got .*'steeps'"):
        Target(name="x", level="tile", kind="steeps", classes=("a", "b"))
