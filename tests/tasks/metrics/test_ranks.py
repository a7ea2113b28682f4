"""Scores do not depend on batches, slices, epochs before or ranks.

Run as a script, this file is one of two ranks (see `two_ranks`).
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from builders import child_environment
from metric_builders import KINDS, kinds, same, scored, scores_of


@kinds
def test_batches_do_not_change_the_scores(kind):
    make, data = KINDS[kind]
    outputs, truth = data(7)
    whole = scored(make(), (outputs, truth))
    parts = scored(make(), *((outputs[part], truth[part]) for part in (slice(0, 3), slice(3, 3), slice(3, 7))))
    assert same(parts.to_dict()["figures"], whole.to_dict()["figures"])
    assert parts.interval("f1_macro" if kind != "values" else "rmse") == pytest.approx(
        whole.interval("f1_macro" if kind != "values" else "rmse")
    )


@kinds
def test_reset_forgets_everything(kind):
    make, data = KINDS[kind]
    sheet = make()
    scored(sheet, (*data(9, seed=1), torch.arange(9)))
    sheet.reset()
    ours, fresh = scored(sheet, data(5)), scored(make(), data(5))
    assert ours.to_dict() == fresh.to_dict()
    assert ours.groups is None


@kinds
def test_scores_are_not_changed_by_what_comes_after(kind):
    make, data = KINDS[kind]
    sheet = make()
    first = scored(sheet, data(5))
    before = first.to_dict(), first.interval(next(iter(first.figures)))
    assert scored(sheet, data(6, seed=1)).num_tiles == 11
    sheet.reset()
    assert (first.to_dict(), first.interval(next(iter(first.figures)))) == before


@kinds
def test_sheets_work_as_lightning_uses_them(kind):
    make, data = KINDS[kind]
    sheet = make()
    with torch.inference_mode():
        sheet.update(*data(4))
    assert sheet(*data(5, seed=1)).num_tiles == 5  # of this batch alone
    again = pickle.loads(pickle.dumps(sheet))
    assert again.compute().to_dict() == sheet.clone().compute().to_dict() == sheet.compute().to_dict()
    assert again.compute().num_tiles == 9


def test_working_in_small_slices_changes_nothing(monkeypatch):
    wanted = {kind: scores_of(kind).to_dict() for kind in KINDS}
    bounds = {kind: scores_of(kind).interval(next(iter(wanted[kind]["figures"])), resamples=99) for kind in KINDS}
    monkeypatch.setattr("anysat.probing.samples._MAX_PAIRS", 50)
    assert {kind: scores_of(kind).to_dict() for kind in KINDS} == wanted
    for kind, bound in bounds.items():
        name = next(iter(wanted[kind]["figures"]))
        assert scores_of(kind).interval(name, resamples=99) == pytest.approx(bound)


RANK_TILES = {
    "uneven": ((0, 8), (8, 11)), "empty batch": ((0, 11), (11, 11)),
    "no batch": (None, (0, 11)), "no batch after another epoch": (None, (0, 11)),
}  # fmt: skip


def run_rank(rank, store, out):
    """One of two ranks: scores of every kind and way to share 11 tiles."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for kind, (make, data) in KINDS.items():
        for name, shares in RANK_TILES.items():
            sheet = make()
            if "epoch" in name:
                sheet.update(*data(3, seed=1))
                sheet.reset()
            if shares[rank] is not None:
                part = slice(*shares[rank])
                sheet.update(*(tensor[part] for tensor in data(11)), torch.arange(11)[part] // 2)
            else:
                sheet._update_count = 1  # torchmetrics warns of a sheet without an update
            ours = sheet.compute()
            assert sum(len(rows) for rows in sheet.groups) == len(range(*(shares[rank] or (0, 0))))  # its own again
            found[f"{kind}, {name}"] = [ours.to_dict(), ours.interval(next(iter(ours.figures)), resamples=50)]
    Path(out).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.json" for rank in (0, 1)]
    environment = child_environment(OMP_NUM_THREADS="1")
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder / "store"), str(out)],
                         stderr=subprocess.PIPE, text=True, env=environment)
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        told = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in told)
    return [json.loads(out.read_text()) for out in outs]


@kinds
@pytest.mark.parametrize("shares", RANK_TILES)
def test_two_ranks_score_as_one_process_that_sees_all(two_ranks, kind, shares):
    whole = scores_of(kind, 11, groups=torch.arange(11) // 2)
    bounds = whole.interval(next(iter(whole.figures)), resamples=50)
    for found, found_bounds in (rank[f"{kind}, {shares}"] for rank in two_ranks):
        assert {**found, "figures": None} == {**whole.to_dict(), "figures": None}
        assert found["figures"] == pytest.approx(whole.figures, rel=1e-12)
        assert found_bounds == pytest.approx(bounds, rel=1e-12)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], sys.argv[3])
