"""Presets of the paper's experiments: the settings of its table (spec 5), and what is recommended beside them."""

import pytest
import torch

from anysat.data.open import find_dataset
from anysat.errors import UnknownNameError
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.tasks.base import make_task
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import Predictor
from anysat.workflows.finetune.presets import PRESETS as FINETUNES
from anysat.workflows.probe.presets import PRESETS as PROBES
from anysat.workflows.supervised.experiments import PAPER, PUBLISHED_WEIGHTS
from anysat.workflows.supervised.parts import extended, make_view

# modalities, dense, scale, batch, learning rate, weight decay, schedule, epochs, monitor: the rows of the spec's table.
TABLE = {
    ("finetune", "treesatai-ts"): ("aerial s2 s1-asc", None, 1, 256, 5e-5, 0, "cosine", 200, "f1_weighted"),
    ("finetune", "pastis-labels"): ("spot s2 s1", None, 4, 4, 5e-5, 0, "cosine", 200, "f1_macro"),
    ("finetune", "pastis"): ("spot s2 s1", "s2", 4, 4, 5e-5, 0, "plateau", 200, "miou"),
    ("probe", "pastis"): ("s2", "s2", 4, 4, 5e-5, 0, "plateau", 200, "miou"),
    ("finetune", "flair"): ("aerial-flair s2", "aerial-flair", 1, 32, 5e-5, 1e-2, "plateau", 200, "miou"),
    ("finetune", "planted"): ("s2 s1 l7 alos modis", None, 3, 64, 5e-5, 1e-4, "plateau", 200, "f1_macro"),
    ("finetune", "bradd"): ("s1", "s1", 4, 8, 5e-5, 0, "plateau", 200, "miou"),
    ("probe", "bradd"): ("s1", "s1", 4, 8, 2e-4, 0, "plateau", 200, "miou"),
    ("finetune", "sickle"): ("l8 s2 s1", "s2", 1, 12, 5e-5, 0, "plateau", 200, "miou"),
    ("probe", "sickle"): ("l8 s2 s1", "s2", 1, 12, 5e-5, 0, "plateau", 200, "miou"),
    ("finetune", "timesen2crop"): ("s2", None, 1, 2048, 5e-5, 0, "cosine", 100, "accuracy"),
    ("probe", "timesen2crop"): ("s2", None, 1, 2048, 2e-4, 0, "cosine", 200, "accuracy"),
    ("probe", "sen1floods11"): ("s2 s1", "s2", 8, 4, 2e-4, 0, "plateau", 200, "miou"),
    ("probe", "so2sat"): ("s2 s1", None, 8, 768, 2e-3, 0, "cosine", 200, "accuracy"),
    ("finetune", "burn-scars"): ("hls", "hls", 24, 4, 5e-5, 0, "plateau", 200, "miou"),
    ("finetune", "burn-scars-projectors"): ("hls", "hls", 24, 4, 2e-4, 0, "plateau", 200, "miou"),
    ("finetune", "spacenet7"): ("planet", "planet", None, 8, 5e-5, 0, "plateau", 200, "miou"),
    ("finetune", "spacenet7-projectors"): ("planet", "planet", None, 8, 5e-5, 0, "plateau", 200, "miou"),
}  # fmt: skip
"""SpaceNet7's patches are 4 sub-patches of 4 pixels wide, which are 48 m; the published code calls them 40."""
WARM_UP, LEAST = 20, 50


def made(command, name):
    return (PROBES if command == "probe" else FINETUNES)[name]()


def test_every_published_experiment_has_its_row():
    published = {key for key in PAPER if not key[1].endswith(("-folds", "-recommended"))}
    assert published == set(TABLE)


@pytest.mark.parametrize(("command", "name"), TABLE)
def test_presets_are_the_published_settings(command, name):
    modalities, dense, scale, batch, rate, decay, schedule, epochs, monitor = TABLE[command, name]
    config = made(command, name)
    assert (config.weights, config.data.modalities) == (PUBLISHED_WEIGHTS, modalities.split())
    assert (config.dense, config.patch_sizes_m) == (dense, [48 if scale is None else 10 * scale])
    assert (config.batch_size, config.epochs, config.min_epochs, config.patience) == (batch, epochs, LEAST, 10)
    rates = [config.optimiser.learning_rate] if command == "finetune" else config.learning_rates
    decays = [config.optimiser.weight_decay] if command == "finetune" else config.weight_decays
    assert (rates, decays) == ([rate], [decay])
    days = "days_since 2018-09-01" if name.startswith("pastis") else "day_of_year"
    assert config.day_convention == days, "as the published weights saw them"
    how = config.optimiser if command == "finetune" else config
    assert (how.schedule, how.clip_norm) == (schedule, None)
    assert (config.warmup_epochs or 0) == (WARM_UP if schedule == "cosine" else 0)
    target = find_dataset(config.data.dataset).target(config.data.target)
    own = {"pixel": "miou", "tile": "f1_weighted" if target.kind == "labels" else "f1_macro"}[target.level]
    assert (config.monitor or own) == monitor


