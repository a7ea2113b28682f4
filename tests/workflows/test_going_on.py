"""A run is gone on with as it was begun: with the statistics, the first weights and the modalities it had then."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import anysat
from anysat.cli import main
from anysat.errors import RecordError, StatisticsError, WeightsError
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import save
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.workflows.pretrain import ModelOptions, pretrain
from tiny_pretraining import tiny, world
from toy_training import Toy, train


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A file of statistics and one of weights that runs are begun with. Shared: never write into them."""
    home = tmp_path_factory.mktemp("given")
    pretrain(radar(home / "run", max_steps=1))
    save(AnySat(radar("none").model.config()), home / "weights.safetensors")
    return home


def radar(out, *parts, **changes):
    """Options of a run on Sentinel-1 alone."""
    model = {"dim": 64, "depth": 1, "num_heads": 2, "modalities": ["s1"], **changes.pop("model", {})}
    return tiny(out, *(parts or [world("s1", tiles=8, val_split=None)]), model=ModelOptions(**model), **changes)


# statistics


@pytest.fixture
def with_statistics(given, tmp_path):
    """A run begun with a file of statistics, and that file."""
    file = shutil.copy(given / "run" / "statistics.json", tmp_path / "statistics.json")
    pretrain(radar(tmp_path / "run", statistics=str(file), max_steps=1))
    return tmp_path / "run", file


def test_a_run_is_not_gone_on_with_by_other_statistics(with_statistics):
    run, file = with_statistics
    content = json.loads(file.read_text())
    content["statistics"]["world"]["s1"]["mean"][0] += 5
    file.write_text(json.dumps(content))
    before = (run / "statistics.json").read_bytes()
    with pytest.raises(StatisticsError, match=r"statistics of world, s1: .*statistics\.json.* was started.*--out"):
        pretrain(radar(run, statistics=str(file), resume=True))
    assert (run / "statistics.json").read_bytes() == before


@pytest.mark.parametrize("changed", ["gone", "told otherwise"])
def test_a_run_goes_on_by_its_own_statistics_where_the_file_is_gone_or_says_the_same(changed, with_statistics):
    run, file = with_statistics
    if changed == "gone":
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "the same figures"}))
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0
    assert anysat.load(run).normaliser == Normaliser.read(run / "statistics.json")


# first weights


def test_a_run_begun_with_weights_goes_on_where_their_file_is_gone(given, tmp_path):
    found = []
    for is_gone in (False, True):
        run, file = tmp_path / f"run-{is_gone}", tmp_path / "weights.safetensors"
        shutil.copy(given / "weights.safetensors", file)
        pretrain(radar(run, weights=str(file), max_steps=2))
        if is_gone:
            file.unlink()
        assert main(["pretrain", "--out", str(run), "--resume"]) == 0
        found.append(load_file(run / "model.safetensors"))
        assert anysat.load(run).provenance["begun_from"] == str(file)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_are_needed_where_nothing_was_trained_from_them(given, tmp_path):
    run, file = tmp_path / "run", tmp_path / "weights.safetensors"
    shutil.copy(given / "weights.safetensors", file)
    pretrain(radar(run, weights=str(file), max_steps=1))
    shutil.rmtree(run / "checkpoints")
    file.unlink()
    assert main(["pretrain", "--out", str(run), "--resume"]) == 2


# modalities


def own_radar(path, **changes):
    """A file with the record of Sentinel-1, changed."""
    path.write_text(yaml.safe_dump(json.loads(json.dumps(MODALITIES["s1"].to_dict() | changes))))
    return str(path)


def test_a_run_is_not_gone_on_with_by_a_modality_that_was_changed_meanwhile(tmp_path):
    run, files = tmp_path / "run", [own_radar(tmp_path / "s1.yaml", dropout_prob=0.1)]
    pretrain(radar(run, model={"sensors": files}, max_steps=1))
    own_radar(tmp_path / "s1.yaml", dropout_prob=0.9)
    with pytest.raises(
        RecordError, match=r"modalities\.s1\.dropout_prob: expected 0\.1, as in the existing run .*got '0\.9'"
    ):
        pretrain(radar(run, model={"sensors": files}, resume=True))
    own_radar(tmp_path / "s1.yaml", dropout_prob=0.1, sensor="told in other words")
    pretrain(radar(run, model={"sensors": files}, resume=True))


def test_a_checkpoint_of_another_model_is_refused_by_what_differs(toy_begun):
    class Wider(Toy):
        def __init__(self):
            super().__init__()
            self.predictor = torch.nn.Linear(64, 64, bias=False)
            self.more = torch.nn.Linear(3, 1, bias=False)

    with pytest.raises(WeightsError, match=r"step-0*3.*1 missing \(more\.weight\); 1 extra \(predictor\.bias\)"):
        train(toy_begun, objective=Wider(), resume=True)
