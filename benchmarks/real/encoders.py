"""Our encoders on the real labelled tasks: probes and fine-tuning, on the folds of the simple models and tuned alike.

python benchmarks/real/encoders.py run crop_canada --weights untrained --method finetune --seed 0 --data DATA
python benchmarks/real/encoders.py run crop_canada --weights runs/real-unseen --name real --method probe --data DATA
python benchmarks/real/encoders.py compare crop_canada --data DATA     # all records of a task, and the simple models
python benchmarks/real/encoders.py print                               # the tables of all comparisons

Protocol. For every fold that is tested, statistics of the bands are those of the training tiles.
`probe`: the linear model of `simple.py`, tuned and fitted as there, on the frozen tokens of the pixel asked (fused, and
of each modality by itself), of every calendar year that a series has; `probe+statistics` joins the simple statistics.
`finetune`: all weights, from `--weights`. The encoder sees the calendar year that the label is of. For each learning
rate of `LEARNING_RATES` it trains without one inner fold of whole groups (of `INNER_FOLDS`), and the best rate and the
number of steps by that fold's accuracy (values: RMSE) train on the whole training part. They are chosen with seed 0.

A run leaves one record, with its answers; a fold that is done is kept in `--runs`, so that a run goes on where it was
stopped. `compare` scores the answers, together over seeds, and pairs them with the best simple model (fitted again with
the settings of its record) and with the untrained weights of the same method. Fold 0 is also told by itself: it is
what `unlabelled.py` leaves out.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining_features import pixel_features
from threadpoolctl import threadpool_limits
from torch import Tensor

import anysat
from anysat.batch import Batch, Tile
from anysat.data.loader import Draw
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.tasks.base import Task, make_task
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import Predictor, View
from anysat.workflows.pretrain_presets import nano
from anysat.workflows.pretrain_run import new_encoder
from real.features import Samples, samples
from real.protocol import RealTask, blocked_folds, numbers
from real.scores import difference, score
from real.simple import CONSTANT, MODELS, answered
from real.tasks import SMOKE, TASKS, load
from real.unlabelled import in_year

RECORDS = Path(__file__).parents[2] / "docs" / "experiments" / "real"
METHODS = ("probe", "probe+statistics", "finetune")
UNTRAINED = "untrained"
LABEL_YEAR = {"crop_canada": 0, "parcels_belgium": -1}
"""Tasks with series over several calendar years, of which day numbers would come twice: place of the label's year."""
LEARNING_RATES = (4e-4, 1.2e-3)
INNER_FOLDS = 4
AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How fine-tuning goes."""

    num_steps: int = 240
    batch_size: int = 64
    """Tiles of a step."""
    look_every: int = 20
    """Steps between two looks at the inner fold."""
    warmup_steps: int = 20
    weight_decay: float = 0.05
    averaging: float = 0.97
    """Of the weights over the steps, which are those that answer."""
    most_dates_dropped: float = 0.4
    """A share up to this is drawn for each tile, and that share of its dates is hidden."""
    label_smoothing: float = 0.05


RECIPES = {"crop_canada": Recipe(num_steps=480), "parcels_belgium": Recipe(batch_size=4)}
"""By task, where it differs."""


def looks(task: RealTask) -> list[list[Tile]]:
    """Tiles as an encoder sees them: without labels' years apart, one list for each calendar year; the label's first.

    Years are counted from each tile's first, as tiles of several seasons stand beside each other.
    """
    if task.name not in LABEL_YEAR:
        return [task.tiles]
    years = [_years(tile) for tile in task.tiles]
    count = min(map(len, years))
    order = sorted(range(count), key=lambda n: n != LABEL_YEAR[task.name] % count)
    return [[_of_year(tile, own[n]) for tile, own in zip(task.tiles, years, strict=True)] for n in order]


def _years(tile: Tile) -> NDArray[np.datetime64]:
    return np.unique(np.concatenate([_dates(seen).astype("datetime64[Y]") for seen in tile.observations.values()]))


def _dates(seen: Any) -> NDArray[np.datetime64]:
    assert seen.dates is not None, seen.modality.key
    return seen.dates


def _of_year(tile: Tile, year: np.datetime64) -> Tile:
    return replace(tile, observations={key: in_year(seen, year) for key, seen in tile.observations.items()})


def encoder_of(weights: str, seed: int) -> AnySat:
    """An encoder: `untrained`, with the first weights that the seed draws, or what `anysat.load` takes."""
    if weights == UNTRAINED:
        return new_encoder(replace(nano(), seed=seed))
    return anysat.load(weights)


def embedded(task: RealTask, model: AnySat, train: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Frozen tokens (sample feature) of all samples, NaN where nothing was seen."""
    model, (tile, row, col) = model.eval().requires_grad_(False), task.places().T
    found = []
    for tiles in looks(task):
        model.normaliser = Normaliser.from_batch(
            Batch.of([t for t, is_used in zip(tiles, train, strict=True) if is_used])
        )
        at_once = AT_ONCE if task.target.level == "tile" else 4
        maps = [
            pixel_features(model, Batch.of(tiles[start : start + at_once]), task.patch_size_m)
            for start in range(0, len(tiles), at_once)
        ]
        found.append(np.concatenate(maps)[tile, :, row, col])
    return np.concatenate(found, axis=1).astype(np.float32)


