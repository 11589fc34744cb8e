"""The best rule of a class, by dynamic programming over what has been asked, with predicted costs.

Backwards, from the states in which no more agents may be asked: what each answer costs is regressed on what is seen in
the state; the best is taken; what following that rule *really* cost each sample, plus what asking takes, is the target
one state earlier (as in Longstaff and Schwartz, *Valuing American Options by Simulation*, 2001: real outcomes, since
the least of several predictions is too low). Regressions are cross-fitted, so no sample's costs enter its decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from l2d.rejector.decisions.combine import RULES, combine
from l2d.rejector.decisions.fitting import Gram, applied, blocks, cross_products
from l2d.rejector.decisions.rule import Cap, Capacity, Committee, Ranked, State, Tree
from l2d.rejector.decisions.states import Asked, Looks
from l2d.rejector.decisions.world import World

KEPT_BYTES = 1 << 29  # of states' columns that are kept rather than made again
FOLDS = 5


@dataclass
class _Fitted:
    """A state's regression: what does not depend on what money is worth."""

    rows: np.ndarray
    gram: Gram
    codes: tuple[int, ...]
    stop: np.ndarray
    least: np.ndarray  # what the best answer is predicted to cost, (rows,)
    real: np.ndarray  # what that answer cost, (rows,)
    columns: np.ndarray | None


