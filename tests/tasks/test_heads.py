"""Heads: published sizes and index orders against slow loops, and what was not seen stays out of everything."""

import math
from dataclasses import replace

import pytest
import torch

from anysat.batch import Embeddings
from anysat.data.base import Target
from anysat.data.open import find_dataset
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.modalities import MODALITIES
from anysat.patches import PatchGrid
from anysat.tasks.base import make_task
from anysat.tasks.heads import HEADS, NEIGHBOURS, HeadConfig, head_config, make_head

NAN = math.nan
DIM, ROWS, COLS, SIDE = 6, 2, 3, 2  # patches of a rectangle, and sub-patches along the side of one
STEPS = {"dense": (2 * ROWS, 2 * COLS), "conv": (2 * ROWS, 2 * COLS), "patches": (ROWS, COLS)}


def make_seen(dim=DIM, rows=ROWS, cols=COLS, side=SIDE, *, gaps=True, seed=0):
    """Embeddings of two tiles, NaN where about a third was not seen."""
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, rows, cols, generator=g) > (0.3 if gaps else -1)
    within = valid.repeat_interleave(side, 1).repeat_interleave(side, 2)
    dense_valid = within & (torch.rand(within.shape, generator=g) > (0.3 if gaps else -1))
    patch, dense = torch.randn(*valid.shape, dim, generator=g), torch.randn(*within.shape, 2 * dim, generator=g)
    return Embeddings(
        tile=torch.randn(2, dim, generator=g), patch=patch.masked_fill(~valid[..., None], NAN), valid=valid,
        grid=PatchGrid(20.0, rows, cols), dense=dense.masked_fill(~dense_valid[..., None], NAN),
        dense_valid=dense_valid, dense_modality=MODALITIES["s2"],
    )  # fmt: skip


def random_head(name, *, outputs=4, pixels=(1, 1), dim=DIM, seed=1):
    """A head whose every parameter is random."""
    torch.manual_seed(seed)
    head = make_head(HeadConfig(name=name, dim=dim, num_outputs=outputs, pixels_per_step=pixels, width=8))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.eval()


def is_of_tiles(name):
    """Whether a head takes a target of tiles."""
    target = Target(name="t", level="tile", kind="class", classes=("a", "b"))
    try:
        head_config(name, target, 2, 8, patch_size_m=20, dense=None)
    except RecordError:
        return False
    return True


TRAINED = [name for name in HEADS if name not in NEIGHBOURS.values()]
OF_TILES = [name for name in TRAINED if is_of_tiles(name)]
OF_PIXELS = [name for name in TRAINED if name not in OF_TILES]
PIXELS = [(name, pixels) for name in OF_PIXELS for pixels in ((1, 1), (3, 1), (1, 2))]
PIXELS = [(name, pixels, (2, 4) if name == "patches" else (ROWS, COLS)) for name, pixels in PIXELS]


def slow_norm(vector, norm):
    mean = sum(vector.tolist()) / len(vector)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in vector.tolist()) / len(vector) + 1e-5)
    return (vector - mean) / deviation * norm.weight + norm.bias


def slow_output(head, vector, index):
    return (head.linear.weight[index] @ slow_norm(vector, head.norm) + head.linear.bias[index]).item()


# --- what was published


@pytest.mark.parametrize(("dataset", "target", "options", "head", "dense", "patch_size_m", "count"), [
    ("bradd_s1ts", "deforestation", {}, "dense", "s1", 40, 6_146),
    ("pastis_hd", "crops", {"void_output": True}, "dense", "s2", 40, 33_812),
    ("timesen2crop", "crop", {}, "tile", None, 10, 13_840),
    ("flair", "land_cover", {"void_output": True}, "dense", "aerial-flair", 10, 2_001_172),
    ("spacenet7", "buildings", {}, "dense", "planet", 48, 52_256),
    ("so2sat", "lcz", {}, "tile", None, 80, 14_609),
    ("so2sat", "lcz", {}, "both", None, 80, 29_201),
])  # fmt: skip
def test_published_heads_have_as_many_parameters(dataset, target, options, head, dense, patch_size_m, count):
    wanted = find_dataset(dataset).target(target)
    config = head_config(
        head, wanted, make_task(wanted, options).num_outputs, 768, patch_size_m=patch_size_m,
        dense=None if dense is None else MODALITIES[dense],
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in make_head(config).parameters()) == count


