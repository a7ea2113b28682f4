"""What a pretraining run begins from: weights of others with their licence and habits, and the folders of its data."""

from dataclasses import replace

import pytest
from safetensors.torch import save_file

from anysat.errors import InputError, MissingFileError
from anysat.model.checkpoint import save
from anysat.model.encoder import AnySat
from anysat.pretrain.config import ObjectiveConfig
from anysat.workflows.pretrain import ModelOptions, PartConfig, PretrainConfig
from anysat.workflows.pretrain.objective import make_objective
from anysat.workflows.pretrain.run import open_part
from objective_builders import unit_statistics
from tiny_pretraining import tiny, world

PUBLISHED = ModelOptions(dim=64, depth=1, num_heads=2, modalities=["s2"], subpatch_order="cell", rpe_heads="first")


def begun(options, weights):
    objective = ObjectiveConfig(predictor_depth=1, predictor_heads=2)
    return make_objective(
        PretrainConfig(model=options, weights=str(weights), objective=objective), unit_statistics()
    ).student


@pytest.fixture
def published(tmp_path):
    save_file(AnySat(PUBLISHED.config()).published_state_dict(), tmp_path / "published.safetensors")
    return tmp_path / "published.safetensors"


def test_what_is_begun_from_weights_keeps_their_licence(tmp_path):
    given = AnySat(PUBLISHED.config())
    given.provenance = {"weights": "theirs", "licence": "MIT"}
    save(given, tmp_path / "theirs.safetensors")
    found = begun(PUBLISHED, tmp_path / "theirs.safetensors").provenance
    assert found["licence"] == "MIT"
    assert found["weights"].startswith("pretrained by anysat")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"subpatch_order": "raster", "rpe_heads": "each"},
         r"same subpatch_order, rpe_heads, got subpatch_order raster.*"
         r"--model\.subpatch-order cell --model\.rpe-heads first"),
        ({"rpe_heads": "each"}, r"same rpe_heads, .*--model\.rpe-heads first"),
        ({"patch_position_unit_m": 1.0}, r"--model\.patch-position-unit-m 10"),
    ],
)  # fmt: skip
def test_weights_of_published_names_are_refused_where_the_habits_of_the_published_model_are_not_asked_for(
    changes, told, published
):
    with pytest.raises(InputError, match=told):
        begun(replace(PUBLISHED, **changes), published)


def test_weights_of_published_names_are_taken_with_the_habits_of_the_published_model(published):
    assert begun(PUBLISHED, published).config == PUBLISHED.config()


def test_weights_whose_fusion_attends_within_tokens_are_trained_on_so_and_the_advice_names_the_option(
    tmp_path, published
):
    within = replace(PUBLISHED, fusion_attention="within_token")
    save(AnySat(within.config()), tmp_path / "within.safetensors")
    with pytest.raises(InputError, match=r"same fusion_attention, .*--model\.fusion-attention within_token"):
        begun(PUBLISHED, tmp_path / "within.safetensors")
    for weights in (tmp_path / "within.safetensors", published):  # a published file may be read in either way
        assert begun(within, weights).config.fusion_attention == "within_token"


@pytest.mark.parametrize(("dataset", "folder"), [("mypkg.meadow", "meadow"), ("descriptions/fields.yaml", "fields")])
def test_a_dataset_lies_in_the_data_root_by_the_last_part_of_its_name(dataset, folder, tmp_path):
    config, part = PretrainConfig(data_root=str(tmp_path)), PartConfig(dataset=dataset)
    with pytest.raises(MissingFileError, match=f"/{folder}: no such"):
        config.folder_of(part)
    (tmp_path / folder).mkdir()
    assert config.folder_of(part) == tmp_path / folder


def test_the_advice_names_the_folder_that_is_looked_for():
    with pytest.raises(InputError, match="--data-root FOLDER, which holds meadow/"):
        PretrainConfig().folder_of(PartConfig(dataset="mypkg.meadow"))


def test_a_folder_beside_a_generated_world_is_refused(tmp_path):
    part = world(root=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"dataset 'world': .*`root`.*`world`"):
        open_part(tiny(tmp_path / "run", part), part)
