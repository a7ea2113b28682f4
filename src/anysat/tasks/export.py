"""Export of a predictor with `torch.export`: from source values to answers, with its statistics and its head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from anysat.batch import Embeddings
from anysat.errors import InputError
from anysat.model.export import CoreModule, traced
from anysat.patches import PatchGrid
from anysat.tasks.heads import NeighbourHead
from anysat.tasks.predictor import Predictor


class AnswerModule(nn.Module):
    """Statistics, encoder, head and task for one patch size, with all pixels valid."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        encoder, view = predictor.encoder, predictor.view
        assert encoder.normaliser is not None, view
        self.core = CoreModule(encoder, view.modalities, view.patch_sizes_m[0], view.dense)
        self.head, self.task = predictor.head, predictor.task
        self.dense = None if view.dense is None else encoder.config.modality(view.dense)
        table = encoder.normaliser.table(None)
        for key in view.modalities:
            of_bands = torch.tensor([table[key].mean, table[key].std])[..., None, None]
            self.register_buffer(f"statistics_{key}", of_bands.to(encoder.device))

    def forward(self, values: dict[str, Tensor], days: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return answers and, unless the target is a value, probabilities of source values."""
        standardised = {}
        for key in self.core.keys:
            mean, deviation = self.get_buffer(f"statistics_{key}")
            standardised[key] = ((values[key] - mean) / deviation).to(self.core.model.dtype)
        tile, patch, *dense = self.core(standardised, days)
        seen = Embeddings(
            tile=tile,
            patch=patch,
            valid=patch.new_ones(patch.shape[:-1], dtype=torch.bool),
            grid=PatchGrid(self.core.patch_size_m, patch.shape[1], patch.shape[2]),
            dense=dense[0] if dense else None,
            dense_valid=dense[0].new_ones(dense[0].shape[:-1], dtype=torch.bool) if dense else None,
            dense_modality=self.dense,
        )
        outputs = self.head(seen)
        answer, probabilities = self.task.answer(outputs), self.task.probabilities(outputs)
        return (answer,) if probabilities is None else (answer, probabilities)


def export_predictor(predictor: Predictor) -> ExportedProgram:
    """Export a predictor as a program that takes `({key: values}, {key: days})`, returns (answer[, probabilities]).

    The program standardises by itself: it takes source values in the units of the predictor's statistics, all of them
    valid, of all modalities of its view. Its outputs are those of `Predictor.predict`. Batch size, dates and sides of
    the tile are free within the limits of `anysat.model.export.export`.

    Args:
        predictor: The predictor, as from `anysat.load_task`. Its mode does not change.

    Raises:
        InputError: The predictor has several patch sizes, no statistics, or a head of nearest neighbours; or a modality
            cannot be exported, see `anysat.model.export.export`.
    """
    encoder, view = predictor.encoder, predictor.view
    if len(view.patch_sizes_m) > 1:
        raise InputError("export", "a predictor with one patch size", list(view.patch_sizes_m))
    if encoder.normaliser is None:
        raise InputError("export", "a predictor with statistics", "none")
    if isinstance(predictor.head, NeighbourHead):
        raise InputError("export", "a trained head", "nearest neighbours", "export the predictor's `encoder` alone")
    return traced(AnswerModule(predictor), encoder, view.modalities, view.patch_sizes_m[0])
