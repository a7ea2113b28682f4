"""Facts about embeddings: what changes them, what does not, and where."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from anysat.batch import Batch, Tile
from anysat.errors import EmptyTileError, ExtentError, InputError, PatchSizeError, UnknownNameError
from anysat.modalities import MODALITIES, RELEASED
from anysat.model.chunks import slices
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.steps import SeenPatches
from anysat.normalise import Normaliser
from anysat.observation import Observation
from builders import random_input, random_model

CLOSE = {"atol": 2e-6, "rtol": 1e-5}
TREESAT = ("aerial", "s2", "s1-asc")


def test_the_order_of_modalities_changes_nothing(nano):
    x = random_input(TREESAT)
    backwards = dict(reversed(x.items()))
    assert torch.allclose(nano(x, 20, "all"), nano(backwards, 20, "all"), **CLOSE)


def test_the_order_of_dates_changes_nothing(nano):
    x = random_input(("s2", "s1"), times=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {key: value[:, order] for key, value in x.items()}
    assert torch.allclose(nano(x, 20, "all"), nano(shuffled, 20, "all"), **CLOSE)


def test_repeating_every_date_changes_nothing(nano):
    x = random_input(("s1",))
    doubled = {key: torch.cat([value, value], 1) for key, value in x.items()}
    assert torch.allclose(nano(x, 20, "all"), nano(doubled, 20, "all"), **CLOSE)


def test_a_day_later_is_not_the_same(nano):
    x = random_input(("s2",))
    later = {**x, "s2_dates": x["s2_dates"] + 1}
    assert (nano(x, 20, "tile") - nano(later, 20, "tile")).abs().max() > 1e-4


def test_all_is_the_tile_and_then_the_patches_row_by_row(nano):
    x = random_input(TREESAT)
    everything = nano(x, 20, "all")
    assert torch.allclose(everything[:, 0], nano(x, 20, "tile"), **CLOSE)  # for which one place asks alone
    assert torch.equal(everything[:, 1:].view(2, 3, 3, -1), nano(x, 20, "patch"))


def test_a_batch_of_two_equals_two_batches_of_one(nano):
    x = random_input(TREESAT)
    both = nano(x, 10, "dense", "s2")
    for index in range(2):
        alone = nano({key: value[index : index + 1] for key, value in x.items()}, 10, "dense", "s2")
        assert torch.allclose(both[index : index + 1], alone, **CLOSE)


def test_two_calls_of_a_freshly_made_model_in_eval_mode_are_equal(nano):
    x = random_input(TREESAT)
    assert torch.equal(nano(x, 20, "all"), nano(x, 20, "all"))


def test_chunks_change_nothing(nano, monkeypatch):
    x = random_input(TREESAT)
    whole = nano(x, 20, "dense", "aerial")
    monkeypatch.setattr("anysat.model.encoder.CHUNK_ROWS", 7)
    assert torch.allclose(nano(x, 20, "dense", "aerial"), whole, **CLOSE)


@pytest.mark.parametrize("length", [0, 1, 7, 81, 82, 288])
@pytest.mark.parametrize("rows_each", [1, 25, 3000])
def test_parts_of_work_cover_it_hold_to_the_limit_and_are_alike(length, rows_each):
    parts = slices(slice(5, 5 + length), 2048, rows_each)
    sizes = [part.stop - part.start for part in parts]
    assert [place for part in parts for place in range(part.start, part.stop)] == [*range(5, 5 + length)]
    assert all(size == 1 or size * rows_each <= 2048 for size in sizes)
    assert all(sizes[0] - size < len(sizes) for size in sizes)


def test_rectangles_work(nano):
    x = random_input(TREESAT, side_m=60, width_m=120)
    assert nano(x, 20, "patch").shape == (2, 3, 6, 128)
    assert nano(x, 20, "dense", "aerial").shape == (2, 30, 60, 256)


def test_rows_and_columns_are_not_confused(nano):
    x = random_input(("s2",), side_m=20, width_m=60)
    changed = {**x, "s2": x["s2"].clone()}
    changed["s2"][..., -1] += 5  # the last column, in patch (0, 2)
    moved = (nano(x, 20, "dense") - nano(changed, 20, "dense"))[..., 128:].abs().amax((0, -1))
    assert (moved[:, :4] == 0).all()
    assert (moved[:, 4:] > 1e-4).all()


@pytest.mark.parametrize("modality", [m for m in MODALITIES.values() if not m.covers_tile], ids=lambda m: m.key)
@pytest.mark.parametrize("patches", [1, 2])
def test_an_impulse_in_one_subpatch_moves_its_dense_cell_most(modality, patches):
    model = random_model(modalities=tuple(MODALITIES.values()))
    side_m = {"cell": 60.0, "big": 120.0}["big" if modality.subpatch_m > 10 else "cell"]
    x = random_input((modality.key,), side_m=side_m, batch=1, times=1)
    sub, num = modality.subpatch_px, round(side_m / modality.subpatch_m)
    row, col = 1, num - 1
    changed = dict(x)
    changed[modality.key] = x[modality.key].clone()
    changed[modality.key][..., row * sub : (row + 1) * sub, col * sub : (col + 1) * sub] += 3
    before, after = (model(y, side_m / patches, "dense") for y in (x, changed))
    moved = (before - after)[0, ..., model.config.dim :].abs().sum(-1)
    assert divmod(int(moved.argmax()), num) == (row, col)


def test_changing_one_token_changes_all_tokens_after_one_fusion_block(nano):
    torch.manual_seed(0)
    tokens = torch.randn(1, 6, 128)
    changed = tokens.clone()
    changed[:, 2] = torch.randn(128)
    moved = (nano.fusion.blocks[0](tokens) - nano.fusion.blocks[0](changed)).abs().amax(-1)
    assert (moved > 1e-5).all()


def test_patch_tokens_before_fusion_do_not_depend_on_how_the_area_was_cut(nano):
    from anysat.model.inputs import PixelInput

    x = random_input(("s2",), side_m=80, batch=1)
    days = x["s2_dates"].float()
    whole = nano.see({"s2": PixelInput(x["s2"], days)}, 20)["s2"].patch
    part = nano.see({"s2": PixelInput(x["s2"][..., 2:6, 4:8], days)}, 20)["s2"].patch
    assert torch.allclose(whole[:, 1:3, 2:4], part, **CLOSE)


def test_all_eleven_released_modalities_fuse_at_every_size_that_nests(nano):
    keys = [modality.key for modality in RELEASED]
    x = random_input(keys, side_m=120, batch=1, times=2)
    for patch_size, side in ((30, 4), (60, 2)):
        assert nano(x, patch_size, "patch").shape == (1, side, side, 128)
    without = random_input(set(keys) - {"alos", "l7", "aerial-flair"}, side_m=120, batch=1, times=2)
    for patch_size in (10, 20, 30, 40, 60):
        found = nano(without, patch_size, "patch")
        assert found.shape[1] == 120 // patch_size
        assert found.isfinite().all()


@pytest.mark.parametrize("key", [m.key for m in RELEASED])
def test_every_modality_matters_to_the_tile(nano, key):
    keys = [modality.key for modality in RELEASED]
    x = random_input(keys, side_m=120, batch=1, times=2)
    without = {name: value for name, value in x.items() if name.removesuffix("_dates") != key}
    assert (nano(x, 60, "tile") - nano(without, 60, "tile")).abs().max() > 1e-4


def test_modis_alone_works_and_its_one_patch_is_the_tile(nano):
    x = random_input(("modis",), side_m=250)
    assert nano(x, 250, "all").shape == (2, 2, 128)


def test_several_modis_pixels_are_placed_context(nano):
    x = random_input(("s2", "modis"), side_m=500, batch=1, times=1)
    swapped = {**x, "modis": x["modis"].flip(-1)}
    assert x["modis"].shape[-2:] == (2, 2)
    assert (nano(x, 50, "tile") - nano(swapped, 50, "tile")).abs().max() > 1e-5


def test_modis_changes_the_tile_only_as_context_and_gives_no_dense_map(nano):
    x = random_input(("s2", "modis"), side_m=120)
    assert nano(x, 30, "patch").shape == (2, 4, 4, 128)
    with pytest.raises(UnknownNameError, match="dense modality 'modis'"):
        nano(x, 30, "dense", "modis")


def test_raster_order_models_take_any_common_multiple_of_the_subpatches():
    model = random_model(subpatch_order="raster")
    x = random_input(("aerial",), side_m=12)
    for patch_size in (2, 4, 6, 12):
        assert model(x, patch_size, "patch").shape[1] == 12 // patch_size
    with pytest.raises(PatchSizeError, match=r"sizes that fit here: 2, 4, 6, 12 m"):
        model(x, 5, "patch")


def test_sharing_the_first_heads_relative_term_is_not_the_same_as_each_its_own():
    x = random_input(("s2",))
    first, each = random_model(rpe_heads="first"), random_model(rpe_heads="each")
    assert (first(x, 20, "tile") - each(x, 20, "tile")).abs().max() > 1e-4


def test_faithful_aerial_dense_maps_are_scrambled_and_ours_are_not(nano):
    x = random_input(("aerial",), side_m=20, batch=1)
    ours, published = (nano(x, 20, "dense", faithful=f)[0, ..., 128:] for f in (False, True))
    assert torch.allclose(published[0, 5], ours[1, 0])  # the sub-patch at (1, 0) shows up at (0, 5)
    assert torch.allclose(published[0, :5], ours[0, :5])


def test_gradients_reach_every_parameter_that_takes_part():
    model = random_model().train().requires_grad_(True)
    x = random_input(("aerial", "s2"))
    x["s2_mask"] = torch.tensor([[True, False, True], [True, True, False]])
    model(x, 20, "dense", "s2").square().sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert all(name.startswith("projectors.") and name.split(".")[1] not in ("aerial", "s2") for name in idle)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_weights_work_and_stay_close(dtype):
    x = random_input(TREESAT)
    reference = random_model()(x, 20, "tile")
    found = random_model().to(dtype)(x, 20, "tile")
    assert found.dtype == dtype
    assert (found.float() - reference).abs().max() < 0.1 * reference.abs().max()


def test_autocast_to_bfloat16_stays_close(nano):
    x = random_input(TREESAT)
    with torch.autocast("cpu", torch.bfloat16):
        found = nano(x, 20, "tile")
    assert (found.float() - nano(x, 20, "tile")).abs().max() < 0.1


BAD = [
    ("rank", lambda x: {**x, "s2": x["s2"][0]}, InputError, r"s2: expected \(batch time band row col\), rank 5"),
    ("image rank", lambda x: {**x, "aerial": x["aerial"][None]}, InputError, "rank 4, got shape"),
    ("bands", lambda x: {**x, "s2": x["s2"][:, :, :9]}, InputError, r"10 bands \(B2, B3.*got 9 .*'s2_mask'"),
    ("type", lambda x: {**x, "s2": x["s2"].int()}, InputError, r"torch.int32; give source values to encode\(\)"),
    ("not a tensor", lambda x: {**x, "s2": x["s2"].numpy()}, InputError, "a torch tensor, got ndarray"),
    ("extent", lambda x: {**x, "aerial": x["aerial"][..., :290, :]}, ExtentError, "aerial 58 x 60 m, s2 60 x 60 m"),
    ("no dates", lambda x: {k: v for k, v in x.items() if k != "s2_dates"}, InputError, r"s2_dates: .*\(2, 3\), got none"),
    ("dates shape", lambda x: {**x, "s2_dates": x["s2_dates"][:, :2]}, InputError, r"s2_dates: .*\(2, 3\)"),
    ("dates NaN", lambda x: {**x, "s2_dates": x["s2_dates"] * float("nan")}, InputError, "finite day numbers"),
    ("image dates", lambda x: {**x, "aerial_dates": x["s2_dates"]}, InputError, "it is a single image"),
    ("unknown key", lambda x: {**x, "label": x["s2"]}, UnknownNameError, "unknown modality 'label'.*anysat sensors"),
    ("near key", lambda x: {**x, "s1_asc": x["s2"]}, UnknownNameError, "closest: s1-asc"),
    ("orphan mask", lambda x: {**x, "s1_mask": x["s2"]}, InputError, "s1_mask: expected the tensor 's1' beside it"),
    ("mask shape", lambda x: {**x, "s2_mask": torch.ones(3, 2)}, InputError, r"s2_mask: expected shape \(2, 3, 10, 6, 6\), or 1 for an axis .* or \(batch, time\), got \(3, 2\)"),
    ("mask values", lambda x: {**x, "s2_mask": x["s2"]}, InputError, "1 where data is real"),
    ("empty series", lambda x: {**x, "s2": x["s2"][:, :0], "s2_dates": x["s2_dates"][:, :0]}, InputError, "at least one"),
    ("batch size", lambda x: {**x, "aerial": x["aerial"][:1]}, InputError, "one batch size"),
    ("nothing", lambda x: {}, InputError, "at least one modality, got none"),
    ("nothing valid", lambda x: {k: v * (1 if "dates" in k else float("nan")) for k, v in x.items()}, EmptyTileError, "tile 0, 1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_gets_one_clear_error(nano, change, error, message):
    with pytest.raises(error, match=message):
        nano(change(random_input(("aerial", "s2"))), 20, "tile")


@pytest.mark.parametrize(
    ("patch_size", "message"),
    [
        (25, "patch size 25 m: it must be a multiple of 10 m.*sizes that fit here: 10, 20, 30, 60 m"),
        (15, "multiple of 10 m"),
        (40, "does not divide the 60 m side of the 60 x 60 m tile of s2"),
        (7, "multiple of 10 m"),
        (0, "positive number of metres"),
        (-10, "positive number of metres"),
        (float("nan"), "positive number of metres"),
        ("20", "'20': it must be a positive number of metres"),
        (True, "positive number of metres"),
        (10.001, "positive number of metres"),
    ],
)
def test_patch_sizes_that_do_not_fit_are_refused_with_those_that_do(nano, patch_size, message):
    with pytest.raises(PatchSizeError, match=message):
        nano(random_input(("s2",)), patch_size, "tile")


def test_unknown_outputs_are_refused(nano):
    x = random_input(("s2",))
    with pytest.raises(UnknownNameError, match="unknown output 'patches'; closest: patch"):
        nano(x, 20, "patches")
    with pytest.raises(InputError, match="output_modality: expected None unless output='dense'"):
        nano(x, 20, "tile", "s2")
    with pytest.raises(UnknownNameError, match="unknown dense modality 's1'"):
        nano(x, 20, "dense", "s1")


@pytest.mark.parametrize(
    "options",
    [{"dim": 100}, {"num_heads": 5}, {"depth": 0}, {"modalities": ()}, {"rpe_heads": "all"}, {"day_convention": "doy"},
     {"subpatch_order": "spiral"}, {"fusion_attention": "none"}, {"temporal_dropout_prob": 1.0},
     {"patch_position_unit_m": 0.0}, {"pixel_widths": ()}, {"pixel_widths": (8, 6)}, {"pixel_widths": (64, 4)}, {"pixel_dropout_prob": 1.0}],
    ids=str,
)  # fmt: skip
def test_impossible_configurations_are_refused_by_the_option_name(options):
    with pytest.raises(ValueError, match=rf"ModelConfig\.{next(iter(options))}"):
        ModelConfig(**options)


@pytest.mark.parametrize("given", [["s2"], "s2", MODALITIES["s2"], MODALITIES, [MODALITIES["s2"], "s1"]])
def test_modalities_of_a_model_are_records_and_not_keys(given):
    with pytest.raises(
        ValueError, match=r"ModelConfig\.modalities: expected records, such as anysat\.MODALITIES\['s2'\]"
    ):
        ModelConfig(modalities=given)


def test_a_modality_has_no_name_that_torch_could_not_keep_its_projector_under():
    """`nn.ModuleDict` refuses the names of what it has itself."""
    for name in (name for name in dir(nn.ModuleDict()) if "_" not in name):
        with pytest.raises(ValueError, match=f"modality '{name}', key: expected another name"):
            dataclasses.replace(MODALITIES["s2"], key=name)


def test_pixel_layers_have_the_widths_and_the_dropout_asked_for():
    published, own = AnySat(ModelConfig(dim=64, num_heads=4)), ModelConfig(
        dim=64, depth=1, num_heads=4, pixel_widths=[32, 48], pixel_dropout_prob=0.0
    )  # fmt: skip
    layers = [m for m in published.projectors["s2"].pixel_mlp if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in layers] == [8, 32, 64, 128, 64]
    assert {m.p for m in published.projectors["s1"].modules() if isinstance(m, nn.Dropout)} == {0.2, 0.1}
    model = AnySat(ModelConfig.from_dict(json.loads(json.dumps(own.to_dict()))))
    assert model.config == own
    layers = [m for m in model.projectors["s2"].pixel_mlp if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in layers] == [32, 48, 64]
    assert {m.p for m in model.projectors["s1"].modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}


@pytest.mark.parametrize("learns", [False, True])
def test_values_too_large_for_numbers_are_an_error_not_an_embedding(nano, learns):
    x = random_input(("s2",))
    x["s2"] *= 1e25
    x["s2"].requires_grad_(learns)
    with pytest.raises(InputError, match="finite numbers, got NaN or infinity from standardised values up to"):
        nano(x, 20, "tile")


@pytest.mark.parametrize("max_pairs", [1, 200, 1000])
def test_places_are_asked_for_in_parts_without_a_difference(max_pairs):
    model = random_model(dim=64, depth=1, num_heads=2)
    patch = torch.randn(2, 5, 4, 64)
    valid = torch.rand(2, 5, 4) > 0.2
    seen = {
        "s2": SeenPatches(patch, valid, None, None), "s1": SeenPatches(torch.randn(2, 5, 4, 64), None, None, None),
        "modis": SeenPatches(torch.randn(2, 1, 1, 64), None, None, None),
    }  # fmt: skip
    with torch.inference_mode():
        whole, parts = (model.fuse(seen, (5, 4), 20.0, max_pairs=most) for most in (None, max_pairs))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_source_values_are_prepared_within_compiled_programs_too():
    series = Observation.of(MODALITIES["s2"], torch.rand(2, 10, 6, 6) * 5000, dates=["2020-06-01", "2020-07-01"])
    batch = Batch.of([Tile.of(series)])
    model = random_model(modalities=[MODALITIES["s2"]])
    model.normaliser = Normaliser.preset("treesatai_ts")
    ours, _ = torch.compile(model.prepare, backend="eager")(batch, 20)
    theirs, _ = model.prepare(batch, 20)
    assert torch.equal(ours["s2"].values, theirs["s2"].values)
    assert torch.equal(ours["s2"].days, theirs["s2"].days)
