"""Negatives of other processes: two processes with different numbers of tiles are one that has them all."""

import pytest
import torch
from torch import distributed, multiprocessing

from anysat.pretrain.losses import contrast_loss
from anysat.pretrain.objective import from_other_ranks

TILES = (1, 2)
"""Of each process."""


def tokens_of(rank):
    """(batch modality patch dim) and (batch modality patch); the second process lacks a token."""
    tokens = torch.randn(TILES[rank], 2, 3, 8, generator=torch.Generator().manual_seed(rank), requires_grad=True)
    valid = None if rank == 0 else torch.ones(TILES[rank], 2, 3, dtype=torch.bool)
    if valid is not None:
        valid[1, 0, 2] = False
    return tokens, valid


def work(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    tokens, valid = tokens_of(rank)
    others = from_other_ranks(tokens, valid)
    loss = contrast_loss(tokens, valid, 0.1, others)
    loss.backward()
    torch.save([loss.detach(), tokens.grad, *(part.detach() for part in others)], f"{folder}/{rank}.pt")
    mine = tokens_of(rank)[0].detach()[:, : 2 * rank].requires_grad_(True)  # the first process has no modality at all
    alone, _ = from_other_ranks(mine, None)
    (alone.sum() * 3.0).backward()
    torch.save([alone.detach(), mine.grad], f"{folder}/uneven-{rank}.pt")
    none, flags = from_other_ranks(tokens.detach()[:, :0], None)
    assert none.shape == (0, 8), none.shape
    assert flags.shape == (0,), flags.shape
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Loss, gradient, others and their validity, of both processes; others and gradient where one has no tokens."""
    folder = tmp_path_factory.mktemp("gather")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    names = ("{}.pt", "uneven-{}.pt")
    return [[torch.load(folder / name.format(rank), weights_only=True) for rank in (0, 1)] for name in names]


def test_each_process_has_the_tokens_of_the_other_and_the_fillers_do_not_count(found):
    for rank, (_, _, others, seen) in enumerate(found[0]):
        tokens, valid = tokens_of(1 - rank)
        flat = tokens.flatten(0, 2)
        assert torch.equal(others[: len(flat)], flat)
        flags = torch.ones(len(flat), dtype=torch.bool) if valid is None else valid.flatten()
        assert torch.equal(seen[: len(flat)], flags)
        assert not seen[len(flat) :].any()


def test_two_processes_are_one_that_has_all_tiles(found):
    """Tokens of other tiles are negatives in any case; the losses differ in what they are divided by."""
    (one, _), (two, valid) = (tokens_of(rank) for rank in (0, 1))
    whole = contrast_loss(torch.cat([one, two]), torch.cat([torch.ones(1, 2, 3, dtype=torch.bool), valid]), 0.1)
    share = [count / sum(TILES) for count in TILES]
    assert sum(part * loss for part, (loss, *_) in zip(share, found[0], strict=True)).item() == pytest.approx(
        whole.item()
    )


def test_gradients_reach_the_tokens_of_the_other_process(found):
    (one, _), (two, valid) = (tokens_of(rank) for rank in (0, 1))
    first = contrast_loss(one, None, 0.1, (two.flatten(0, 2), valid.flatten()))
    second = contrast_loss(two, valid, 0.1, (one.flatten(0, 2), torch.ones(6, dtype=torch.bool)))
    expected = torch.autograd.grad(first + second, (one, two))
    for grad, (_, mine, *_) in zip(expected, found[0], strict=True):
        assert torch.allclose(mine, grad, atol=1e-6)


def test_a_process_alone_has_no_others():
    assert from_other_ranks(*tokens_of(0)) is None


def test_a_process_without_tokens_keeps_no_other_waiting_and_is_told_theirs(found):
    (first, _), (second, grad) = found[1]
    theirs, _ = tokens_of(1)
    assert torch.equal(first, theirs.detach().flatten(0, 2))
    assert not second.any()  # fillers
    assert torch.equal(grad, torch.full_like(theirs, 3.0))
