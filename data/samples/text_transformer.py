"""Text features for pipelines of scikit-learn: the columns that a cache has for the same texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from l2d.data.samples.embedded_text import EmbeddedText, fit_embedding
from l2d.data.samples.text import TextFeature, TextSettings, fit_text


class TextFeatures(TransformerMixin, BaseEstimator):
    """Counts of a text and components of its words, as ``[dataset] text`` makes them, see :mod:`l2d.data.samples.text`.

    For :class:`l2d.DeferralRejector` beside other columns::

        columns = ColumnTransformer([("prompt", TextFeatures(), "prompt"), ("kind", OneHotEncoder(), ["kind"])])
        make_pipeline(columns, DeferralRejector()).fit(table, costs)

    Fitted on the same texts it gives the bits that a cache holds.

    Args:
        components, terms, phrases, embed: see :class:`l2d.data.samples.text.TextSettings`.
        name: what the features are called by.

    Attributes:
        feature_: what was fitted.
    """

    def __init__(
        self,
        *,
        components: int = 32,
        terms: int = 20_000,
        phrases: int = 1,
        embed: str | None = None,
        name: str = "text",
    ):
        self.components = components
        self.terms = terms
        self.phrases = phrases
        self.embed = embed
        self.name = name

    def fit(self, X: Any, y: Any = None) -> TextFeatures:
        """Fit on texts, (n,) or (n, 1): a list, an array, or a column of pandas or polars; None is a missing one.

        Raises:
            DataError: no row has text, all are the same, or no word is in two of them.
        """
        settings = TextSettings(
            expression=self.name,
            components=self.components,
            terms=self.terms,
            phrases=self.phrases,
            embed=self.embed,
        )
        fit = fit_text if self.embed is None else fit_embedding
        self.feature_: TextFeature | EmbeddedText = fit(_column(X), self.name, settings)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The features, float32 (n, width)."""
        check_is_fitted(self)
        parts = list(self.feature_.encode(_column(X)))
        width = len(self.feature_.columns())
        return np.concatenate([np.empty((0, width)), *parts]).astype(np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features."""
        check_is_fitted(self)
        return np.array(self.feature_.columns(), dtype=object)


def _column(X: Any) -> pl.Series:
    """Texts as a column, NaN and None as null."""
    if isinstance(X, pl.DataFrame):
        X = X.to_series()
    if isinstance(X, pl.Series):
        return X
    values = np.asarray(X, dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"texts of shape {values.shape}: give one column")
    texts = [None if one is None or one != one else one for one in values.tolist()]
    return pl.Series("text", texts, dtype=pl.String, strict=True)
