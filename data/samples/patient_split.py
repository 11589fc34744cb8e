"""Train, validation and test by patient: each patient is in one of them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from l2d.data.samples.splits import hash_split
from l2d.data.sources.table import Strict


class PatientSplit(Strict):
    """``[dataset.split]``: shares of the patients, by a hash of their id, in equal proportions with and without a
    positive sample.
    """

    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the patients."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the patients."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the patients."""
    salt: str = "l2d"
    """Another salt draws another split."""

    @model_validator(mode="after")
    def _sums_to_one(self):
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train + validation + test must be 1")
        return self


def split_by_patient(patient: pl.Series, positive: np.ndarray, config: PatientSplit) -> np.ndarray:
    """The split of each sample.

    Args:
        patient: of each sample, (n,).
        positive: whether a sample is, bool (n,).

    Returns:
        Array of n strings, ``train``, ``validation`` or ``test``, the same for all samples of a patient.

    Raises:
        DataError: a split would have no samples.
    """
    patients = (
        pl.DataFrame({"patient": patient, "positive": positive})
        .group_by("patient", maintain_order=True)
        .agg(pl.col("positive").any())
    )
    names = patients["patient"].to_list()
    fractions = (config.train, config.validation, config.test)
    split = hash_split(names, patients["positive"].to_list(), fractions=fractions, salt=config.salt)
    drawn = dict(zip(names, split.tolist(), strict=True))
    return np.array([drawn[name] for name in patient])