def test_the_dense_head_counts_row_then_column_then_output():
    seen, head = make_seen(), random_head("dense", pixels=(3, 1))
    outputs = head(seen)
    assert outputs.shape == (2, ROWS * SIDE * 3, COLS * SIDE * 3, 4)
    for tile, row, col in torch.nonzero(seen.dense_valid).tolist():
        for y, x, output in [(0, 0, 0), (0, 2, 3), (2, 1, 1), (1, 0, 2), (2, 2, 3)]:
            wanted = slow_output(head, seen.dense[tile, row, col], (y * 3 + x) * 4 + output)
            assert outputs[tile, row * 3 + y, col * 3 + x, output].item() == pytest.approx(wanted, abs=1e-4)


def test_the_head_of_patches_counts_output_then_row_then_column():
    seen, head = make_seen(), random_head("patches", pixels=(3, 1))
    outputs = head(seen)
    assert outputs.shape == (2, ROWS * 3, COLS * 3, 4)
    for tile, row, col in torch.nonzero(seen.valid).tolist():
        for y, x, output in [(0, 0, 0), (0, 2, 3), (2, 1, 1), (1, 0, 2), (2, 2, 3)]:
            wanted = slow_output(head, seen.patch[tile, row, col], output * 9 + y * 3 + x)
            assert outputs[tile, row * 3 + y, col * 3 + x, output].item() == pytest.approx(wanted, abs=1e-4)


def test_heads_of_tiles_are_a_norm_and_a_linear_map_of_token_and_mean_patch():
    seen = make_seen()
    for tile in range(2):
        patches = [seen.patch[tile, row, col] for row, col in torch.nonzero(seen.valid[tile]).tolist()]
        mean = sum(patches) / len(patches)
        vectors = {"tile": seen.tile[tile], "pooled": mean, "both": torch.cat([seen.tile[tile], mean])}
        for name, vector in vectors.items():
            head = random_head(name)
            wanted = [slow_output(head, vector, output) for output in range(4)]
            torch.testing.assert_close(head(seen)[tile], torch.tensor(wanted), atol=1e-4, rtol=0)


# --- every head


@pytest.mark.parametrize("name", OF_TILES)
def test_a_head_of_tiles_gives_finite_outputs_of_each_tile(name):
    outputs = random_head(name)(make_seen())
    assert outputs.shape == (2, 4)
    assert outputs.isfinite().all()


@pytest.mark.parametrize(("name", "pixels", "patches"), PIXELS)
def test_a_head_of_pixels_covers_the_tile_and_is_nan_exactly_where_nothing_was_seen(name, pixels, patches):
    seen = make_seen(rows=patches[0], cols=patches[1])
    outputs = random_head(name, pixels=pixels)(seen)
    finer, coarser = pixels
    valid = seen.dense_valid if HEADS[name].dense else seen.valid
    rows, cols = valid.shape[1] // coarser, valid.shape[2] // coarser
    assert outputs.shape == (2, rows * finer, cols * finer, 4)
    for tile in range(2):
        for row in range(rows * finer):
            for col in range(cols * finer):
                top, left = row // finer * coarser, col // finer * coarser
                was_seen = bool(valid[tile, top : top + coarser, left : left + coarser].any())
                assert outputs[tile, row, col].isfinite().all() if was_seen else outputs[tile, row, col].isnan().all()


