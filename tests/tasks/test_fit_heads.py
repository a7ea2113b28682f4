"""Heads on cached embeddings: the best setting and epoch on validation tiles win, and nothing else has a say."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import save_file

from anysat.data.base import Target
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.patches import PatchGrid
from anysat.probing.cache import TILES_PER_FILE, Features
from anysat.tasks.base import make_task, mean_loss
from anysat.tasks.heads import HeadConfig, make_head
from anysat.tasks.probe import Recipe, Setting, check_labelled, fit_heads, grid, is_better, outputs_of, score_heads

DIM, NAN = 8, math.nan
KIND = Target(name="kind", level="tile", kind="class", classes=("a", "b", "c"), ignore=-1)
MASS = Target(name="mass", level="tile", kind="value")
GOOD, SLOW, USELESS = (Setting(learning_rate=rate, weight_decay=0.0) for rate in (0.1, 1e-3, 1e-9))


def make_features(folder, truth, *, apart=3.0, seed=0, target="kind"):
    """Tile vectors that lie about a corner for each class, in files as the cache writes them."""
    folder.mkdir()
    noise = torch.randn(len(truth), DIM, generator=torch.Generator().manual_seed(seed))
    place = torch.nn.functional.one_hot(truth.long().clamp_min(0), DIM)
    tile, files = noise + 4 * apart * place, []
    for number, part in enumerate(tile.split(TILES_PER_FILE)):
        files.append(folder / f"{number}.safetensors")
        patch = part[:, None, None].clone()
        save_file(
            {"tile": part.clone(), "patch": patch, "valid": torch.ones(patch.shape[:3], dtype=torch.bool)}, files[-1]
        )
    ids = tuple(f"t{number}" for number in range(len(truth)))
    return Features(files=tuple(files), ids=ids, targets={target: truth}, grid=PatchGrid(20.0, 1, 1))


@pytest.fixture
def data(tmp_path):
    """Training and validation tiles that a line tells apart."""
    return [make_features(tmp_path / f"part{n}", torch.arange(30 + n) % 3, seed=n) for n in range(2)]


def make():
    return make_head(HeadConfig(name="tile", dim=DIM, num_outputs=3))


def fit(train, val, settings=(GOOD,), *, task=None, make=make, epochs=5, batch_size=8, seed=0, **options):
    return fit_heads(
        task or make_task(KIND),
        make,
        [train],
        [val],
        settings,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        **options,
    )


def states_equal(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@dataclass
class Told:
    """A task whose score on the validation tiles is told beforehand, setting by setting in each epoch."""

    scores: list
    highest_is_best: bool = True

    def __post_init__(self):
        self.inner, self.target, self.primary = make_task(KIND), KIND, "told"
        self.asked = iter(self.scores)

    def loss(self, outputs, truth):
        return self.inner.loss(outputs, truth)

    def loss_weight(self, outputs, truth):
        return self.inner.loss_weight(outputs, truth)

    def metric(self):
        return self

    def score(self, sheet, outputs, truth, groups=None):
        pass

    def compute(self):
        self.figures = {"told": next(self.asked)}
        return type("Scores", (), {"figures": self.figures})()


# --- learning


def test_what_a_line_tells_apart_is_learnt(data, tmp_path):
    task, test = make_task(KIND), make_features(tmp_path / "test", torch.arange(200) % 3, seed=9)
    val = make_features(tmp_path / "val", torch.arange(300) % 3, seed=5)  # so many that chance does not choose
    trained = fit(data[0], val, [USELESS, GOOD], epochs=20)
    found = score_heads(task, [trained.head], [test])[0]
    assert found.figures["accuracy"] > 0.99
    assert found.num_tiles == 200
    assert trained.setting is GOOD


def test_a_value_that_is_a_linear_map_of_the_norm_is_learnt(tmp_path):
    parts = []
    for n in range(2):
        part = make_features(tmp_path / f"{n}", torch.arange(64) % 3, seed=n, target="mass")
        tile = torch.nn.functional.layer_norm(part.embeddings(range(64)).tile, (DIM,))
        part.targets["mass"] = 100 + 10 * tile[:, 0]
        parts.append(part)
    task = make_task(MASS, {"mean": 100.0, "deviation": 10.0})
    small = lambda: make_head(HeadConfig(name="tile", dim=DIM, num_outputs=1))  # noqa: E731
    trained = fit(*parts, [USELESS, GOOD], task=task, make=small, epochs=40)
    assert trained.setting is GOOD, "the lowest error is the best"
    assert trained.score < 1
    assert trained.score == min(point["rmse"] for point in trained.curve)


def test_the_same_seed_gives_the_same_head_to_the_bit_and_another_one_another(data):
    one, same, other = (fit(*data, [SLOW], seed=seed, epochs=2) for seed in (3, 3, 4))
    assert states_equal(one.head, same.head)
    assert one.curve == same.curve
    assert not states_equal(one.head, other.head)


def test_a_plateau_divides_by_ten_after_ten_epochs_without_a_lower_validation_loss(data, monkeypatch):
    rates, real = [], torch.optim.AdamW.step

    def noted(self, *args, **options):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    nothing_learnt = Setting(learning_rate=1e-12, weight_decay=0.0)
    fit(*data, [nothing_learnt], epochs=24, batch_size=30, recipe=Recipe(schedule="plateau"))
    # torch counts the epochs after the first, and lets ten of them pass.
    assert rates == pytest.approx([1e-12] * 12 + [1e-13] * 11 + [1e-14])


@pytest.mark.parametrize("epochs", [2, 20])
def test_a_probe_warms_up_for_as_many_epochs_as_are_asked_for(epochs, data, monkeypatch):
    rates, real = [], torch.optim.AdamW.step

    def noted(self, *args, **options):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    fit(*data, [GOOD], epochs=30, batch_size=10, recipe=Recipe(warmup_epochs=epochs))
    assert rates[: 3 * epochs] == pytest.approx([0.1 * (n + 1) / (3 * epochs) for n in range(3 * epochs)])
    assert max(rates) == pytest.approx(0.1)


def test_gradients_are_clipped_only_where_a_length_is_given(data, monkeypatch):
    lengths, real = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, most: lengths.append(most) or real(p, most))
    fit(*data, epochs=1, recipe=Recipe(clip_norm=None))
    assert lengths == []
    fit(*data, epochs=1, recipe=Recipe(clip_norm=0.3))
    assert set(lengths) == {0.3}


def test_settings_are_chosen_by_the_score_that_is_asked_for(data):
    for name, best in (("accuracy", max), ("calibration_error", min)):
        trained = fit(*data, [GOOD, SLOW], task=make_task(KIND, {"monitor": name}))
        assert trained.score == best(point[name] for curve in trained.curves for point in curve)
    for target in (KIND, replace(KIND, kind="labels")):
        ends = [
            make_task(target, {"monitor": name}).highest_is_best for name in ("accuracy", "calibration_error", None)
        ]
        assert ends == [True, False, True]
    with pytest.raises(UnknownNameError, match=r"accuracy"):
        make_task(KIND, {"monitor": "acuracy"})
    with pytest.raises(UnknownNameError, match="bias"):  # of which neither end is the best
        make_task(MASS, {"monitor": "bias"})


def test_a_setting_is_trained_the_same_whatever_is_tried_beside_it(data):
    alone, among = fit(*data, [GOOD]), fit(*data, [USELESS, GOOD, SLOW])
    assert among.setting is GOOD
    assert states_equal(alone.head, among.head)


def test_validation_labels_choose_but_never_teach(data, tmp_path):
    train, val = data
    other = make_features(tmp_path / "other", (torch.arange(31) + 1) % 3, seed=1)
    assert states_equal(fit(train, val, epochs=1).head, fit(train, other, epochs=1).head)


def test_learning_rates_rise_and_then_fall_to_almost_nothing(data, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def noted(self, *args, **options):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    fit(*data, epochs=10)  # of 4 steps each
    factors = [pair[0] / GOOD.learning_rate for pair in rates]
    assert len(factors) == 40
    assert all(pair[0] == pair[1] for pair in rates)
    assert factors[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    assert factors[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * n / 36)) for n in range(36)])


def test_weight_decay_shrinks_matrices_only(tmp_path, data):
    nothing = make_features(tmp_path / "nothing", torch.full((16,), -1))  # whose gradient is 0
    decayed, plain = (
        fit(nothing, data[1], [Setting(learning_rate=0.1, weight_decay=decay)], epochs=3).head.state_dict()
        for decay in (0.5, 0.0)
    )
    for name in ("norm.weight", "norm.bias", "linear.bias"):
        assert torch.equal(decayed[name], plain[name])
    ratio = decayed["linear.weight"] / plain["linear.weight"]
    assert ratio.max() < 0.99
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)


def test_outputs_of_several_patch_sizes_are_averaged(data, tmp_path):
    head = make()
    other = make_features(tmp_path / "other", torch.arange(31) % 3, seed=7)
    seen = [one.embeddings(range(31)) for one in (data[1], other)]
    outputs = outputs_of(head, seen)
    assert torch.allclose(outputs, (head(seen[0]) + head(seen[1])) / 2)
    found = score_heads(make_task(KIND), [head], [data[1], other])[0]
    right = outputs.argmax(1) == torch.arange(31) % 3
    assert found.figures["accuracy"] == pytest.approx(right.float().mean().item())


# --- choosing


def test_the_best_setting_on_validation_wins_with_its_best_epoch(data):
    trained = fit(*data, [USELESS, SLOW, GOOD])
    scores = {setting.learning_rate: score for setting, score, _ in trained.tried}
    assert trained.score == max(scores.values()) == scores[trained.setting.learning_rate]
    assert scores[GOOD.learning_rate] > scores[USELESS.learning_rate]
    assert score_heads(make_task(KIND), [trained.head], [data[1]])[0].figures["f1_macro"] == trained.score
    assert trained.curve[trained.epoch - 1]["f1_macro"] == trained.score
    assert len(trained.curve) == 5
    assert not trained.head.training


def test_the_head_is_that_of_the_best_epoch_not_of_the_last(data):
    heads = []

    def noted():
        heads.append(make())
        return heads[-1]

    best = fit(*data, task=Told([0.1, 0.8, 0.3, 0.8, 0.2]), make=noted)
    assert (best.epoch, best.score, len(best.curve)) == (2, 0.8, 5)
    seen = []
    fit(*data, task=Told([0.1, 0.8, 0.3, 0.8, 0.2]), make=noted,
        advance=lambda _: seen.append({k: t.clone() for k, t in heads[-1].state_dict().items()}))  # fmt: skip
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in best.head.state_dict().items())
    assert not all(torch.equal(tensor, seen[-1][name]) for name, tensor in best.head.state_dict().items())


@pytest.mark.parametrize(("scores", "highest", "wanted"), [
    ([0.5, 0.5, 0.5, 0.5], True, (0, 0.5, 1)), ([0.5, 0.4, 0.1, 0.6], True, (1, 0.6, 2)),
    ([0.5, 0.4, 0.1, 0.6], False, (0, 0.1, 2)), ([NAN, 0.1, NAN, NAN], True, (1, 0.1, 1)),
    ([NAN, NAN, 0.2, 0.2], False, (0, 0.2, 2)), ([0.3, NAN, NAN, 0.1], True, (0, 0.3, 1)),
])  # fmt: skip
def test_ties_go_to_the_first_and_nan_never_wins(data, scores, highest, wanted):
    """Of two settings, in two epochs: 0 and 1 of the first epoch, then those of the second."""
    settings = [Setting(learning_rate=0.01, weight_decay=0.0) for _ in range(2)]
    trained = fit(*data, settings, task=Told(scores, highest), epochs=2)
    number = [setting is trained.setting for setting in settings].index(True)
    assert (number, trained.score, trained.epoch) == wanted


def test_without_any_score_the_first_setting_is_left_and_said_to_have_none(data):
    trained = fit(*data, [SLOW, GOOD], task=Told([NAN] * 4), epochs=2)
    assert trained.setting is SLOW
    assert math.isnan(trained.score)
    assert trained.epoch == 0
    assert all(tensor.isfinite().all() for tensor in trained.head.state_dict().values())


@pytest.mark.parametrize(("score", "than", "higher", "lower"), [
    (2.0, 1.0, True, False), (1.0, 2.0, False, True), (1.0, 1.0, False, False), (1.0, NAN, True, True),
    (NAN, 1.0, False, False), (NAN, NAN, False, False),
])  # fmt: skip
def test_anything_beats_nan_and_nothing_beats_its_equal(score, than, higher, lower):
    assert is_better(score, than, make_task(KIND)) == higher
    assert is_better(score, than, make_task(MASS)) == lower


def test_it_ends_when_no_setting_has_improved_for_so_many_epochs(data):
    done = []
    scores = [0.1, 0.1, 0.2, 0.1, 0.2, 0.3, 0.2, 0.3, 0.1, 0.3, 0.9, 0.9]  # the last improvement is in the third epoch
    trained = fit(*data, [GOOD, SLOW], task=Told(scores), epochs=6, patience=2, advance=done.append)
    assert len(done) == len(trained.curve) == 5
    assert (trained.setting, trained.score, trained.epoch) == (SLOW, 0.3, 3)
    assert len(fit(*data, task=Told([0.5] * 6), epochs=6).curve) == 6, "no patience, no early end"
    late = fit(*data, task=Told([0.5] * 6), epochs=6, patience=2, recipe=Recipe(min_epochs=5))
    assert len(late.curve) == 5, "no end before as many epochs as it must last"


def test_epochs_without_any_score_are_not_counted_as_without_an_improvement(data):
    assert len(fit(*data, task=Told([NAN] * 6), epochs=6, patience=2).curve) == 6
    later = fit(*data, task=Told([NAN] * 3 + [0.5, NAN, 0.4, 0.9]), epochs=7, patience=2)
    assert (len(later.curve), later.score, later.epoch) == (6, 0.5, 4)


# --- what cannot be


def test_training_without_settings_epochs_or_tiles_is_refused(data, tmp_path):
    for name, options in (("settings", {"settings": []}), ("epochs", {"epochs": 0}), ("batch_size", {"batch_size": 0})):
        with pytest.raises(RecordError, match=f"{name}: expected 1 or more, got 0"):
            fit(*data, **options)
    empty = Features(files=(), ids=(), targets={"kind": torch.empty(0)}, grid=PatchGrid(20.0, 1, 1))
    with pytest.raises(RecordError, match="training tiles: expected 1 or more"):
        fit(empty, data[1])


@pytest.mark.parametrize(("rate", "decay"), [(0.0, 0.0), (-1.0, 0.0), (NAN, 0.0), (0.1, -0.1), (0.1, NAN)])
def test_settings_that_cannot_be_are_refused(rate, decay):
    with pytest.raises(RecordError, match="learning rate and weight decay"):
        Setting(learning_rate=rate, weight_decay=decay)


def test_a_grid_is_every_rate_with_every_decay():
    assert [(s.learning_rate, s.weight_decay) for s in grid([1.0, 2.0], [0.0, 0.5])] == [
        (1, 0),
        (1, 0.5),
        (2, 0),
        (2, 0.5),
    ]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_head_of_values_that_diverges_has_no_score_though_what_nobody_saw_is_scored_as_the_mean(share, tmp_path):
    class Breaking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.steps = make_head(HeadConfig(name="tile", dim=DIM, num_outputs=1)), 0

        def forward(self, seen):
            self.steps += self.training
            outputs = self.inner(seen) + 5  # of the deviation, so that the mean is the better answer
            broken = torch.arange(len(outputs)) < share * len(outputs) if self.steps > 4 else torch.zeros(1).bool()
            return outputs.where(~broken[:, None], NAN)  # from the second epoch on

    truth = torch.randn(32, generator=torch.Generator().manual_seed(0))
    parts = [make_features(tmp_path / str(n), truth, target="mass") for n in range(2)]
    trained = fit(*parts, [SLOW], task=make_task(MASS), make=Breaking, epochs=3)
    assert trained.epoch == 1
    assert trained.score > 2
    assert [math.isnan(point["rmse"]) for point in trained.curve] == [False, True, True]


def test_a_head_that_diverges_is_left_as_it_was_before_and_its_loss_is_no_number(data):
    class Breaking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.steps = make(), 0

        def forward(self, seen):
            self.steps += self.training
            return self.inner(seen) * (NAN if self.steps > 4 else 1.0)  # from the second epoch on

    trained = fit(*data, [SLOW], make=Breaking, epochs=3)
    assert trained.epoch == 1
    assert [math.isnan(point["loss"]) for point in trained.curve] == [False, True, True]
    assert all(tensor.isfinite().all() for tensor in trained.head.state_dict().values())


@pytest.mark.parametrize(("target", "truth"), [(KIND, torch.full((12,), -1)), (MASS, torch.full((12,), NAN))])
def test_tiles_of_which_none_has_a_label_are_refused(target, truth):
    with pytest.raises(InputError, match=f"training tiles, {target.name}.*none in 12 tiles"):
        check_labelled(target, truth, "training")
    truth[3] = 1
    check_labelled(target, truth, "training")


# --- validation loss


@pytest.mark.parametrize("where", [KIND, MASS], ids=["classes", "values"])
def test_the_validation_loss_is_that_of_all_labels_however_they_fall_into_batches(tmp_path, where):
    task, count = make_task(where), TILES_PER_FILE + 1
    truth = torch.arange(count) % 3 if where is KIND else torch.arange(count, dtype=torch.float32)
    truth[[1, 2, count - 1]] = -1 if where is KIND else NAN  # the last batch has no label at all
    features = make_features(tmp_path / "tiles", torch.zeros(count), target=where.name)
    features = replace(features, targets={where.name: truth})
    torch.manual_seed(0)
    heads = [make_head(HeadConfig(name="tile", dim=DIM, num_outputs=task.num_outputs)) for _ in range(2)]
    losses = []
    score_heads(task, heads, [features], losses=losses)
    with torch.inference_mode():
        at_once = [float(task.loss(head(features.embeddings(range(count))), truth)) for head in heads]
    assert losses == pytest.approx(at_once, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    "task", [make_task(KIND, {"class_weights": (0.1, 1.0, 7.0)}), make_task(KIND), make_task(MASS)],
    ids=["weights", "classes", "values"],
)  # fmt: skip
def test_losses_of_batches_weighted_by_their_loss_weight_are_the_loss_of_all(task, batch_size):
    torch.manual_seed(0)
    outputs, truth = torch.randn(9, task.num_outputs), torch.arange(9) % 3
    outputs[[1, 2, 3, 6]] = NAN  # labelled, but not observed
    truth = torch.where(torch.arange(9) == 5, -1, truth) if task.target is KIND else truth.float()
    parts = list(zip(outputs.split(batch_size), truth.split(batch_size), strict=True))
    found = mean_loss([(float(task.loss(*part)), task.loss_weight(*part)) for part in parts])
    assert found == pytest.approx(float(task.loss(outputs, truth)), rel=1e-6)


def test_without_a_label_there_is_no_mean_loss():
    assert math.isnan(mean_loss([]))
    assert math.isnan(mean_loss([(0.0, 0)]))
    assert mean_loss([(1.0, 2), (NAN, 5), (4.0, 1), (9.0, 0)]) == 2.0
