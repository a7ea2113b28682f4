"""Encoders that end early: tokens of blocks on the way, against those caught inside the whole encoder."""

import copy

import pytest
import torch

from anysat.errors import UnknownNameError
from anysat.model.digest import digest
from anysat.model.early import end_at, layer_names
from labelled import meadow_batch, meadow_encoder

SIDE_M, ROWS = 20.0, 2
PATCHES = ROWS * ROWS
CONTEXT = 1
"""Tokens of modis, whose pixel covers the tile."""


@pytest.fixture(scope="module")
def encoder():
    return meadow_encoder(depth=2).eval()


@pytest.fixture(scope="module")
def batch():
    return meadow_batch(4)


def embedded(encoder, batch):
    with torch.inference_mode():
        return encoder.encode(batch, SIDE_M, dense="s2")


def caught(block, encoder, batch):
    """Tokens that leave a block, and which are valid."""
    found = []
    hook = block.register_forward_hook(lambda _, given, left: found.append((left, given[1])))
    embedded(encoder, batch)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_patch_has_the_mean_of_its_tokens_after_a_block_of_fusion_and_the_tile_its_own(encoder, batch, depth):
    tokens, valid = caught(encoder.fusion.blocks[depth - 1], encoder, batch)
    found = embedded(end_at(copy.deepcopy(encoder), f"fusion.{depth}"), batch)
    assert torch.allclose(found.tile, tokens[:, 0], atol=1e-6)
    num_modalities = (tokens.shape[1] - 1 - CONTEXT) // PATCHES
    assert num_modalities == 2
    for tile in range(4):
        for patch in range(PATCHES):
            places = [1 + CONTEXT + number * PATCHES + patch for number in range(num_modalities)]
            own = [tokens[tile, place] for place in places if valid[tile, place]]
            wanted = torch.stack(own).mean(0)
            assert torch.allclose(found.patch[tile, patch // ROWS, patch % ROWS], wanted, atol=1e-5)
    assert len([place for place in places if not valid[0, place]]) == 1, "the first tile has no image"


def test_after_the_spatial_transformer_a_patch_has_the_mean_of_its_modalities_without_its_place(encoder, batch):
    inputs, _ = encoder.prepare(batch, SIDE_M)
    with torch.inference_mode():
        seen = encoder.see(inputs, SIDE_M)
    found = embedded(end_at(copy.deepcopy(encoder), "spatial.2"), batch)
    with_image = slice(1, 4)
    wanted = (seen["s2"].patch + seen["spot"].patch)[with_image] / 2
    assert torch.allclose(found.patch[with_image], wanted, atol=1e-5)
    assert torch.allclose(found.patch[0], seen["s2"].patch[0], atol=1e-5)


def test_fewer_spatial_blocks_give_other_dense_halves_and_all_of_them_the_same(encoder, batch):
    own = slice(encoder.config.dim, None)
    whole = embedded(encoder, batch).dense[..., own]
    early, late = (
        embedded(end_at(copy.deepcopy(encoder), layer), batch).dense[..., own] for layer in ("spatial.1", "spatial.2")
    )
    assert torch.equal(whole.isnan(), late.isnan())
    assert torch.allclose(late, whole, atol=1e-6, equal_nan=True)
    assert not torch.allclose(early, whole, atol=1e-2, equal_nan=True)


def test_every_layer_has_a_digest_and_vectors_of_its_own(encoder, batch):
    names = layer_names(encoder)
    assert names == ["last", "spatial.1", "spatial.2", "fusion.1", "fusion.2"]
    early = [end_at(copy.deepcopy(encoder), name) for name in names]
    assert len({digest(one) for one in early}) == len(names)
    vectors = [embedded(one, batch).patch for one in early]
    assert not any(torch.allclose(a, b, atol=1e-3) for n, a in enumerate(vectors) for b in vectors[:n])
    assert sum(p.numel() for p in early[1].parameters()) < sum(p.numel() for p in early[2].parameters())


def test_places_looked_at_in_parts_get_the_same_tokens(encoder, batch, monkeypatch):
    early = end_at(copy.deepcopy(encoder), "fusion.1")
    whole = embedded(early, batch)
    monkeypatch.setattr("anysat.model.encoder.MAX_PAIRS", 1)
    parts = embedded(early, batch)
    assert torch.allclose(whole.patch, parts.patch, atol=1e-6)
    assert torch.equal(whole.tile, parts.tile)


def test_an_unknown_layer_is_refused_with_those_there_are(encoder):
    with pytest.raises(UnknownNameError, match="fusion.2"):
        end_at(encoder, "fusion.3")