def probed(task: RealTask, weights: str, method: str, seed: int) -> tuple[NDArray[Any], list[Any]]:
    """Answers (sample) of the linear model, and its setting for each test fold."""
    asked, model = samples(task), encoder_of(weights, seed)
    columns = [embedded(task, model, train) for train, _ in task.splits()]
    if method == "probe+statistics":
        columns = [np.concatenate([part, asked.features["statistics"]], axis=1) for part in columns]
    answers, chosen = answered(task, asked, columns, MODELS["linear"])
    return answers[0], chosen


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen for a test fold."""

    learning_rate: float
    num_steps: int
    score: float
    """On the inner fold: accuracy, or RMSE with a minus."""


class Trainer:
    """Fine-tuning of one task from one kind of weights."""

    def __init__(self, task: RealTask, weights: str, recipe: Recipe) -> None:
        self.task, self.weights, self.recipe = task, weights, recipe
        self.batch = Batch.of(looks(task)[0])
        self.tile, self.row, self.col = (torch.from_numpy(part) for part in task.places().T)
        self.truth = task.truth()

    def tuned(self, train: NDArray[np.int64]) -> Tuned:
        """The best learning rate and number of steps by an inner fold; of equals the first."""
        is_value = self.task.target.kind == "value"
        truth = None if is_value else self._main_label()[train]
        folds = blocked_folds(numbers(self.task.groups[train]), truth, INNER_FOLDS)
        check, fit = train[folds == 0], train[folds != 0]
        tried = []
        for learning_rate in LEARNING_RATES:
            found = [
                (step, self.right(predictor, check))
                for step, predictor in self.trained(fit, learning_rate, self.recipe.num_steps, 0)
            ]
            scores = np.array([one for _, one in found])
            smooth = np.convolve(np.pad(scores, 1, mode="edge"), np.ones(3) / 3, mode="valid")
            best = int(smooth.argmax())
            tried.append(Tuned(learning_rate=learning_rate, num_steps=found[best][0], score=float(smooth[best])))
        return max(tried, key=lambda one: one.score)

    def _main_label(self) -> NDArray[np.int64]:
        """(tile) the commonest class of its samples, 0 where it has none."""
        count = np.zeros((len(self.task.tiles), len(self.task.target.classes)), np.int64)
        np.add.at(count, (self.tile.numpy(), self.truth), 1)
        return count.argmax(1)

    def right(self, predictor: Predictor, tiles: NDArray[np.int64]) -> float:
        """Accuracy at samples of some tiles, or RMSE with a minus."""
        inside = np.isin(self.tile.numpy(), tiles)
        found = self.answers(predictor, tiles)[inside]
        if self.task.target.kind == "value":
            return -float(np.sqrt(np.mean((found - self.truth[inside]) ** 2)))
        return float(np.mean(found == self.truth[inside]))

    @torch.inference_mode()
    def answers(self, predictor: Predictor, tiles: NDArray[np.int64]) -> NDArray[Any]:
        """(sample) answers to samples of some tiles, 0 elsewhere."""
        found = np.zeros(self.truth.shape, self.truth.dtype)
        at_once = AT_ONCE if self.task.target.level == "tile" else 4
        for some in np.array_split(tiles, max(1, len(tiles) // at_once)):
            inside = torch.from_numpy(np.isin(self.tile.numpy(), some))
            answer = predictor.predict(taken(self.batch, torch.from_numpy(some))).answer
            place = torch.from_numpy(np.searchsorted(some, self.tile[inside].numpy()))
            own = answer[place] if answer.ndim == 1 else answer[place, self.row[inside], self.col[inside]]
            found[inside.numpy()] = own.numpy()
        return found

    def trained(
        self, tiles: NDArray[np.int64], learning_rate: float, num_steps: int, seed: int
    ) -> Iterator[tuple[int, Predictor]]:
        """Numbers of steps and the averaged predictor after them, in eval mode; at the end as well."""
        recipe, task = self.recipe, self.task
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        objective = FineTuning(self._predictor(tiles, seed), "all").train()
        averaged = copy.deepcopy(objective.predictor).eval()
        groups = _groups(objective, recipe.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
        moved, followed = list(averaged.parameters()), list(objective.predictor.parameters())
        labelled = torch.from_numpy(tiles[np.isin(tiles, self.tile.numpy())])
        order = _endless(labelled, recipe.batch_size, generator)
        for step in range(1, num_steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * min(1.0, step / recipe.warmup_steps)
            batch = thinned(taken(self.batch, next(order)), recipe.most_dates_dropped, generator)
            loss = objective(Draw(step=step, dataset=task.name, patch_size_m=task.patch_size_m, batch=batch), generator)
            optimiser.zero_grad()
            loss["loss"].backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimiser.step()
            share = min(recipe.averaging, 1 - 1 / (1 + step / 4))
            with torch.no_grad():
                torch._foreach_lerp_(moved, followed, 1 - share)
            if step % recipe.look_every == 0 or step == num_steps:
                yield step, averaged

    def _predictor(self, tiles: NDArray[np.int64], seed: int) -> Predictor:
        encoder = encoder_of(self.weights, seed)
        for key in set(encoder.projectors) - set(self.batch.observations):
            del encoder.projectors[key]  # nothing of it is trained or asked
        encoder.normaliser = Normaliser.from_batch(taken(self.batch, torch.from_numpy(tiles)))
        target, keys = self.task.target, tuple(self.batch.observations)
        is_pixel = target.level == "pixel"
        view = View(patch_sizes_m=(self.task.patch_size_m,), modalities=keys, dense=keys[0] if is_pixel else None)
        torch.manual_seed(seed)
        return Predictor(encoder, self._made_task(tiles), view, "dense" if is_pixel else "both")

    def _made_task(self, tiles: NDArray[np.int64]) -> Task:
        target = self.task.target
        if target.kind == "class":
            return make_task(target, {"label_smoothing": self.recipe.label_smoothing})
        own = self.truth[np.isin(self.tile.numpy(), tiles)]
        return make_task(target, {"mean": float(own.mean()), "deviation": float(own.std())})


def _groups(objective: FineTuning, weight_decay: float) -> list[dict[str, Any]]:
    """Only weight matrices decay."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    return [{"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip


