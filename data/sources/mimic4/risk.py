"""The risk model behind made-up MIMIC-IV files: what a visit's codes say of death at the next visit, and of its stay.

The codes have the shape of ICD-9 and ICD-10 codes, but are drawn; each concept has one of either version. A concept
belongs to one of six groups of patients or is common to all, and has two weights. With ``w`` and ``v`` summed over a
visit's concepts,

* death at the next visit (given that there is one): ``sigmoid(INTERCEPT + clip(w, -4, 4))``;
* stay in days: log-normal, the log's mean ``LOG_DAYS + clip(v, -1.5, 1.5)`` and deviation ``SIGMA``.

The model is the same for every seed of the files, so the best possible result on them is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

INTERCEPT = -4.7
LOG_DAYS = float(np.log(3.0))
SIGMA = 0.6
GROUPS = 6
GROUP_SHARES = (0.3, 0.2, 0.17, 0.13, 0.11, 0.09)
COMMON = GROUPS  # the group of concepts that belong to no group
SIZES = {"diagnoses": 1500, "procedures": 400}
GROUP_MORTALITY = (-0.20, 0.10, -0.10, 0.25, 0.0, 0.35)  # mean weight of a group's concepts
GROUP_STAY = (-0.06, 0.10, 0.12, -0.04, -0.10, 0.06)
STAY_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 15)  # days at which PyHealth's ten categories change


@dataclass(frozen=True)
class Concepts:
    """What can be coded in one table, k concepts.

    Attributes:
        names: ``icd9`` and ``icd10`` -> code of each concept, text (k,).
        group: int64 (k,), from 0 to GROUPS.
        cumulative: of each group, its concepts and their cumulative frequencies within it.
        mortality, stay: weights, float64 (k,).
    """

    names: dict[str, np.ndarray]
    group: np.ndarray
    cumulative: tuple[tuple[np.ndarray, np.ndarray], ...]
    mortality: np.ndarray
    stay: np.ndarray


@lru_cache
def concepts(table: Literal["diagnoses", "procedures"]) -> Concepts:
    """The concepts of a table, always the same."""
    generator = np.random.default_rng([4, len(table)])
    count = SIZES[table]
    group = generator.integers(GROUPS + 1, size=count)
    own = group < COMMON
    noise = generator.normal(size=(2, count))
    mean_mortality, mean_stay = (np.append(means, 0.0)[group] for means in (GROUP_MORTALITY, GROUP_STAY))
    frequency = 1 / (1 + generator.permutation(count) % 150) ** 0.8  # a few are common, most are rare
    cumulative = []
    for number in range(GROUPS + 1):
        members = np.flatnonzero(group == number)
        cumulative.append((members, np.cumsum(frequency[members]) / frequency[members].sum()))
    return Concepts(
        names=_codes(generator, table, count),
        group=group,
        cumulative=tuple(cumulative),
        mortality=mean_mortality + noise[0] * np.where(own, 0.35, 0.1),
        stay=mean_stay + noise[1] * np.where(own, 0.1, 0.05),
    )


def _codes(generator: np.random.Generator, table: str, count: int) -> dict[str, np.ndarray]:
    """Different codes, as many as there are concepts, in the shape that either version has."""
    digits, letters, both = (
        list("0123456789"),
        list("ABCDEFGHIJKLMNOPQRSTVWXYZ"),
        list("0123456789BCDFGHJKLMNPQRSTVWXYZ"),
    )
    found: dict[str, np.ndarray] = {}
    for version in ("icd9", "icd10"):
        codes: dict[str, None] = {}
        while len(codes) < count:
            if version == "icd9":
                code = "".join(generator.choice(digits, generator.integers(3, 6 if table == "diagnoses" else 5)))
            elif table == "diagnoses":
                code = generator.choice(letters) + "".join(generator.choice(digits, generator.integers(2, 6)))
            else:
                code = "0" + "".join(generator.choice(both, 6))
            codes[code] = None
        found[version] = np.array(list(codes))
    return found


@dataclass(frozen=True)
class Risk:
    """What is true of n visits.

    Attributes:
        death: probability of death at the next visit, float64 (n,).
        log_days: mean of the log of the stay in days, float64 (n,).
    """

    death: np.ndarray
    log_days: np.ndarray

    @classmethod
    def of_sums(cls, mortality: np.ndarray, stay: np.ndarray) -> Risk:
        """From the sums ``w`` and ``v`` of each visit's weights, (n,)."""
        return cls(
            death=1 / (1 + np.exp(-(INTERCEPT + np.clip(mortality, -4, 4)))),
            log_days=LOG_DAYS + np.clip(stay, -1.5, 1.5),
        )

    def death_among(self, share_of_negatives: float) -> np.ndarray:
        """Probability of death where only this share of the survivors was kept, (n,); by Bayes' rule."""
        return self.death / (self.death + (1 - self.death) * share_of_negatives)

    @property
    def stay_categories(self) -> np.ndarray:
        """Probability of each of PyHealth's ten categories of stay, float64 (n, 10)."""
        from scipy.special import ndtr

        below = ndtr((np.log(STAY_EDGES) - self.log_days[:, None]) / SIGMA)
        n = len(below)
        return np.diff(np.hstack([np.zeros((n, 1)), below, np.ones((n, 1))]), axis=1)


def true_risk(diagnoses: Iterable[Sequence[str]], procedures: Iterable[Sequence[str]]) -> Risk:
    """The risk of visits with these codes, named as in the vocabulary (``icd10:I2510``). Other names weigh nothing.

    Args:
        diagnoses: of each of n visits, every code once, such as :meth:`l2d.data.samples.tokens.Tokens.to_lists` gives.
        procedures: the same.
    """
    sums = []
    for lists, table in ((diagnoses, "diagnoses"), (procedures, "procedures")):
        known = concepts(table)
        weights = {}
        for version, names in known.names.items():
            for name, mortality, stay in zip(names.tolist(), known.mortality, known.stay, strict=True):
                weights[f"{version}:{name}"] = np.array([mortality, stay])
        zero = np.zeros(2)
        sums.append(np.array([sum((weights.get(code, zero) for code in codes), zero) for codes in lists]))
    mortality, stay = (sums[0] + sums[1]).reshape(-1, 2).T
    return Risk.of_sums(mortality, stay)
