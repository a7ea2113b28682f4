"""Every dataset, one command each; `anysat predict` on small files; ten tiles learnt by heart."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from anysat.batch import Batch
from anysat.data.loader import Draw
from anysat.data.open import dataset_names, find_dataset, open_dataset
from anysat.data.transforms import crop, extent_m
from anysat.modalities import MODALITIES
from anysat.model.load import load
from anysat.normalise import Normaliser
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import Predictor, load_task
from anysat.workflows.supervised.parts import fitted_task, make_view, number_days
from miniatures import miniature
from task_commands import WORLD, new_encoder, of_miniature, scores_of

DATASETS = [name for name in dataset_names() if name not in ("world", "bigearthnet_pairs")]
QUICK = ("timesen2crop", "sickle", "treesatai_ts")
"""Whose miniatures are small; the others run in the slow lane."""
LEARNT_TILES = 10
LEARNT, OFF = 0.95, 0.25
"""Score of who has learnt by heart; of values, the error in deviations."""

EVERY = [
    pytest.param(name, marks=() if name in QUICK else [pytest.mark.slow, pytest.mark.timeout(900)]) for name in DATASETS
]


@pytest.mark.parametrize("name", EVERY)
def test_a_probe_runs_on_every_dataset(name, run_task, tmp_path):
    status, out, err = run_task("probe", *of_miniature(name), "--epochs=2", "--learning-rates=[0.01]", "--batch-size=2")
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert found["scores"]["test"]["num_tiles"] == found["data"]["test"]["tiles"] > 0
    assert load_task(tmp_path / "run").task.target.name == found["target"]
    assert "test tiles" in out


@pytest.mark.parametrize("name", EVERY)
def test_fine_tuning_runs_on_every_dataset(name, run_task, tmp_path):
    status, _, err = run_task("finetune", *of_miniature(name), "--epochs=1", "--batch-size=2", "--report=false")
    assert status == 0, err
    assert scores_of(tmp_path / "run")["selection"]["trained"] == "all"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("trained", ["head", "all"])
@pytest.mark.parametrize("name", EVERY)
def test_ten_tiles_are_learnt_by_heart(name, trained, small_weights):
    """The classic test: whoever cannot overfit has a broken loop. Large tiles are cut to a few patches.

    The published linear head alone needs the published width to tell so many pixels apart.
    """
    record = find_dataset(name)
    size, target = record.patch_sizes_m[0], record.targets[0]
    every = open_dataset(name, miniature(name, tiles=LEARNT_TILES), "all", targets=(target.name,))
    batch = Batch.of([_cut(every[n], size, target) for n in range(LEARNT_TILES)])
    is_pixel = target.level == "pixel"
    truth = batch.targets[target.name]
    assert target.kind == "value" or len(torch.unique(truth[truth != target.ignore])) > 1
    encoder = load(small_weights) if trained == "all" or not is_pixel else new_encoder(dim=768, depth=6, num_heads=12)
    encoder.normaliser = Normaliser.from_batch(batch)
    number_days(encoder, record, record.day_convention)
    view = make_view(encoder, record, target, modalities=list(batch.observations), patch_sizes_m=[size], dense=None,
                     needs_dense=is_pixel)  # fmt: skip
    torch.manual_seed(0)
    task = fitted_task(target, batch.targets[target.name], balanced=False)
    predictor = Predictor(encoder, task, view, "dense" if is_pixel else "both")
    objective = FineTuning(predictor, trained).train()
    found = _learnt(objective, Draw(step=0, dataset=name, patch_size_m=size, batch=batch))
    assert found > LEARNT if task.highest_is_best else found < OFF * task.deviation, found


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("probe", ["--learning-rates=[0.03]", "--epochs=150"]),
        ("finetune", ["--optimiser.learning-rate=3e-3", "--epochs=60", "--keep.log-every=1"]),
    ],
)
def test_the_commands_learn_their_training_tiles_by_heart(command, words, run_task, tmp_path):
    """Not only the parts that the test above puts together itself; the epoch that is kept is that of validation."""
    quick = ["--batch-size=8", "--patience=null", "--report=false"]
    status, _, err = run_task(command, *of_miniature("timesen2crop"), *words, *quick)
    assert status == 0, err
    losses = [point["loss"] for point in scores_of(tmp_path / "run")["selection"]["curve"]]
    assert losses[0] > 1
    assert losses[-1] < 0.05


def _learnt(objective, draw):
    """The score of one batch after some hundred steps on it; what is frozen is computed once."""
    predictor, is_frozen = objective.predictor, objective.trained == "head"
    task, truth = predictor.task, draw.batch.targets[predictor.task.target.name]
    with torch.no_grad():
        seen = predictor.see(draw.batch, draw.patch_size_m)
    weights = [p for p in objective.parameters() if p.requires_grad]
    is_linear = is_frozen and not predictor.head.dense
    optimiser = torch.optim.AdamW(weights, lr=1e-2 if is_linear else 2e-3, weight_decay=0.0)
    for step in range(800):
        if step % 20 == 0:
            score = _score(objective, draw, seen if is_frozen else None)
            if score > LEARNT if task.highest_is_best else score < OFF * task.deviation:
                break
        optimiser.zero_grad()
        now = seen if is_frozen else predictor.see(draw.batch, draw.patch_size_m)
        task.loss(predictor.head(now), truth).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)  # as by default: a rare large step would forget all
        optimiser.step()
    return score


@torch.no_grad()
def _score(objective, draw, seen):
    """What the batch is told as whoever predicts hears it: nothing is dropped."""
    predictor, sheet = objective.eval().predictor, objective.predictor.task.metric()
    seen = predictor.see(draw.batch, draw.patch_size_m) if seen is None else seen
    predictor.task.score(sheet, predictor.head(seen), draw.batch.targets[predictor.task.target.name])
    objective.train()
    return sheet.compute().figures[predictor.task.primary]


def _cut(tile, patch_size_m, target):
    """Of large tiles a window of at most two patches a side or forty pixels of the target: that with the most classes."""
    extent = min(extent_m(tile))
    fits = 2 if target.gsd_m is None else max(1, min(2, int(40 * target.gsd_m / patch_size_m)))
    side = patch_size_m * fits
    if extent <= side:
        return tile
    starts = [side * int(n) for n in np.unique(np.linspace(0, extent // side - 1, 6).round())]
    windows = [crop(tile, top, left, side) for top in starts for left in starts]
    labels = [np.ma.masked_equal(window.targets[target.name], target.ignore).compressed() for window in windows]
    return windows[max(range(len(windows)), key=lambda n: (len(np.unique(labels[n])), len(labels[n])))]


def test_trees_of_five_real_tiles_are_probed_and_fine_tuned_and_scored(run_task, tmp_path, shared_data):
    """Three tiles to train on and choose by, two to score; too few to tell anything but that it runs."""
    source, root = shared_data.resolve() / "treesatai_ts", tmp_path / "trees"
    root.mkdir()
    for part in ("aerial", "sentinel-ts", "labels"):
        (root / part).symlink_to(source / part)
    names = sorted(path.name for path in (source / "aerial").glob("*.tif"))
    for split, listed in (("train", names[:3]), ("test", names[3:])):
        (root / f"{split}_filenames.lst").write_text("".join(f"{name}\n" for name in listed))
    words = ["--data.dataset=treesatai_ts", f"--data.root={root}", "--data.train=train+val", "--data.val=null",
             "--data.modalities=[aerial,s2,s1-asc]", "--patch-sizes-m=[10]", "--epochs=2", "--batch-size=2"]  # fmt: skip
    for command in ("probe", "finetune"):
        status, _, err = run_task(command, *words, out=command)
        assert status == 0, err
        found = scores_of(tmp_path / command)
        assert (found["data"]["test"]["tiles"], found["scores"]["test"]["num_tiles"]) == (2, 2)
        assert 0 <= found["scores"]["test"]["figures"]["f1_weighted"] <= 1
        assert "Worst and best tiles" in (tmp_path / command / "report.html").read_text()


def test_a_map_lies_where_its_inputs_lie(run_task, tmp_path):
    from geo_builders import cube, geobox, write_nc

    words = ["--data.dataset=world", f"--data.world={WORLD}", "--data.target=land_cover", "--data.modalities=[s2]"]
    run_task("probe", *words, "--patch-sizes-m=[30]", "--epochs=1", "--learning-rates=[0.01]", "--report=false")
    values = np.random.default_rng(0).integers(100, 4000, (3, 10, 9, 12)).astype(np.float32)
    values[:, :, 0, 0] = np.nan
    box = geobox((9, 12))
    write_nc(
        tmp_path / "s2.nc", cube(values, box, ["2020-01-03", "2020-06-30", "2020-09-11"], MODALITIES["s2"].band_names)
    )
    status, out, err = run_task(
        "predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", "--probabilities", out="map.tif"
    )
    assert status == 0, err
    with rasterio.open(tmp_path / "map.tif") as file:
        classes, names = file.read(1), file.tags()
        assert (file.transform, file.nodata) == (box.affine, 255)
        assert file.colormap(1)[0][3] == 255
    assert classes.shape == (9, 12)
    assert classes[0, 0] == 255
    assert (classes[classes != 255] < 7).all()
    assert names["CLASS_1"] == "forest"
    assert "<Category>forest</Category>" in (tmp_path / "map.tif.aux.xml").read_text(), "which GDAL and QGIS show"
    with rasterio.open(tmp_path / "map_probability.tif") as file:
        shares = file.read()
        assert file.descriptions[1] == "forest"
    assert np.nansum(shares, axis=0)[1, 1] == pytest.approx(1, abs=1e-5)
    assert (shares.argmax(0)[1:] == classes[1:]).all()
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert "9 x 12 pixels of 10 m" in out
    with rasterio.open(tmp_path / "map.tif") as file:
        table = file.colormap(1)
    kept = load_task(tmp_path / "run")
    assert [table[n][:3] for n in range(7)] == [tuple(bytes.fromhex(c[1:])) for c in kept.task.target.colours]
    kept.task = replace(kept.task, target=replace(kept.task.target, colours=tuple(f"#0{n}2030" for n in range(7))))
    kept.save(tmp_path / "recoloured.safetensors")
    assert run_task("predict", tmp_path / "recoloured.safetensors", f"s2={tmp_path / 's2.nc'}", out="other.tif")[0] == 0
    with rasterio.open(tmp_path / "other.tif") as file:
        assert [file.colormap(1)[n] for n in range(7)] == [(n, 32, 48, 255) for n in range(7)]
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "map.png").read_bytes()
    assert run_task("predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", out="map.json")[0] == 2
    status, _, err = run_task("predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", "--crop-m=60", out="crops.tif")
    assert status == 0, err
    with rasterio.open(tmp_path / "crops.tif") as file:
        assert ((file.read(1) == 255) == (classes == 255)).all()
    words = ["predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", "--crop-m=60", "--variants=2"]
    assert "for an area, use --overlap" in run_task(*words, out="area.tif")[2]
