"""Random outputs and truth of every kind of target, their scores, and the arithmetic of the loops that check them."""

import math

import pytest
import torch

from anysat.tasks.metrics import ClassScores, LabelScores, ValueScores

NAN = float("nan")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_classes(*shape, num_classes=4, ignore=-1, seed=0):
    """Logits (… class) somewhat better than guesses, and truth of which about a fifth is ignored."""
    g = generator(seed)
    truth = torch.randint(num_classes, shape, generator=g)
    outputs = torch.randn(*shape, num_classes, generator=g) + torch.nn.functional.one_hot(truth, num_classes)
    return outputs, truth.where(torch.rand(shape, generator=g) > 0.2, ignore)


def random_labels(num_tiles, num_labels=5, seed=0):
    g = generator(seed)
    truth = (torch.rand(num_tiles, num_labels, generator=g) < 0.3).long()
    return torch.randn(num_tiles, num_labels, generator=g) + 2 * truth - 1, truth


def random_values(*shape, seed=0):
    g = generator(seed)
    truth = 3 * torch.randn(shape, generator=g) + 7
    return truth + torch.randn(shape, generator=g) + 0.5, truth.where(torch.rand(shape, generator=g) > 0.2, NAN)


KINDS = {
    "classes": (lambda: ClassScores(4, ignore=-1), lambda n, seed=0: random_classes(n, 3, 5, seed=seed)),
    "labels": (lambda: LabelScores(5), lambda n, seed=0: random_labels(n, seed=seed)),
    "values": (ValueScores, lambda n, seed=0: random_values(n, 3, 5, seed=seed)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def scored(sheet, *batches):
    for batch in batches:
        sheet.update(*batch)
    return sheet.compute()


def scores_of(kind, num_tiles=12, seed=0, groups=None):
    make, data = KINDS[kind]
    return scored(make(), (*data(num_tiles, seed), groups))


def same(ours, theirs, rel=1e-12):
    """Two dictionaries of figures, or lists of them, are the same; NaN is NaN."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name], rel) for name in ours)
    return ours == pytest.approx(theirs, rel=rel, abs=1e-12, nan_ok=True)


def share(part, whole):
    return part / whole if whole else NAN


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return share(sum(values), len(values))
