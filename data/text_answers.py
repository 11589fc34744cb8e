"""How far a text answer agrees with the true ones, as the SQuAD 2.0 evaluation script defines it.

Rajpurkar et al., *SQuAD: 100,000+ Questions for Machine Comprehension of Text* (EMNLP 2016), section 6.1, and *Know
What You Don't Know* (ACL 2018): a question may have several true answers, of which the nearest counts, or none.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Small letters, without ASCII punctuation, without *a*, *an* and *the*, words one blank apart; in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 if the answer equals a true one once both are :func:`normalised`, else 0.

    Args:
        truths: true answers. Those of which normalising leaves nothing do not count; without any other the question has
            no answer, and an empty text is right.
    """
    said = normalised(answer)
    return float(any(said == truth for truth in _true_texts(truths)))


def f1(answer: str, truths: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, each as often as it occurs; of the nearest true answer.

    Args:
        truths: as for :func:`exact_match`. Where the answer or the truth has no word, 1 if neither has one, else 0.
    """
    words = normalised(answer).split()
    return max(_f1_of_words(words, truth.split()) for truth in _true_texts(truths))


def agreements(answers: Sequence[str | None], truths: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """``exact_match`` and ``f1`` of n answers: float64 (n,) each, in [0, 1]; 0 where there is no answer (None)."""
    pairs = [("", None) if said is None else (said, true) for said, true in zip(answers, truths, strict=True)]
    return {
        "exact_match": np.array([0.0 if true is None else exact_match(said, true) for said, true in pairs]),
        "f1": np.array([0.0 if true is None else f1(said, true) for said, true in pairs]),
    }


def _true_texts(truths: Sequence[str]) -> list[str]:
    """Normalised true answers with a word; an empty text where the question has none."""
    return [found for truth in truths if (found := normalised(truth))] or [""]


def _f1_of_words(said: list[str], true: list[str]) -> float:
    if not said or not true:
        return float(said == true)
    shared = sum((Counter(said) & Counter(true)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said), shared / len(true)
    return 2 * precision * recall / (precision + recall)
