"""The record of each input of an embedding, of a tile and of an area alike."""

from __future__ import annotations

from collections.abc import Iterable

from anysat.modalities import Modality, read_modalities
from anysat.model.encoder import AnySat


def records_of(model: AnySat, keys: Iterable[str], file: str | None) -> dict[str, Modality]:
    """The record of each input: the user's own, else the model's; those of other sensors in the file take no part.

    Args:
        model: which has to have them all.
        keys: modality keys of the inputs.
        file: YAML file with the user's own records; None for none.

    Raises:
        UnknownNameError: the model does not have a modality.
        RecordError: the user's own record is another than the model's in what matters to it.
    """
    own = {modality.key: modality for modality in read_modalities(file)} if file else {}
    known = {key: model.config.modality(key) for key in keys}
    for key, modality in known.items():
        modality.check_same(own.get(key, modality))
    return {key: own.get(key, modality) for key, modality in known.items()}
