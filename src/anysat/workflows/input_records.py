"""Modality records of the inputs of `anysat embed`, for tiles and areas."""

from __future__ import annotations

from collections.abc import Iterable

from anysat.modalities import Modality, read_modalities
from anysat.model.encoder import AnySat


def records_of(model: AnySat, keys: Iterable[str], file: str | None) -> dict[str, Modality]:
    """Return the record of each input: the user's own, else the model's. Other records in the file are ignored.

    Args:
        model: The model, which must have all the modalities.
        keys: Modality keys of the inputs.
        file: YAML file with the user's own records; None for none.

    Raises:
        UnknownNameError: The model does not have a modality.
        RecordError: The user's own record differs from the model's in a way that matters to the model.
    """
    own = {modality.key: modality for modality in read_modalities(file)} if file else {}
    known = {key: model.config.modality(key) for key in keys}
    for key, modality in known.items():
        modality.check_same(own.get(key, modality))
    return {key: own.get(key, modality) for key, modality in known.items()}
