"""Heads that ask neighbours: against a slow look-up, of classes, labels and values, of tiles and of pixels."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from anysat.batch import Embeddings
from anysat.data.base import Target
from anysat.errors import InputError
from anysat.patches import PatchGrid
from anysat.probing.cache import extract
from anysat.tasks.base import make_task
from anysat.tasks.heads import NEIGHBOURS, HeadConfig, make_head
from anysat.tasks.neighbours import fit_neighbours
from anysat.tasks.predictor import View, head_of
from labelled import COVER, KEYS, KIND, meadow_encoder
from meadow import Meadow

DIM = 8


def embeddings(tile):
    return Embeddings(tile=tile, patch=tile[:, None, None], valid=torch.ones(len(tile), 1, 1, dtype=torch.bool),
                      grid=PatchGrid(20.0, 1, 1))  # fmt: skip


def asked(kind, targets, vectors, tile, count):
    head = make_head(HeadConfig(name="neighbours", dim=DIM, num_outputs=targets.shape[1], kind=kind,
                                num_samples=len(vectors), num_neighbours=count))  # fmt: skip
    head.load_state_dict({"vectors": torch.nn.functional.normalize(vectors, dim=1), "targets": targets})
    return head(embeddings(tile))


def slow(targets, vectors, tile, count):
    means = []
    for one in tile:
        cosine = [float(torch.nn.functional.cosine_similarity(one, other, dim=0)) for other in vectors]
        nearest = sorted(range(len(vectors)), key=lambda n: -cosine[n])[:count]
        means.append(torch.stack([targets[n] for n in nearest]).mean(0))
    return torch.stack(means)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, DIM, generator=generator), torch.randn(7, DIM, generator=generator), generator


@pytest.mark.parametrize("count", [1, 5, 40, 1000])
def test_the_answer_is_the_mean_target_of_the_nearest(drawn, count):
    vectors, tile, generator = drawn
    values = torch.randn(40, 1, generator=generator)
    wanted = slow(values, vectors, tile, min(count, 40))
    assert torch.allclose(asked("value", values, vectors, tile, count), wanted, atol=1e-5)
    labels = (torch.rand(40, 3, generator=generator) > 0.5).float()
    shares = asked("labels", labels, vectors, tile, count).sigmoid()
    assert torch.allclose(shares, slow(labels, vectors, tile, min(count, 40)), atol=1e-5)
    classes = torch.randint(3, (40,), generator=generator)
    one_hot = torch.nn.functional.one_hot(classes, 3).float()
    found = asked("class", one_hot, vectors, tile, count)
    assert torch.allclose(found.softmax(-1), slow(one_hot, vectors, tile, min(count, 40)), atol=1e-5)
    others = KNeighborsClassifier(min(count, 40), metric="cosine").fit(vectors.numpy(), classes.numpy())
    assert found.argmax(-1).tolist() == others.predict(tile.numpy()).tolist()


def test_a_tile_that_nobody_saw_is_not_answered(drawn):
    vectors, tile, _ = drawn
    tile[2] = torch.nan
    found = asked("value", torch.ones(40, 1), vectors, tile, 3)
    assert found.isnan()[:, 0].tolist() == [n == 2 for n in range(7)]


def test_a_head_without_samples_is_refused():
    with pytest.raises(InputError, match="training embeddings"):
        make_head(HeadConfig(name="neighbours", dim=DIM, num_outputs=1))


@pytest.fixture(scope="module")
def meadow(tmp_path_factory):
    encoder, folder = meadow_encoder(), tmp_path_factory.mktemp("features")
    return encoder, extract(encoder, Meadow(10), 20.0, folder, modalities=KEYS, dense="s2")


def fitted(meadow, target, options=None, **how):
    encoder, features = meadow
    task = make_task(target, options)
    view = View(patch_sizes_m=(20.0,), modalities=KEYS, dense="s2")
    config = head_of(encoder, task, view, NEIGHBOURS[target.level])
    return fit_neighbours(task, config, features, features, how.pop("counts", (1, 5)), seed=0, **how), features


@pytest.mark.parametrize("target", [COVER, KIND], ids=["pixels", "tiles"])
def test_who_asks_the_nearest_one_knows_what_it_has_seen(meadow, target, tmp_path):
    features = extract(meadow[0], Meadow(3), 20.0, tmp_path, modalities=KEYS, dense="s2")  # no two tiles are alike
    found, _ = fitted((meadow[0], features), target)
    assert (found.config.num_neighbours, found.score) == (1, 1.0)
    assert found.score == max(score for _, score in found.tried)
    truth = features.targets[target.name]
    labelled = int((truth != (-1 if target.ignore is None else target.ignore)).sum())
    assert found.config.num_samples <= labelled


@pytest.mark.parametrize("most", [1, 7, 30])
def test_no_more_are_kept_than_are_said(meadow, most):
    for target in (COVER, KIND):
        found, _ = fitted(meadow, target, most=most, counts=(3,))
        assert found.config.num_samples == len(found.head.vectors) <= most
        assert fitted(meadow, target, most=most, counts=(3,))[0].head.vectors.equal(found.head.vectors)


def test_pixels_finer_than_a_sub_patch_share_its_answer(meadow):
    """Ten-metre sub-patches, five-metre labels: the shares of the four are kept, and each of the four is told them."""
    _, features = meadow
    fine = Target(name="fine", level="pixel", kind="class", classes=("a", "b"), ignore=-1, gsd_m=5.0)
    cover = features.targets["cover"]
    truth = (cover >= 0).long().repeat_interleave(2, 1).repeat_interleave(2, 2)
    truth[:, ::2, ::2] = 1
    truth[:, 1::2, 1::2] = -1
    features.targets["fine"] = truth
    found, _ = fitted(meadow, fine, counts=(1,))
    shares = {round(float(share), 4) for share in found.head.targets[:, 1]}
    assert shares <= {1.0, 0.3333}, "of three labelled pixels one or all are b"
    outputs = found.head(features.embeddings([0]))
    assert outputs.shape[1:3] == truth.shape[1:3]
    assert torch.equal(outputs[:, ::2, ::2].nan_to_num(), outputs[:, 1::2, 1::2].nan_to_num())


def test_a_number_that_is_no_class_is_refused(meadow):
    _, features = meadow
    few = Target(name="few", level="tile", kind="class", classes=("a", "b"))
    features.targets["few"] = torch.full((10,), 2)
    with pytest.raises(InputError, match="classes 0 to 1"):
        fitted(meadow, few)
