"""What is hidden: blocks of patches, modalities of a patch, dates of a series."""

import numpy as np
import pytest
import torch

from anysat.errors import RecordError, UnknownNameError
from anysat.model.inputs import PixelInput
from anysat.pretrain import masking
from anysat.pretrain.config import MaskingConfig
from anysat.pretrain.masking import draw_masks, drop_dates, hide_modalities
from objective_builders import generator

HALF = (0.5, 0.5)
GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 7), (4, 9), (6, 6), (32, 32)]


def targeted(masks, num_patches):
    """(batch patch), True where a tile predicts the patch."""
    blocks, batch, _ = masks.targets.shape
    hit = torch.zeros(blocks, batch, num_patches, dtype=torch.bool).scatter_(2, masks.targets, True)
    return (hit & masks.targets_valid[..., None]).any(0)


@pytest.mark.parametrize("pattern", ["blocks", "random"])
@pytest.mark.parametrize("grid", GRIDS[1:])
def test_context_and_targets_share_no_patch_and_every_tile_has_both(grid, pattern):
    for seed in range(30):
        masks = draw_masks(*grid, 64, MaskingConfig(pattern=pattern), generator(seed))
        targets = targeted(masks, grid[0] * grid[1])
        assert not (masks.context & targets).any()
        assert masks.context.any(1).all()
        assert targets.any(1).all()


def test_a_grid_of_one_patch_is_context_and_target():
    masks = draw_masks(1, 1, 3, MaskingConfig(), generator())
    assert masks.context.all()
    assert masks.targets.tolist() == [[[0], [0], [0]]]


def test_target_blocks_are_full_rectangles():
    masks = draw_masks(5, 8, 20, MaskingConfig(), generator(3))
    for block in masks.targets.flatten(0, 1):
        rows, cols = block // 8, block % 8
        height, width = int(rows.max() - rows.min()) + 1, int(cols.max() - cols.min()) + 1
        assert len(block.unique()) == len(block) == height * width


def test_blocks_have_the_configured_areas_on_square_and_oblong_grids():
    config = MaskingConfig(block_area_frac=(0.2, 0.6))
    for rows, cols in ((24, 24), (12, 48)):
        shares = [
            draw_masks(rows, cols, 1, config, generator(seed)).targets.shape[-1] / (rows * cols) for seed in range(300)
        ]
        assert 0.18 < min(shares) < 0.25
        assert 0.55 < max(shares) < 0.64
        assert np.mean(shares) == pytest.approx(0.4, abs=0.03)


def test_blocks_are_placed_uniformly():
    """Of a block that leaves two rows and columns free, each of the nine places is met equally often."""
    config = MaskingConfig(num_blocks=1, block_area_frac=(0.36, 0.36), block_aspect=(1.0, 1.0))  # 3 x 3 of 5 x 5
    masks = draw_masks(5, 5, 9000, config, generator(1))
    first = masks.targets[0, :, 0]
    counts = torch.stack([(first == row * 5 + col).sum() for row in range(3) for col in range(3)])
    assert counts.sum() == 9000
    assert (counts - 1000).abs().max() < 4 * (1000 * 8 / 9) ** 0.5


def test_the_context_does_not_favour_a_corner():
    """Turned by half, it is the same distribution: cutting all lists to the shortest would keep the first rows."""
    masks = draw_masks(8, 8, 20000, MaskingConfig(), generator(5))
    share = masks.context.float().mean(0).view(8, 8)
    assert (share - share.flip(0, 1)).abs().max() < 0.02


def test_the_context_is_all_that_the_targets_leave_of_one_rectangle():
    masks = draw_masks(6, 6, 200, MaskingConfig(), generator(2))
    free = ~targeted(masks, 36)
    for context, left in zip(masks.context.view(-1, 6, 6), free.view(-1, 6, 6), strict=True):
        rows, cols = context.any(1).nonzero(), context.any(0).nonzero()
        box = torch.zeros(6, 6, dtype=torch.bool)
        box[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] = True
        assert torch.equal(context, left & box)


def test_where_nothing_is_left_blocks_go_from_the_last_on_and_only_then_the_context_is_drawn_again(monkeypatch):
    """As a loop over tiles: what is drawn is the blocks, the context, and the contexts drawn again."""
    drawn, place = [], masking._place
    monkeypatch.setattr(masking, "_place", lambda *given: drawn.append(place(*given)) or drawn[-1])
    fates = set()
    for seed in range(40):
        drawn.clear()
        found = draw_masks(3, 3, 16, MaskingConfig(context_area_frac=(0.1, 0.5)), generator(seed))
        blocks, contexts = drawn[0], drawn[1:]
        for tile in range(16):
            count = len(blocks)
            while count > 1 and not (contexts[0][tile] & ~blocks[:count, tile].any(0)).any():
                count -= 1
            free = ~blocks[:count, tile].any(0)
            tries = [context[tile] & free for context in contexts]
            number = next((number for number, left in enumerate(tries) if left.any()), None)
            fates.add((count < len(blocks), number))
            assert found.targets_valid[:, tile].tolist() == [True] * count + [False] * (len(blocks) - count)
            assert torch.equal(found.context[tile], free if number is None else tries[number])
    assert {(False, 0), (True, 0), (True, 1)} <= fates