@pytest.mark.parametrize(("name", "pixels", "patches"), PIXELS)
def test_what_was_not_seen_neither_changes_an_output_nor_makes_a_nan_gradient(name, pixels, patches):
    seen, head = make_seen(rows=patches[0], cols=patches[1]), random_head(name, pixels=pixels)
    with_gaps = [seen.patch.clone().requires_grad_(), seen.dense.clone().requires_grad_()]
    outputs = head(replace(seen, patch=with_gaps[0], dense=with_gaps[1]))
    other = replace(
        seen, patch=seen.patch.nan_to_num(nan=7.0), dense=torch.where(seen.dense.isnan(), -1e4, seen.dense)
    )  # fmt: skip
    assert torch.equal(outputs.nan_to_num(nan=9.0), head(other).nan_to_num(nan=9.0))
    outputs[outputs.isfinite()].square().sum().backward()
    grads = [parameter.grad for parameter in head.parameters()]
    grads += [tensor.grad for tensor in with_gaps if tensor.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_pixels_coarser_than_sub_patches_are_made_from_the_mean_of_the_seen_ones():
    seen, head = make_seen(), random_head("dense", pixels=(1, 2))
    outputs, num_mixed = head(seen), 0
    for tile in range(2):
        for row in range(ROWS):
            for col in range(COLS):
                square = [(2 * row + y, 2 * col + x) for y in range(2) for x in range(2)]
                vectors = [seen.dense[tile, r, c] for r, c in square if seen.dense_valid[tile, r, c]]
                num_mixed += 0 < len(vectors) < 4
                if vectors:
                    mean = sum(vectors) / len(vectors)
                    wanted = [slow_output(head, mean, output) for output in range(4)]
                    torch.testing.assert_close(outputs[tile, row, col], torch.tensor(wanted), atol=1e-4, rtol=0)
                else:
                    assert outputs[tile, row, col].isnan().all()
    assert num_mixed > 2


def test_a_tile_is_pooled_over_its_seen_patches_only():
    seen, head = make_seen(), random_head("pooled")
    patch = seen.patch.clone().requires_grad_()
    head(replace(seen, patch=patch)).sum().backward()
    assert torch.equal(patch.grad.abs().sum(-1) > 0, seen.valid)
    nobody = replace(seen, patch=torch.full_like(seen.patch, NAN), valid=torch.zeros_like(seen.valid))
    assert head(nobody).isfinite().all()


def test_pixels_of_one_sub_patch_depend_on_that_sub_patch_alone():
    seen, head = make_seen(gaps=False), random_head("dense", pixels=(3, 1))
    dense = seen.dense.clone()
    dense[1, 2, 3, 0] += 1
    changed = (head(replace(seen, dense=dense)) != head(seen)).any(-1)
    wanted = torch.zeros_like(changed)
    wanted[1, 6:9, 9:12] = True
    assert torch.equal(changed, wanted)


def test_the_convolutional_head_sees_the_neighbours_and_keeps_the_place():
    """Odd sides, which its halves do not divide, included."""
    seen, head = make_seen(rows=9, cols=11, side=1, gaps=False), random_head("conv")
    for norm in (m for m in head.modules() if isinstance(m, torch.nn.GroupNorm)):
        norm.forward = lambda x: x  # which sees the whole tile
    dense = seen.dense.clone()
    dense[0, 4, 5, 0] += 5
    changed = (head(replace(seen, dense=dense)) != head(seen)).any(-1)
    rows, cols = torch.nonzero(changed[0]).T
    assert not changed[1].any()
    assert (rows.float().mean().round(), cols.float().mean().round()) == (4, 5)
    assert changed[0, 3:6, 4:7].all()


# --- what fits


def target_of(gsd_m, level="pixel"):
    return Target(name="crops", level=level, kind="class", classes=("a", "b"), gsd_m=gsd_m)


@pytest.mark.parametrize(("name", "gsd_m", "dense", "wanted"), [
    ("dense", 10.0, "s2", (1, 1)), ("dense", 0.2, "aerial", (10, 1)), ("dense", 20.0, "s2", (1, 2)),
    ("conv", 3.0, "planet", (4, 1)), ("patches", 10.0, None, (4, 1)), ("patches", 80.0, None, (1, 2)),
])  # fmt: skip
def test_pixels_and_steps_nest_either_way(name, gsd_m, dense, wanted):
    modality = None if dense is None else MODALITIES[dense]
    config = head_config(name, target_of(gsd_m), 2, 8, patch_size_m=40.0, dense=modality)
    assert config.pixels_per_step == wanted


@pytest.mark.parametrize("name", OF_TILES)
def test_a_head_of_tiles_is_refused_for_pixels_naming_those_that_fit(name):
    with pytest.raises(RecordError, match="--head.*'dense' or 'patches' or 'conv'.*'crops', of each pixel"):
        head_config(name, target_of(10.0), 2, 8, patch_size_m=40, dense=MODALITIES["s2"])


@pytest.mark.parametrize("name", OF_PIXELS)
def test_a_head_of_pixels_is_refused_for_tiles_naming_those_that_fit(name):
    with pytest.raises(RecordError, match="--head.*'tile' or 'pooled' or 'both'.*'crops', of each tile"):
        head_config(name, target_of(None, "tile"), 2, 8, patch_size_m=40, dense=MODALITIES["s2"])


def test_pixels_that_do_not_nest_are_refused_with_both_sizes():
    with pytest.raises(InputError, match="'crops'.*nest in 10 m.*got 4 m.*another modality with `dense`"):
        head_config("dense", target_of(4.0), 2, 8, patch_size_m=40, dense=MODALITIES["s2"])


def test_a_dense_head_without_a_modality_or_dense_embeddings_says_what_it_needs():
    with pytest.raises(InputError, match="--dense.*whose sub-patches.*none"):
        head_config("dense", target_of(10.0), 2, 8, patch_size_m=40, dense=None)
    with pytest.raises(InputError, match="dense ones.*name a modality in `dense`"):
        random_head("dense")(replace(make_seen(), dense=None, dense_valid=None))


def test_an_unknown_head_is_refused_naming_close_ones():
    with pytest.raises(UnknownNameError, match="unknown head 'dens'; closest: dense"):
        head_config("dens", target_of(10.0), 2, 8, patch_size_m=40, dense=None)
    with pytest.raises(UnknownNameError, match="unknown head 'pool'"):
        make_head(HeadConfig(name="pool", dim=8, num_outputs=2))