@pytest.mark.parametrize("name", [name for command, name in TABLE if command == "finetune"])
def test_fine_tuning_drops_nothing_in_projectors_as_published(name):
    """Spec 2.16; what is recommended keeps the dropout of the weights."""
    assert FINETUNES[name]().pixel_dropout_prob == 0
    assert FINETUNES[f"{name}-recommended"]().pixel_dropout_prob is None


@pytest.mark.parametrize("name", [name for command, name in TABLE if command == "finetune"])
def test_fine_tuning_sees_the_published_share_of_dates(name):
    """One minus the temporal dropout of the datasets (spec 4)."""
    drawn = {"flair": 0.3, "planted": 0.7, "bradd": 0.5, "sickle": 0.8, "timesen2crop": 0.7}
    assert FINETUNES[name]().keep_dates_frac == drawn.get(name, 1.0)


@pytest.mark.parametrize(("command", "name"), TABLE)
def test_what_is_recommended_differs_in_settings_alone(command, name):
    published, ours = made(command, name), made(command, f"{name}-recommended")
    for option in ("weights", "data", "patch_sizes_m", "dense", "batch_size", "day_convention"):
        assert getattr(ours, option) == getattr(published, option), option
    if command == "probe":
        assert len(ours.learning_rates) * len(ours.weight_decays) > 1
    else:
        assert ours.trained == published.trained
        assert ours.optimiser.clip_norm == 1
        assert ours.warmup_epochs == ours.epochs / 10
        assert ours.layer_decay == (1 if ours.trained == "projectors" else 0.8), "new projectors are not lower blocks"
    assert (ours.min_epochs, ours.patience) != (LEAST, None)


@pytest.mark.parametrize(("command", "name"), [*(("probe", n) for n in PROBES), *(("finetune", n) for n in FINETUNES)])
def test_presets_fit_their_datasets(command, name):
    config = made(command, name)
    record = find_dataset(config.data.dataset)
    target = record.target(config.data.target)
    assert set(config.data.modalities or record.modalities) <= set(record.modalities)
    assert config.dense is None or config.dense in (config.data.modalities or record.modalities)
    assert (target.level == "pixel") == (config.dense is not None)
    for size in config.patch_sizes_m:
        assert record.tile_m % size == 0 or name.startswith("world")
    assert all(key in {("probe", n) for n in PROBES} | {("finetune", n) for n in FINETUNES} for key in PAPER)


def test_published_probes_have_the_published_sizes():
    """Head of the base width, from the paper's table (spec 5)."""
    from anysat.tasks.heads import head_config, make_head

    wanted = {
        "bradd": 6146,
        "sickle": 6146,
        "sen1floods11": 6146,
        "pastis": 33812,
        "timesen2crop": 13840,
        "so2sat": 14609,
    }
    for name, count in wanted.items():
        config = PROBES[name]()
        target = find_dataset(config.data.dataset).target(config.data.target)
        made = head_config(config.head, target, len(target.classes) + config.void_output, 768,
                           patch_size_m=config.patch_sizes_m[0],
                           dense=None if config.dense is None else MODALITIES[config.dense])  # fmt: skip
        assert sum(p.numel() for p in make_head(made).parameters()) == count, name


@pytest.mark.parametrize(
    ("name", "count"), [("burn-scars-projectors", 3_394_529 + 6_146), ("spacenet7-projectors", 2_403_072 + 52_256)]
)
def test_probes_of_new_sensors_train_one_projector_and_the_head_at_the_published_sizes(name, count):
    """Per projector: spec 2.14; heads: spec 5, of SpaceNet7 with two classes, 52,256 for 16 pixels of a sub-patch."""
    config = FINETUNES[name]()
    record = find_dataset(config.data.dataset)
    target = record.target(config.data.target)
    with torch.device("meta"):
        encoder, new = extended(AnySat(ModelConfig.base()), config.data.modalities, record.sensors)
        view = make_view(encoder, record, target, modalities=config.data.modalities, dense=config.dense,
                         patch_sizes_m=config.patch_sizes_m, needs_dense=True)  # fmt: skip
        objective = FineTuning(Predictor(encoder, make_task(target), view, config.head or "dense"), config.trained)
    assert new == config.data.modalities
    assert sum(p.numel() for p in objective.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(("command", "name"), [key for key, row in TABLE.items() if row[1] is not None])
def test_pixels_are_told_by_the_published_modality_where_none_is_named(command, name):
    config = made(command, name)
    record = find_dataset(config.data.dataset)
    wanted = set(config.data.modalities) - ({"spot"} if config.dense == "s2" else set())  # as fine, and first
    encoder = extended(AnySat(ModelConfig(dim=64, depth=1, num_heads=2)), record.modalities, record.sensors)[0]
    target = next(target for target in record.targets if target.name == config.data.target)
    view = make_view(encoder, record, target, modalities=[key for key in record.modalities if key in wanted],
                     patch_sizes_m=config.patch_sizes_m, dense=None, needs_dense=True)  # fmt: skip
    assert view.dense == config.dense


def test_a_sensor_without_a_record_gets_no_projector():
    with pytest.raises(UnknownNameError, match=r"modality 'drone'"):
        extended(AnySat(ModelConfig(dim=64, depth=1, num_heads=2)), ["s2", "drone"], {})