def _endless(tiles: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of tile numbers, each tile once in a round; what is left of a round is joined with the next one."""
    left = tiles[:0]
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, tiles[torch.randperm(len(tiles), generator=generator)]])
        yield left[:batch_size].sort().values
        left = left[batch_size:]


def taken(batch: Batch, index: Tensor) -> Batch:
    """Some tiles of a batch."""
    return replace(batch.map(lambda tensor: tensor[index]), ids=tuple(batch.ids[n] for n in index.tolist()))


def thinned(batch: Batch, most: float, generator: torch.Generator) -> Batch:
    """A batch with some dates of each tile hidden, but never all that were seen."""
    if not most:
        return batch
    kept = {}
    for key, seen in batch.observations.items():
        count, dates = seen.valid.shape[:2]
        share = most * torch.rand(count, 1, generator=generator)
        hidden = torch.rand(count, dates, generator=generator) < share
        valid = seen.valid & ~hidden[:, :, None, None, None]
        is_left = valid.flatten(1).any(1)
        valid = torch.where(is_left[:, None, None, None, None], valid, seen.valid)
        kept[key] = replace(seen, valid=valid, values=seen.values.masked_fill(~valid, 0.0))
    return replace(batch, observations=kept)


def finetuned(
    task: RealTask, weights: str, seed: int, kept: Callable[[int, int], Path], recipe: Recipe
) -> tuple[NDArray[Any], list[Any]]:
    """Answers (sample) to what is tested, and what was chosen for each test fold; `kept` names files by seed, split."""
    trainer = Trainer(task, weights, recipe)
    answers, chosen = np.zeros(trainer.truth.shape, trainer.truth.dtype), []
    for split, (train, test) in enumerate(task.splits()):
        tiles, tested = np.flatnonzero(train), np.flatnonzero(test)
        tuned = Tuned(**_kept(kept(0, split), lambda tiles=tiles: asdict(trainer.tuned(tiles))))

        def answer(tiles: Any = tiles, tested: Any = tested, tuned: Tuned = tuned) -> dict[str, Any]:
            *_, (_, last) = trainer.trained(tiles, tuned.learning_rate, tuned.num_steps, seed)
            return {"answers": trainer.answers(last, tested).tolist()}

        answers += np.array(_kept(kept(seed, split).with_suffix(".answers.json"), answer)["answers"], answers.dtype)
        chosen.append(asdict(tuned))
        print(f"{task.name}, {weights}, seed {seed}, split {split}: {tuned}", flush=True)
    return answers, chosen


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Plain values kept in a file, made where it is not there."""
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(made))
        part.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def record_of(task: RealTask, weights: str, name: str, method: str, seed: int, runs: Path) -> dict[str, Any]:
    """One run: its answers, scores, and what was chosen."""
    begun, recipe = time.process_time(), RECIPES.get(task.name, Recipe())
    of_weights = encoder_of(weights, 0)
    if method == "finetune":
        facts = json.dumps([asdict(recipe), LEARNING_RATES, INNER_FOLDS, digest(of_weights)])
        folder = runs / "finetune" / f"{task.name}-{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        answers, chosen = finetuned(task, weights, seed, lambda s, split: folder / f"{s}-{split}.json", recipe)
    else:
        answers, chosen = probed(task, weights, method, seed)
    tested = _tested(task)
    groups = task.groups[task.places()[:, 0]]
    found = score(task.truth()[tested], answers[None, tested], groups[tested], len(task.target.classes))
    return {
        "kind": "encoder", "task": task.name, "weights": name, "method": method, "seed": seed,
        "digest": digest(of_weights), "provenance": of_weights.provenance,
        "scores": found, "settings": chosen, "recipe": asdict(recipe) if method == "finetune" else None,
        "cpu_s": round(time.process_time() - begun, 1),
        "answers": " ".join(f"{one:.2f}" if answers.dtype.kind == "f" else str(one) for one in answers[tested]),
        "versions": {"anysat": anysat.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip


def digest(model: AnySat) -> str:
    """A short text that is another for other weights."""
    whole = b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(whole).hexdigest()[:16]


def _tested(task: RealTask) -> NDArray[np.bool_]:
    """(sample) what is tested at all."""
    every = np.any([test for _, test in task.splits()], axis=0)
    return every[task.places()[:, 0]]


def compared(task: RealTask, simple: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores over seeds, and paired differences to the best simple model and to the untrained weights."""
    asked, tested, count = samples(task), _tested(task), len(task.target.classes)
    truth, groups = asked.truth[tested], asked.groups[tested]
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in sorted(records, key=lambda one: one["seed"]):
        rows.setdefault((one["weights"], one["method"]), []).append(one)
    answers = {
        key: np.array([np.array(one["answers"].split(), truth.dtype) for one in group]) for key, group in rows.items()
    }
    label, theirs = best_simple(task, asked, simple)
    answers = {label: theirs[:, tested], **answers}
    unseen = task.folds[asked.tile][tested] == 0
    found = []
    for key, own in answers.items():
        row = {
            "weights": key[0], "method": key[1], "runs": len(own),
            "scores": score(truth, own, groups, count),
            "against_simple": difference(truth, own, answers[label], groups, count),
            "cpu_s": sum(one["cpu_s"] for one in rows.get(key, [])),
        }  # fmt: skip
        untrained = answers.get((UNTRAINED, key[1]))
        if untrained is not None and key[0] != UNTRAINED:
            row["against_untrained"] = difference(truth, own, untrained, groups, count)
        if not task.is_official:
            row["fold_0"] = score(truth[unseen], own[:, unseen], groups[unseen], count)
            row["fold_0_against_simple"] = difference(
                truth[unseen], own[:, unseen], answers[label][:, unseen], groups[unseen], count
            )
        found.append(row)
    return {"kind": "encoders", "task": task.name, "about": task.about, "num_tested": int(tested.sum()),
            "num_fold_0": int(unseen.sum()), "rows": found}  # fmt: skip


def best_simple(task: RealTask, asked: Samples, simple: Mapping[str, Any]) -> tuple[tuple[str, str], NDArray[Any]]:
    """Name and answers (run sample) of the simple model with the best score, fitted again with its settings."""
    first = next(iter(simple["rows"][0]["scores"]))
    sign = -1 if first == "RMSE" else 1
    row = max(simple["rows"], key=lambda row: sign * row["scores"][first]["score"])
    model = MODELS.get(row["model"], CONSTANT)
    answers, _ = answered(task, asked, asked.features[row["features"]], model, settings=row["settings"])
    return (row["model"], row["features"]), answers


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a row for each kind of weights and method."""
    first = next(iter(record["rows"][0]["scores"]))
    digits = 1 if first == "RMSE" else 3
    has_fold = "fold_0" in record["rows"][0]
    lines = [
        f"**{record['task']}** — {record['about']}; {record['num_tested']} samples tested"
        + (f", {record['num_fold_0']} of them in fold 0." if has_fold else "."), "",
        f"| weights | method | seeds | {first} | minus best simple | minus untrained | "
        + ("fold 0 | fold 0 minus best simple |" if has_fold else ""),
        "|---|---|---|---|---|---|" + ("---|---|" if has_fold else ""),
    ]  # fmt: skip

    def cell(found: Mapping[str, Any] | None, key: str) -> str:
        if found is None:
            return ""
        one, (low, high) = found[first][key], found[first]["interval"]
        sign = "+" if key == "difference" else ""
        return f"{one:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"

    for number, row in enumerate(record["rows"]):
        name, method = row["weights"], row["method"]
        cells = [name, method, str(row["runs"]), cell(row["scores"], "score"),
                 cell(row["against_simple"] if number else None, "difference"),
                 cell(row.get("against_untrained"), "difference")]  # fmt: skip
        if has_fold:
            cells += [cell(row["fold_0"], "score"),
                      cell(row["fold_0_against_simple"] if number else None, "difference")]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def records_of(task: str) -> list[dict[str, Any]]:
    """The records of a task's runs."""
    return [json.loads(path.read_text()) for path in sorted(RECORDS.glob(f"encoder-{task}-*.json"))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one, against = commands.add_parser("run", help="one task"), commands.add_parser("compare", help="score the records")
    for command in (one, against):
        command.add_argument("task", choices=[name for name in TASKS if name not in SMOKE])
        command.add_argument("--data", type=Path, help="folder of the real data")
    one.add_argument("--weights", default=UNTRAINED, help="untrained, nano, or what anysat.load takes")
    one.add_argument("--name", help="of the weights in records; as --weights where it is not given")
    one.add_argument("--method", choices=METHODS, default="finetune")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--runs", type=Path, default=Path("runs"), help="folder of what is kept of unfinished runs")
    one.add_argument("--json", type=Path, help="the record; by default where `compare` finds it")
    commands.add_parser("print", help="Markdown tables of all comparisons")
    return parser.parse_args()


def main() -> None:
    """Run one task, compare, or print tables."""
    options = _options()
    if options.command == "print":
        print("\n\n".join(table(json.loads(path.read_text())) for path in sorted(RECORDS.glob("encoders-*.json"))))
        return
    if options.data is None or not options.data.is_dir():
        print("skipped: there is no folder" + (f" {options.data}" if options.data else ", give it with --data"))
        return
    torch.set_num_threads(1)
    with threadpool_limits(1):
        task = load(options.task, options.data)
        if options.command == "compare":
            simple = json.loads((RECORDS / f"simple-{task.name}.json").read_text())
            record, path = compared(task, simple, records_of(task.name)), RECORDS / f"encoders-{task.name}.json"
            print(table(record))
        else:
            name = options.name or options.weights
            path = options.json or RECORDS / f"encoder-{task.name}-{name}-{options.method}-{options.seed}.json"
            if path.exists():
                print(f"{path} is there")
                return
            record = record_of(task, options.weights, name, options.method, options.seed, options.runs)
            first, found = next(iter(record["scores"].items()))
            print(f"{path.stem}: {first} {found['score']:.3f}, {record['cpu_s']:.0f} s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
