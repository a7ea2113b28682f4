"""A sensor of the user's own: its record comes with the data, or beside the inputs."""

import pytest

import anysat
from anysat.cli import main
from anysat.data.open import find_dataset
from anysat.errors import RecordError
from anysat.tasks.predictor import load_task
from anysat.workflows.supervised.parts import make_view
from geo_builders import cube, geobox, ramp, write_nc, write_tif
from own_builders import described
from task_commands import scores_of

DRONE = """\
key: drone
sensor: my drone
bands: [{name: R, wavelength_nm: 650}, {name: NIR, wavelength_nm: 840}]
gsd_m: 0.5
is_temporal: false
subpatch_px: 4
"""


@pytest.fixture
def drone(tmp_path):
    """A dataset of eight photos, and its YAML file."""
    rows = ["id,kind,split"]
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        path = tmp_path / "drone" / f"t{number}.tif"
        path.parent.mkdir(exist_ok=True)
        write_tif(path, ramp(2, 40, 40) + 1000 * (number % 2), geobox((40, 40), 0.5), names=("R", "NIR"))
        rows.append(f"t{number},{'ab'[number % 2]},{split}")
    (tmp_path / "tiles.csv").write_text("\n".join(rows))
    (tmp_path / "drone.yaml").write_text(DRONE)
    return described(
        tmp_path, tile_m=20, patch_sizes_m=[10], tiles="tiles.csv", modality_records="drone.yaml",
        modalities={"drone": {"path": "drone/{id}.tif"}}, targets={"kind": {"column": "kind"}},
        splits={"column": "split"},
    )  # fmt: skip


def test_a_projector_for_it_is_trained_and_predicts(drone, run_task, small_weights, tmp_path):
    words = [f"--data.dataset={drone}", f"--data.root={tmp_path}", "--trained=projectors", "--epochs=1"]
    status, _, err = run_task("finetune", *words, "--report=false")
    assert status == 0, err
    before, after = anysat.load(small_weights), load_task(tmp_path / "run").encoder
    assert after.config.modality("drone") == find_dataset(drone).sensors["drone"]
    assert all((value == after.state_dict()[key]).all() for key, value in before.state_dict().items())
    assert scores_of(tmp_path / "run")["weights"]["new_projectors"] == "drone"
    photo = tmp_path / "drone" / "t0.tif"
    status, _, err = run_task("predict", tmp_path / "run", f"drone={photo}", "--probabilities", out="t0.json")
    assert status == 2
    assert "per tile: t0.json has them" in err
    status, _, err = run_task("predict", tmp_path / "run", f"drone={photo}", out="t0.json")
    assert status == 0, err


def test_a_record_that_differs_from_the_weights_own_is_refused_before_tiles_are_read(drone, tmp_path):
    record = find_dataset(drone)
    other = anysat.Modality(key="drone", sensor="x", bands=record.sensors["drone"].bands, gsd_m=1.0, is_temporal=False)
    encoder = anysat.AnySat(anysat.ModelConfig(dim=64, depth=1, num_heads=2).with_modalities(other))
    with pytest.raises(RecordError, match="modality 'drone', gsd_m: expected 1.0, as in the model, got 0.5"):
        make_view(encoder, record, record.targets[0], modalities=["drone"], patch_sizes_m=[10], dense=None,
                  needs_dense=False)  # fmt: skip


def _embed(folder, *words):
    """Embed a series of Sentinel-2, and return the exit status."""
    values, bands = ramp(10, 8, 8, dtype="float32")[None], anysat.MODALITIES["s2"].band_names
    s2 = write_nc(folder / "s2.nc", cube(values, geobox((8, 8)), ["2020-06-01"], bands))
    given = [f"s2={s2}", "--patch-size-m=20", "--weights=nano", f"--out={folder / 'out.zarr'}"]
    return main(["embed", *given, "--statistics=from-data", *words])


@pytest.mark.parametrize("words", [[], ["--dates=2020-01-01/2020-12-31"]], ids=["tile", "area"])
def test_records_of_sensors_that_are_no_input_take_no_part(words, tmp_path, capsys):
    (tmp_path / "drone.yaml").write_text(DRONE)
    assert _embed(tmp_path, *words, f"--sensors={tmp_path / 'drone.yaml'}") == 0, capsys.readouterr().err


def test_units_of_a_modality_that_is_no_input_of_an_area_are_refused(tmp_path, capsys):
    assert _embed(tmp_path, "--dates=2020-01-01/2020-12-31", "--units=s1=linear") == 2
    assert "Give units of the inputs only" in capsys.readouterr().err
