"""What the published code gets wrong, ours does right or refuses with a message that names the value and the way out.

The list is the behaviour of the published hub model as measured on its code of April 2025.
"""

import pytest
import torch

from anysat.errors import ExtentError, InputError, PatchSizeError, UnknownNameError
from anysat.modalities import MODALITIES
from builders import random_input, random_model


@pytest.mark.parametrize("coarse", ["l7", "alos"])
def test_30_m_sensors_fuse_with_sentinel_2_at_multiples_of_30_m(nano, coarse):
    x = random_input(("s2", coarse), side_m=120)
    for patch_size in (30, 60, 120):
        assert nano(x, patch_size, "patch").shape[1] == 120 // patch_size
    for patch_size in (10, 20, 40):
        with pytest.raises(PatchSizeError, match="multiple of 30 m .*sizes that fit here: 30, 60, 120 m"):
            nano(x, patch_size, "patch")


def test_a_30_m_pixel_is_never_read_as_a_10_m_patch(nano):
    with pytest.raises(PatchSizeError, match="patch size 10 m: it must be a multiple of 30 m"):
        nano(random_input(("l7",), side_m=120), 10, "patch")


def test_the_same_pixel_grid_at_other_spacings_is_another_ground(nano):
    x = {**random_input(("s2",), side_m=120), **random_input(("l7",), side_m=360)}
    with pytest.raises(ExtentError, match="s2 120 x 120 m, l7 360 x 360 m; crop all to the ground they share"):
        nano(x, 30, "patch")


def test_modis_fuses_with_sentinel_2_at_every_patch_size_and_output(nano):
    x = random_input(("s2", "modis"), side_m=120)
    for patch_size in (10, 20, 30, 40, 60, 120):
        for output in ("tile", "patch", "all", "dense"):
            assert nano(x, patch_size, output).isfinite().all()
    wrong = {**x, "modis": x["modis"].expand(-1, -1, -1, 12, 12)}
    with pytest.raises(InputError, match="modis: expected 1 x 1 pixels of 250 m .*, got 12 x 12"):
        nano(wrong, 30, "patch")


def test_modis_alone_works(nano):
    assert nano(random_input(("modis",), side_m=250), 250, "tile").isfinite().all()


@pytest.mark.parametrize("keys", [("s2", "s1", "l8"), ("aerial", "s2"), ("naip", "s2")])
def test_what_worked_still_works(nano, keys):
    side = 80 if "naip" in keys else 60
    assert nano(random_input(keys, side_m=side), 20, "patch").shape == (2, side // 20, side // 20, 128)


def test_descending_sentinel_1_is_refused_by_the_released_model_and_taken_by_one_that_has_it(nano):
    x = random_input(("s2", "s1-des"))
    with pytest.raises(UnknownNameError, match="unknown modality 's1-des'; closest: s1-asc.*`ModelConfig.modalities`"):
        nano(x, 20, "patch")
    model = random_model(modalities=(MODALITIES["s2"], MODALITIES["s1-des"]))
    assert model(x, 20, "patch").isfinite().all()


def test_a_remainder_of_the_tile_is_never_dropped(nano):
    with pytest.raises(PatchSizeError, match="does not divide the 70 m side .*sizes that fit here: 10, 70 m"):
        nano(random_input(("s2",), side_m=70), 20, "patch")


def test_one_nan_acquisition_does_not_poison_the_tile(nano):
    x = random_input(("s2",), times=4)
    x["s2"][:, 2] = float("nan")
    rest = {key: value[:, [0, 1, 3]] for key, value in x.items()}
    assert torch.allclose(nano(x, 20, "patch"), nano(rest, 20, "patch"), atol=2e-6)


def test_masks_are_taken_at_the_public_door(nano):
    x = random_input(("s2",))
    x["s2_mask"] = torch.rand(2, 3, 1, 6, 6) > 0.3
    assert nano(x, 20, "patch").shape == (2, 3, 3, 128)


def test_tiles_need_not_be_square(nano):
    assert nano(random_input(("s2",), side_m=40, width_m=100), 20, "dense").shape == (2, 4, 10, 256)


def test_nine_of_ten_bands_are_refused_with_the_names_of_the_ten(nano):
    x = random_input(("s2",))
    with pytest.raises(InputError, match=r"s2: expected 10 bands \(B2, .*B12\), got 9"):
        nano({**x, "s2": x["s2"][:, :, :9]}, 20, "patch")


def test_masked_dates_of_a_longer_neighbour_do_not_leak_into_a_tile(nano):
    x = random_input(("s2",), times=3)
    alone = nano({key: value[:1] for key, value in x.items()}, 20, "tile")
    padded = {key: torch.cat([value, torch.zeros_like(value)], 1) for key, value in x.items()}
    padded["s2"][1] = torch.randn_like(padded["s2"][1])
    padded["s2_mask"] = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert torch.allclose(nano(padded, 20, "tile")[:1], alone, atol=2e-6)


def test_moving_the_model_or_changing_its_type_breaks_nothing():
    x = random_input(("s2", "aerial"))
    model = random_model()
    model(x, 20, "tile")
    assert model.to(torch.bfloat16)(x, 20, "tile").isfinite().all()
    assert model.to(torch.float32)(x, 20, "tile").isfinite().all()


def test_tiles_with_and_without_modis_take_turns_on_one_model(nano):
    both = random_input(("s2", "modis"), side_m=120)
    alone = {key: value for key, value in both.items() if key.startswith("s2")}
    first = nano(alone, 30, "all")
    nano(both, 30, "all")
    assert torch.equal(nano(alone, 30, "all"), first)


def test_input_tensors_are_left_as_they_were(nano):
    x = random_input(("s2", "aerial"))
    x["s2"][0, 0, 0, 0, 0] = float("nan")
    before = {key: value.clone() for key, value in x.items()}
    nano(x, 20, "dense", "aerial")
    assert all(torch.equal(x[key].nan_to_num(), before[key].nan_to_num()) for key in x)
    assert x["s2"][0, 0, 0, 0, 0].isnan()