@dataclass
class Search:
    """Rules fitted on samples of a table.

    Attributes:
        world: samples with ``known.fold`` set, from 0 to ``FOLDS - 1``.
        depth: agents that one input may be sent to at most.
        combining: how answers of several are combined, out of RULES; None: they are not, one of them is taken.
        abstain: cost of giving no answer; None: an answer is always given.
        worth: units of loss for a unit of ``world.price``.
        caps: for every input.
        only: positions of the agents to choose from; None: all.
        capacities, batch, wait: of the rules that are found, see :class:`l2d.rejector.decisions.rule.Rule`.
        tolls: what asking each agent takes besides, in units of loss, since it is scarce, (agents,); None: nothing.
    """

    world: World
    depth: int = 2
    combining: str | None = "weighted"
    abstain: float | None = None
    worth: float = 0.0
    caps: tuple[Cap, ...] = ()
    only: Sequence[int] | None = None
    capacities: tuple[Capacity, ...] = ()
    batch: int | None = None
    wait: float | None = None
    tolls: np.ndarray | None = None
    looks: Looks = field(init=False)

    def __post_init__(self) -> None:
        fold = self.world.known.fold
        assert fold is not None
        if bool((fold[1:] < fold[:-1]).any()):  # sums by fold are fast in this order
            self.world = self.world.take(np.argsort(fold, kind="stable"))
        self.looks = Looks.of(self.world)
        self._fitted: dict[Asked, _Fitted] = {}
        self._kept = 0
        self._asking: np.ndarray | None = None
        if self.world.cost_of is None:
            self.combining = None

    # --- what is known of a state ------------------------------------------------------------------------------------

    def at(self, worth: float) -> Search:
        """The same search where a unit of money is worth another amount."""
        self.worth, self._asking = worth, None
        return self

    @property
    def agents(self) -> list[int]:
        return list(range(self.world.num_agents)) if self.only is None else list(self.only)

    @property
    def asking(self) -> np.ndarray:
        """What asking each agent takes, in units of loss, float64 (n, agents)."""
        if self._asking is None:
            self._asking = self.world.charges + self.worth * self.world.price
            if self.tolls is not None:
                self._asking = self._asking + self.tolls
        return self._asking

    def _columns(self, asked: Asked, fitted: _Fitted) -> np.ndarray:
        if fitted.columns is not None:
            return fitted.columns
        return self.looks.columns(asked, self.world.known.take(fitted.rows))

    def _state(self, asked: Asked) -> _Fitted:
        if asked in self._fitted:
            return self._fitted[asked]
        world = self.world
        rows = np.flatnonzero(np.isfinite(world.costs[:, list(asked)]).all(axis=1))
        known = world.known.take(rows)
        columns, fold = self.looks.columns(asked, known), known.fold
        assert fold is not None
        gram = Gram.of(columns, fold, FOLDS)
        codes, targets = self._outcomes(asked, rows)
        least, real = np.full(len(rows), np.inf), np.full(len(rows), np.inf)
        stop = np.zeros((FOLDS + 1, columns.shape[1], 0))
        if codes:
            stop = gram.weights(*cross_products(columns, targets, fold, FOLDS))
            predicted = applied(columns, stop, fold)
            best = predicted.argmin(axis=1)
            least, real = (values[np.arange(len(rows)), best] for values in (predicted, targets))
        if self.abstain is not None:
            instead = ~(least < self.abstain)
            least, real = (np.where(instead, self.abstain, values) for values in (least, real))
        kept = columns if self._kept + columns.nbytes <= KEPT_BYTES and len(asked) < self.depth else None
        self._kept += 0 if kept is None else kept.nbytes
        self._fitted[asked] = _Fitted(rows, gram, codes, stop, least, real.astype(np.float32), kept)
        return self._fitted[asked]

    def _outcomes(self, asked: Asked, rows: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        """What can be answered once these have been asked, and what each costs, (rows, answers)."""
        codes = list(asked)
        columns = [self.world.costs[rows, agent] for agent in asked]
        if len(asked) > 1 and self.combining is not None:
            codes.append(self.world.num_agents + RULES.index(self.combining))
            columns.append(self.committee_cost(asked, rows))
        return tuple(codes), np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))

    def committee_cost(self, asked: Asked, rows: np.ndarray) -> np.ndarray:
        """Task cost of these agents' combined answer, (rows,)."""
        assert self.world.cost_of is not None
        assert self.combining is not None
        if len(asked) == 1:
            return self.world.costs[rows, asked[0]]
        found = combine(self.world.known.take(rows), asked, self.combining, self.world.num_classes)
        return self.world.cost_of(found, rows)

    # --- one step back -----------------------------------------------------------------------------------------------

    def _go(self, asked: Asked, then: list[int], later: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of going on, predictions and real costs (rows, then); infinite where an agent cannot be asked.

        Args:
            later: of each next agent what following the rule from there really cost, (n,); nan where it is unavailable.
        """
        fitted = self._state(asked)
        rows, fold = fitted.rows, self.world.known.fold
        assert fold is not None
        columns, fold = self._columns(asked, fitted), fold[rows]
        real = np.stack(
            [self.asking[rows, agent] + cost[rows] for agent, cost in zip(then, later, strict=True)], axis=1
        )
        there = np.isfinite(real)
        weights = np.zeros((FOLDS + 1, columns.shape[1], len(then)))
        together: dict[bytes, list[int]] = {}  # agents that answer the same samples share their sums
        for position in range(len(then)):
            together.setdefault(np.packbits(there[:, position]).tobytes(), []).append(position)
        for targets in together.values():
            some = there[:, targets[0]]
            if not some.any():
                continue
            gram = fitted.gram if some.all() else Gram.of(columns[some], fold[some], FOLDS)
            if some.all():
                crossed = cross_products(columns, real[:, targets], fold, FOLDS)
            else:
                crossed = cross_products(columns[some], real[np.ix_(some, targets)], fold[some], FOLDS)
            weights[:, :, targets] = gram.weights(*crossed)
        predicted = applied(columns, weights, fold)
        predicted[~self._can(asked, rows, then) | ~there] = np.inf
        return weights, predicted, real

    def _can(self, asked: Asked, rows: np.ndarray, then: Sequence[int]) -> np.ndarray:
        """Which next agents are within every cap, bool (rows, then)."""
        room = np.ones((len(rows), len(then)), bool)
        for cap in self.caps:
            room &= cap.room(asked, self.world.known.take(rows))[:, list(then)]
        return room

    def _spread(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values of some rows as a column of all, nan elsewhere."""
        found = np.full(len(self.world), np.nan, np.float32)
        found[rows] = values
        return found

    def _state_of(self, asked: Asked, then: Sequence[int] = (), go: np.ndarray | None = None) -> State:
        fitted = self._state(asked)
        width = fitted.gram.products.shape[1]
        return State(fitted.codes, fitted.stop, tuple(then), np.zeros((FOLDS + 1, width, 0)) if go is None else go)

    # --- classes of rules --------------------------------------------------------------------------------------------

    def _common(self) -> dict:
        return {
            "agents": self.world.agents, "looks": self.looks, "combining": self.combining or RULES[0],
            "abstain": self.abstain, "caps": self.caps, "capacities": self.capacities, "batch": self.batch,
            "wait": self.wait, "charges": tuple(self.asking.mean(axis=0).tolist()),
        }  # fmt: skip

    def adaptive(self) -> Tree:
        """The next agent depends on all that has been seen: the richest class, the best that predictions allow."""
        states: dict[Asked, State] = {}
        cost: dict[Asked, np.ndarray] = {}
        for size in range(self.depth, -1, -1):
            following: dict[Asked, np.ndarray] = {}
            for asked in combinations(self.agents, size):
                if not self._reachable(asked):
                    continue
                fitted = self._state(asked)
                then = [agent for agent in self.agents if tuple(sorted((*asked, agent))) in cost]
                least, real, go = fitted.least, fitted.real, None
                if then:
                    later = [cost[tuple(sorted((*asked, agent)))] for agent in then]
                    go, predicted, realised = self._go(asked, then, later)
                    best = predicted.argmin(axis=1)
                    each = np.arange(len(best))
                    on = predicted[each, best] < least
                    least = np.where(on, predicted[each, best], least)
                    real = np.where(on, realised[each, best], real)
                    kept = np.unique(best[on]) if asked else np.arange(len(then))
                    then, go = [then[k] for k in kept], go[:, :, kept]
                states[asked] = self._state_of(asked, then, go)
                following[asked] = self._spread(fitted.rows, real)
            cost = following
        return Tree(**self._common(), states=_reached(states))

    def cascade(self, order: Sequence[int] | None = None) -> Tree:
        """The agents in one order for every input, stopping by what has been seen.

        Args:
            order: agents in the order in which they are asked; None: the best of all orders on these samples.
        """
        if order is None:
            order = self._best_order()
        states: dict[Asked, State] = {}
        cost: np.ndarray | None = None
        for size in range(len(order), 0, -1):
            asked = tuple(sorted(order[:size]))
            cost, states[asked] = self._stop_or_go(asked, order[size] if size < len(order) else None, cost)
        assert cost is not None
        states[()] = self._state_of((), order[:1], self._go((), list(order[:1]), [cost])[0])
        return Tree(**self._common(), states=states, first=order[0], order=tuple(order))

    def _stop_or_go(self, asked: Asked, agent: int | None, later: np.ndarray | None) -> tuple[np.ndarray, State]:
        """What the rule really costs from here on, (n,), and the state."""
        fitted = self._state(asked)
        if agent is None or later is None:
            return self._spread(fitted.rows, fitted.real), self._state_of(asked)
        go, predicted, realised = self._go(asked, [agent], [later])
        on = predicted[:, 0] < fitted.least
        real = np.where(on, realised[:, 0], fitted.real)
        return self._spread(fitted.rows, real), self._state_of(asked, [agent], go)

    def _best_order(self) -> tuple[int, ...]:
        """The order of least mean cost over these samples: all orders, the regressions of a state together."""
        best: tuple[int, ...] = (self.agents[0],)
        least = np.inf
        for first in self.agents:
            if not self._reachable((first,)):
                continue
            for tail, real in self._tails((first,)).items():  # of one first agent at a time: memory
                total = np.where(np.isfinite(real), self.asking[:, first] + real, np.nan)
                mean = float(np.nanmean(total))
                if mean < least - 1e-12:
                    best, least = (first, *tail), mean
        return best

    def _tails(self, asked: Asked) -> dict[tuple[int, ...], np.ndarray]:
        """What each order of further agents really costs from here on: order -> (n,)."""
        fitted = self._state(asked)
        found: dict[tuple[int, ...], np.ndarray] = {(): self._spread(fitted.rows, fitted.real)}
        if len(asked) == self.depth:
            return found
        heads, tails, later = [], [], []
        for agent in self.agents:
            following = tuple(sorted((*asked, agent)))
            if agent in asked or not self._reachable(following):
                continue
            for tail, real in self._tails_of(following).items():
                heads.append(agent)
                tails.append((agent, *tail))
                later.append(real)
        if heads:
            real = self._stopping_or(asked, heads, later)
            for k, tail in enumerate(tails):
                found[tail] = self._spread(fitted.rows, real[k])
        return found

    def _stopping_or(self, asked: Asked, heads: list[int], later: list[np.ndarray]) -> np.ndarray:
        """What stopping or going on, whichever is predicted to be better, really costs for each order: (orders, rows).

        Many orders of many samples: some samples at a time, so that what is made on the way is small.
        """
        fitted = self._state(asked)
        rows, fold, asking = fitted.rows, self.world.known.fold, self.asking
        assert fold is not None
        if self.caps or len(rows) < len(self.world) or not all(np.isfinite(cost).all() for cost in later):
            _, predicted, realised = self._go(asked, heads, later)
            return np.where(predicted < fitted.least[:, None], realised, fitted.real[:, None]).T
        columns = self._columns(asked, fitted)

        def real_of(part: slice | np.ndarray) -> np.ndarray:
            pairs = zip(heads, later, strict=True)
            return np.stack([asking[part, agent].astype(np.float32) + cost[part] for agent, cost in pairs], axis=1)

        crossed, squares = np.zeros((FOLDS, columns.shape[1], len(heads))), np.zeros((FOLDS, len(heads)))
        for number, part in blocks(fold):
            some = real_of(part)
            crossed[number] += columns[part].T @ some
            squares[number] += np.square(some, dtype=np.float64).sum(axis=0)
        few = fitted.gram.weights(crossed, squares).astype(np.float32)
        found = np.empty((len(heads), len(rows)), np.float32)
        for number, part in blocks(fold):
            on = columns[part] @ few[number] < fitted.least[part, None]
            found[:, part] = np.where(on, real_of(part), fitted.real[part, None]).T
        return found

    def _tails_of(self, asked: Asked) -> dict[tuple[int, ...], np.ndarray]:
        if self._asking is None or getattr(self, "_orders_of", None) is not self._asking:
            self._orders: tuple[float, dict] = (self.worth, {})
            self._orders_of = self.asking  # costs of going on hold for these
        known = self._orders[1]
        if asked not in known:
            known[asked] = self._tails(asked)
        return known[asked]

    def committee(self, size: int | None = None) -> Committee:
        """The set of agents whose combined answer costs least on these samples, asking included.

        Args:
            size: how many agents; None: up to ``depth``.
        """
        sizes: Iterable[int] = range(1, self.depth + 1) if size is None else (size,)
        if self.combining is None:
            sizes = (1,)
        best: tuple[int, ...] = (self.agents[0],)
        least = np.inf
        for some in sizes:
            for members in combinations(self.agents, some):
                rows = self._within(members)
                if not len(rows):
                    continue
                cost = self.committee_cost(members, rows) + self.asking[np.ix_(rows, np.array(members))].sum(axis=1)
                if float(cost.mean()) < least - 1e-12:
                    best, least = members, float(cost.mean())
        order = sorted(best, key=lambda agent: float(self.world.known.predicted[:, agent].mean()))
        return Committee(**self._common(), members=tuple(order))

    def ranked(self, most: int = 1, *, chosen: bool = False) -> Ranked:
        """Each input's ``most`` agents of lowest expected cost; ``chosen``: as many of these as pay, by input."""
        plain = Ranked(**self._common(), most=most)
        if not chosen or most == 1:
            return plain
        from dataclasses import replace

        from l2d.rejector.decisions.walk import walk

        fitted = self._state(())
        columns = self._columns((), fitted)
        whole = replace(self.world, charges=self.asking)
        costs = [walk(replace(plain, most=k, capacities=()), whole, held_out=True).loss for k in range(1, most + 1)]
        fold = self.world.known.fold
        assert fold is not None
        weights = fitted.gram.weights(*cross_products(columns, np.stack(costs, axis=1), fold, FOLDS))
        return replace(plain, sizes=weights)

    def _within(self, members: Asked) -> np.ndarray:
        """Samples that all of these have answered, within every cap."""
        there = np.isfinite(self.world.costs[:, list(members)]).all(axis=1)
        for cap in self.caps:
            there &= sum(cap.uses[agent] for agent in members) <= cap.limit * (1 + 1e-12)
        return np.flatnonzero(there)

    def _reachable(self, asked: Asked) -> bool:
        """Whether enough samples have all these answers to learn from, and caps allow them all."""
        return not asked or len(self._within(asked)) >= 2 * FOLDS


def _reached(states: dict[Asked, State]) -> dict[Asked, State]:
    """The states that following the rule can lead to."""
    found: dict[Asked, State] = {}
    waiting: list[Asked] = [()]
    while waiting:
        asked = waiting.pop()
        if asked in found:
            continue
        found[asked] = states[asked]
        waiting += [tuple(sorted((*asked, agent))) for agent in states[asked].then]
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))