def test_the_same_generator_state_gives_the_same_masks():
    first, again = (draw_masks(6, 6, 8, MaskingConfig(), generator(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_masks_of_a_large_batch_are_drawn_quickly():
    """A loop over samples takes a quarter of a second here."""
    import time

    draw_masks(4, 4, 256, MaskingConfig(), generator())
    spent = []
    for seed in range(5):
        start = time.perf_counter()
        draw_masks(4, 4, 256, MaskingConfig(), generator(seed))
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.02


def test_hiding_keeps_a_valid_modality_in_every_patch_that_has_one():
    valid = torch.rand(16, 4, 9, generator=generator()) > 0.4
    for frac in (0.3, 0.5, 1.0):
        hidden = hide_modalities(valid, frac, generator(1))
        assert not (hidden & ~valid).any()
        assert torch.equal((valid & ~hidden).any(1), valid.any(1))


def test_the_share_of_hidden_tokens_is_exact_in_every_tile():
    valid = torch.rand(16, 3, 10, generator=generator()) > 0.2
    hidden = hide_modalities(valid, 0.5, generator(1))
    for seen, out in zip(valid, hidden, strict=True):
        others = int(seen.sum()) - int(seen.any(0).sum())
        assert int(seen.sum() - out.sum()) == int(seen.any(0).sum()) + others // 2


def test_every_modality_is_the_kept_one_equally_often():
    hidden = hide_modalities(torch.ones(4000, 4, 1, dtype=torch.bool), 1.0, generator())
    assert ((~hidden).float().mean((0, 2)) - 0.25).abs().max() < 0.03


def series(valid=None):
    values = torch.arange(3 * 10, dtype=torch.float32).view(3, 10, 1, 1, 1)
    days = torch.arange(10.0).expand(3, 10)
    return PixelInput(values, days, valid)


def test_half_the_dates_stay_in_order_with_their_values():
    found = drop_dates(series(), HALF, generator())
    assert found.values.shape == (3, 5, 1, 1, 1)
    assert found.valid is None
    assert (found.days.diff(dim=1) > 0).all()
    assert torch.equal(found.values.flatten(1), found.days + 10 * torch.arange(3)[:, None])


def test_dates_are_drawn_anew_for_every_tile():
    found = drop_dates(series(), HALF, generator())
    assert not torch.equal(found.days[0], found.days[1])


def test_only_dates_that_saw_something_are_drawn_and_one_stays_at_least():
    valid = torch.ones(3, 10, 1, 1, 1, dtype=torch.bool)
    valid[1, 3:] = False  # three dates
    valid[2] = False  # none
    found = drop_dates(series(valid), HALF, generator())
    assert found.valid.flatten(1).sum(1).tolist() == [5, 1, 0]
    one = drop_dates(series(valid), (0.01, 0.01), generator())
    assert one.valid.flatten(1).sum(1).tolist() == [1, 1, 0]


def test_the_share_of_dates_is_drawn_between_two_for_the_whole_batch():
    counts = [drop_dates(series(), (0.2, 0.8), generator(seed)).values.shape[1] for seed in range(60)]
    assert set(counts) == {2, 3, 4, 5, 6, 7}


def test_images_keep_what_they_are():
    image = PixelInput(torch.ones(2, 3, 4, 4))
    assert drop_dates(image, HALF, generator()) is image


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pattern", "stripes"),
        ("num_blocks", 0),
        ("block_area_frac", (0.8, 0.2)),
        ("keep_dates_frac", (0, 0.5)),
        ("keep_dates_frac", (0.5, 0.2)),
        ("random_context_frac", 1),
    ],
)
def test_a_mask_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises((RecordError, UnknownNameError), match=f"masking.{name}"):
        MaskingConfig(**{name: value})


@pytest.mark.parametrize("side", [2, 3, 6])
def test_all_that_is_not_predicted_is_context_where_it_is_the_whole_tile(side):
    """As the paper has it; a context of less leaves a row and a column free."""
    config = MaskingConfig(num_blocks=5, context_area_frac=(1.0, 1.0))
    masks = draw_masks(side, side, 20, config, torch.Generator().manual_seed(0))
    hidden = torch.zeros(20, side * side, dtype=torch.bool)
    for block, valid in zip(masks.targets, masks.targets_valid, strict=True):
        hidden |= torch.zeros_like(hidden).scatter_(1, block, True) & valid[:, None]
    assert torch.equal(masks.context, ~hidden)
    assert masks.context.any(1).all()
