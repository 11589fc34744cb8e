"""What a decision may look at once some agents have been asked, as numbers.

A state is a set of agents that have answered. Its columns are what was predicted beforehand and what the answers say:
who agrees with whom, how likely the leading answer is to be right, how sure agents say they are, how far numbers lie
apart, how many boxes there are, what was paid. Nothing of an agent that has not been asked enters except what was
predicted of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from l2d.data.samples.boxes import Boxes
from l2d.rejector.decisions.combine import log_odds, posterior
from l2d.rejector.decisions.world import Known, World

Asked = tuple[int, ...]  # positions in rising order

FEW_CLASSES = 12  # of which each is a column
WHO_AGREES = 3  # agents of which every pattern of agreement has costs of its own; of more only its sizes
ROWS_AT_ONCE = 4096
CLEAR = 0.5  # score from which a detector means a box
MOST_SURE = 5.0  # log-odds of what agents say of themselves are cut here


@dataclass(frozen=True)
class Looks:
    """How answers become columns.

    Attributes:
        num_agents, num_classes: of the table.
        classes, numbers, sure, paid, boxes: whether answers have these.
        scale: standard deviation of the numbers, by which they are divided; with ``middle``, their mean.
        paid_mean: mean paid to each agent.
    """

    num_agents: int
    num_classes: int
    classes: bool
    numbers: bool
    sure: bool
    paid: bool
    middle: float = 0.0
    scale: float = 1.0
    paid_mean: tuple[float, ...] = ()
    boxes: bool = False

    @classmethod
    def of(cls, world: World) -> Looks:
        """What the answers of a table have."""
        answers = world.known.answers
        numbers = None if answers.numbers is None else answers.numbers[np.isfinite(answers.numbers)]
        paid = answers.paid
        return cls(
            num_agents=world.num_agents,
            num_classes=world.num_classes,
            classes=answers.classes is not None,
            numbers=numbers is not None,
            sure=answers.sure is not None and bool(np.isfinite(answers.sure).any()),
            paid=paid is not None,
            middle=float(numbers.mean()) if numbers is not None and len(numbers) else 0.0,
            scale=float(numbers.std()) or 1.0 if numbers is not None and len(numbers) else 1.0,
            boxes=answers.boxes is not None,
            paid_mean=() if paid is None else tuple(np.maximum(np.nanmean(paid, axis=0), 1e-12).tolist()),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def columns(self, asked: Asked, known: Known) -> np.ndarray:
        """Columns of a state, float32 (n, width), the first of ones.

        Args:
            asked: who has answered.
            known: of inputs in that state.
        """
        if len(known) <= ROWS_AT_ONCE:
            return self._columns(asked, known)
        blocks = range(0, len(known), ROWS_AT_ONCE)  # what is made on the way stays in the processor's cache
        first = self._columns(asked, known.take(slice(0, ROWS_AT_ONCE)))
        found = np.empty((len(known), first.shape[1]), np.float32)
        found[:ROWS_AT_ONCE] = first
        for start in blocks[1:]:
            rows = slice(start, start + ROWS_AT_ONCE)
            found[rows] = self._columns(asked, known.take(rows))
        return found

    def _columns(self, asked: Asked, known: Known) -> np.ndarray:
        n, who = len(known), list(asked)
        parts: list[np.ndarray] = [np.ones((n, 1), np.float32), known.predicted]
        if not who:
            parts += [np.sort(known.predicted, axis=1)[:, :2], known.predicted**2]
        elif self.classes:
            parts += self._of_classes(known, who)
        if who and self.sure:
            assert known.answers.sure is not None
            parts.append(self._sure(known.answers.sure[:, who]))
        if who and self.numbers:
            assert known.answers.numbers is not None
            numbers = (known.answers.numbers[:, who] - self.middle) / self.scale
            parts.append(numbers)
            for one, other in combinations(range(len(who)), 2):
                apart = np.abs(numbers[:, one] - numbers[:, other])
                parts += [apart[:, None], np.log1p(20 * apart)[:, None]]
        if who and self.paid:
            assert known.answers.paid is not None
            paid = np.nan_to_num(known.answers.paid[:, who] / np.array(self.paid_mean)[who], nan=1.0)
            parts.append(np.log1p(paid))
        if who and self.boxes:
            assert known.answers.boxes is not None
            clear = np.stack([clear_boxes(known.answers.boxes[agent]) for agent in who], axis=1)
            parts.append(np.log1p(clear))
            parts += [np.abs(clear[:, [i]] - clear[:, [j]]) for i, j in combinations(range(len(who)), 2)]
        found = np.empty((n, sum(part.shape[1] for part in parts)), np.float32)
        at = 0
        for part in parts:
            found[:, at : at + part.shape[1]] = part
            at += part.shape[1]
        return found

    def _of_classes(self, known: Known, who: list[int]) -> list[np.ndarray]:
        assert known.answers.classes is not None
        votes, predicted = known.answers.classes[:, who], known.predicted.astype(np.float32)
        n = len(votes)
        right = np.full(votes.shape, 0.7) if known.right is None else known.right[:, who]
        chance = posterior(votes, log_odds(right, self.num_classes), self.num_classes)
        leading = chance.argmax(axis=1)
        best = chance[np.arange(n), leading][:, None].astype(np.float32)
        parts = [chance, best, best**2, best * predicted]
        if self.num_classes <= FEW_CLASSES:
            said = votes[np.arange(n), leading]
            parts.append(said[:, None] == np.arange(self.num_classes))
        if len(who) > 1:
            pattern, patterns = agreement(votes)
            for number in range(1, patterns):
                here = (pattern == number)[:, None].astype(np.float32)
                parts += [here, here * predicted]
        return parts

    @staticmethod
    def _sure(sure: np.ndarray) -> np.ndarray:
        inside = np.clip(np.nan_to_num(sure, nan=0.5), 1e-6, 1 - 1e-6)
        odds = np.clip(np.log(inside / (1 - inside)), -MOST_SURE, MOST_SURE)
        return np.concatenate([odds, inside], axis=1)


def sure_of_boxes(boxes: Boxes) -> np.ndarray:
    """How sure a detector is of each image, (n,).

    Mean score of its boxes above one half; half of the best one's score where none is.
    """
    image, clear = boxes.image, boxes.score >= CLEAR
    count = np.bincount(image[clear], minlength=len(boxes))
    total = np.bincount(image[clear], weights=boxes.score[clear], minlength=len(boxes))
    best = np.zeros(len(boxes))
    np.maximum.at(best, image, boxes.score)
    return np.where(count > 0, total / np.maximum(count, 1), best / 2)


def clear_boxes(boxes: Boxes) -> np.ndarray:
    """How many boxes of each image have a score of at least one half, (n,)."""
    return np.bincount(boxes.image[boxes.score >= CLEAR], minlength=len(boxes))


def agreement(votes: np.ndarray) -> tuple[np.ndarray, int]:
    """Who agrees with whom, as a number (n,) from 0 (all agree), and how many patterns there can be.

    Of up to three agents every partition counts: 2 of two agents, 5 of three. Of more, how many distinct answers.
    """
    n, m = votes.shape
    if m > WHO_AGREES:
        ordered = np.sort(votes, axis=1)
        return (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1), m
    if m == 2:
        return (votes[:, 0] != votes[:, 1]).astype(np.int64), 2
    if m == 3:
        ab, ac, bc = (votes[:, i] == votes[:, j] for i, j in ((0, 1), (0, 2), (1, 2)))
        return np.select([ab & ac, ab, ac, bc], [0, 1, 2, 3], default=4), 5
    return np.zeros(n, np.int64), 1
