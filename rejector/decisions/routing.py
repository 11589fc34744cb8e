"""A saved policy on new inputs, round by round: whom to ask now, given the answers so far; and answers that are done.

The first round asks. What was answered goes into a table (``sample_id, agent, answer``; ``sure`` and ``paid`` where
known), with which the same command gives the next round, until no input asks for more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.results import Shown
from l2d.data.samples.boxes import Boxes
from l2d.rejector.decisions.capacity import Queue
from l2d.rejector.decisions.combine import RULES, combine
from l2d.rejector.decisions.online import answer_of, load_policy, one_image, unanswered, with_answer
from l2d.rejector.decisions.rule import ABSTAIN, STOP, Decision, Rule
from l2d.rejector.decisions.states import sure_of_boxes
from l2d.rejector.decisions.world import Known
from l2d.rejector.rows.unlabelled import open_inputs

ROWS_AT_ONCE = 16_384
SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("action", pa.string()), ("agent", pa.string()), ("answer", pa.string()),
     ("expected_cost", pa.float64()), ("asked", pa.string()), ("rank", pa.int32())]
)  # fmt: skip
ACTIONS = ("ask", "answer", "no answer", "wait")


@dataclass(frozen=True)
class PolicyRoute(Shown):
    """How many inputs ask which agent, are answered by which, or get no answer."""

    counts: dict[tuple[str, str | None], int]
    samples: int
    seconds: float
    ids: str

    @property
    def title(self) -> str:
        return f"{self.samples:,} inputs in {self.seconds:.1f} s"

    @property
    def to_ask(self) -> int:
        """Inputs that wait for an answer."""
        return sum(count for (action, _), count in self.counts.items() if action == ACTIONS[0])

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "action": action,
                "agent": agent,
                "samples": count,
                "share": count / self.samples if self.samples else None,
            }
            for (action, agent), count in sorted(
                self.counts.items(), key=lambda item: (ACTIONS.index(item[0][0]), -item[1])
            )
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "seconds": self.seconds,
            "ids": self.ids,
            "to_ask": self.to_ask,
            "actions": self.rows(),
        }


def route_policy(
    run: Path,
    source: Path | str,
    out: Path,
    *,
    policy: Path,
    answers: Path | None = None,
    id_column: str | None = None,
    without: Collection[str] = (),
    overwrite: bool = False,
    progress: Callable[[int | None], Callable[[int], None]] | None = None,
) -> PolicyRoute:
    """Decide what to do with each input now.

    Args:
        run: the policy's run.
        source: as of :func:`l2d.rejector.route.route`.
        out: a .parquet or .csv file: ``sample_id, action, agent, answer, expected_cost, asked, rank``. ``action`` is
            ``ask`` (this agent, next), ``answer`` (``agent`` says whose), ``no answer`` (with its place in the queue),
            or ``wait`` (this agent is full: give the input again with the next batch).
        answers: a table of answers so far.
        without: agents that cannot be asked now.

    Raises:
        UsageError: a file exists, the policy is another run's, or an agent is unknown.
        DataError: inputs or answers cannot be read.
    """
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError("decisions are written as .parquet or .csv", where=out, hint="give --out such a name")
    if out.exists() and not overwrite:
        raise UsageError("this is there already", where=out, hint="give another --out, or type --overwrite")
    started = time.perf_counter()
    work = load_policy(policy, run=run)
    at_hand = np.ones(len(work.agents), bool)
    for name in without:
        if name not in work.agents:
            raise UsageError(f"--without {name}: the run has no such agent", hint=nearest(name, work.agents, "it has"))
        at_hand[work.agents.index(name)] = False
    given = {} if answers is None else read_answers(answers, work.agents)
    inputs = open_inputs(
        source, work.looks_at, work.width, rows_at_once=ROWS_AT_ONCE, id_column=id_column, agents=work.agents
    )
    advance = progress(inputs.samples) if progress else lambda done: None
    tables: list[pa.Table] = []
    used: set[str] = set()
    for ids, features, answering in _batches(inputs.batches, work.rule):
        names = ids.to_pylist()
        available = np.tile(at_hand, (len(names), 1)) if answering is None else answering & at_hand
        used.update(name for name in names if name in given)
        tables.append(_decided(work, names, features, available, given))
        advance(len(names))
    strangers = sorted(set(given) - used)
    if strangers:
        raise DataError(
            f"{len(strangers):,} answers are to inputs that are not here, the first to {strangers[0]!r}", where=answers,
            hint="give the inputs that were asked about, with the same ids",
        )  # fmt: skip
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    table = _ranked(table)
    if not store.commit_batches(out, SCHEMA, iter(table.to_batches()), {"policy": work.saved.name}, replace=overwrite):
        raise UsageError("this has appeared meanwhile", where=out, hint="give another --out, or type --overwrite")
    counts: dict[tuple[str, str | None], int] = {}
    for action, agent in zip(table["action"].to_pylist(), table["agent"].to_pylist(), strict=True):
        counts[action, agent] = counts.get((action, agent), 0) + 1
    return PolicyRoute(counts, len(table), time.perf_counter() - started, inputs.ids)


def read_answers(path: Path, agents: list[str]) -> dict[str, list[tuple[int, Any, float | None, float | None]]]:
    """Sample id -> answers so far, in the order of the table: agent, answer, how sure, what was paid.

    Raises:
        DataError: the table cannot be read, lacks a column, or names an unknown agent.
    """
    try:
        frame = pl.read_parquet(path) if path.suffix.lower() == ".parquet" else pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read: {error}", where=path, hint="give a .parquet or .csv file") from error
    for name in ("sample_id", "agent", "answer"):
        if name not in frame.columns:
            raise DataError(f"there is no column {name!r}", where=path, hint="it needs sample_id, agent, answer")
    found: dict[str, list[tuple[int, Any, float | None, float | None]]] = {}
    try:
        sures, prices, numbers = (
            frame[name].cast(pl.Float64).to_list() if name in frame.columns else [None] * len(frame)
            for name in ("sure", "paid", "number")
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"sure, paid or number is not a number: {error}", where=path, hint="mend the table") from error
    ids = frame["sample_id"].cast(pl.String)
    for sample, agent, said, sure, paid, number in zip(
        ids, frame["agent"], frame["answer"], sures, prices, numbers, strict=True
    ):
        answer = said if number is None or said in (None, "") else {"cla": said, "reg": number}
        if agent not in agents:
            raise DataError(f"there is no agent {agent!r}", where=path, hint=nearest(str(agent), agents, "they are"))
        found.setdefault(sample, []).append((agents.index(agent), answer, sure, paid))
    return found


def _decided(work: Any, names: list[str], features: np.ndarray, available: np.ndarray, given: dict) -> pa.Table:
    n, rule = len(names), work.rule
    predicted, right = work.predictions(features)
    answers = unanswered(rule, n, work.classes)
    images = [[Boxes.empty(1)] * n for _ in work.agents] if rule.looks.boxes else []
    states: list[tuple[int, ...]] = [()] * n
    orders = [""] * n
    for row, name in enumerate(names):
        order = []
        for agent, answer, sure, paid in given.get(name, ()):
            if answer is None or answer == "":
                available[row, agent] = False
                continue
            if images:
                image = one_image(answer, work.classes)
                images[agent][row] = image
                assert answers.sure is not None
                answers.sure[row, agent] = sure_of_boxes(image)[0] if sure is None else sure
                order.append(agent)
                continue
            answers = with_answer(
                answers, row, agent, _typed(answer, rule.looks), work.classes, sure=sure, paid=paid, in_place=True
            )
            order.append(agent)
        states[row], orders[row] = tuple(sorted(set(order))), " > ".join(work.agents[agent] for agent in order)
    if images:
        answers = replace(answers, boxes=tuple(Boxes.concatenate(each) for each in images))
    known = Known(predicted=predicted, right=right, available=available, answers=answers)
    action, agent = np.full(n, ACTIONS[2], object), np.full(n, None, object)
    answer, expected = np.full(n, None, object), np.full(n, np.nan)
    parked = np.full(n, STOP)
    for state, rows, decision in _decisions(rule, states, known, names, parked):
        expected[rows] = decision.expected
        some = known.take(rows)
        for position, row in enumerate(rows.tolist()):
            code = int(decision.answer[position])
            if decision.ask[position] != STOP:
                action[row], agent[row] = ACTIONS[0], work.agents[int(decision.ask[position])]
            elif code != ABSTAIN:
                action[row], agent[row] = ACTIONS[1], rule.name_of(code)
                answer[row] = _said(work, some, position, state, code, given.get(names[row], ()))
    for row in np.flatnonzero(parked != STOP).tolist():
        action[row], agent[row] = ACTIONS[3], work.agents[int(parked[row])]
    columns = [names, action.tolist(), agent.tolist(), answer.tolist()]
    return pa.table(
        [pa.array(values, pa.string()) for values in columns]
        + [pa.array(expected, mask=~np.isfinite(expected)), pa.array(orders, pa.string()), pa.nulls(n, pa.int32())],
        schema=SCHEMA,
    )


def _decisions(
    rule: Rule, states: list[tuple[int, ...]], known: Known, names: list[str], parked: np.ndarray
) -> Iterator[tuple[tuple[int, ...], np.ndarray, Decision]]:
    """What to do with inputs, those of the same answers together; where agents can be full, with a whole batch.

    Args:
        parked: for which agent an input waits, int (n,); filled in.
    """
    by_state = {state: np.array([r for r, own in enumerate(states) if own == state]) for state in sorted(set(states))}
    try:
        if not rule.capacities:
            yield from ((state, rows, rule.decide(state, known.take(rows))) for state, rows in by_state.items())
            return
        queue, size = Queue(rule, len(states)), rule.batch or len(states)
        full = np.zeros((len(states), len(rule.agents)), bool)
        for start in range(0, len(states), size):
            new = {state: rows[(rows >= start) & (rows < start + size)] for state, rows in by_state.items()}
            most = queue.room(sum(map(len, new.values())))
            given = [agent for state, rows in new.items() for agent in state for _ in rows]
            room = np.maximum(most - np.bincount(np.array(given, int), minlength=len(most)), 0)
            back = queue.next_batch()  # those that wait since an earlier batch of the file
            full[:] = False
            wave = {state: np.concatenate([np.array(back.get(state, []), int), rows]) for state, rows in new.items()}
            settled = queue.settle(wave, known, room, full, most)
            yield from ((state, rows, decision) for state, (rows, decision) in settled.items())
        parked[:] = queue.parked_for
    except KeyError as error:
        state = error.args[0]
        who = ", ".join(rule.agents[each] for each in state)
        raise DataError(
            f"{names[by_state[state][0]]!r} has answers of {who}, which this policy never asks together",
            hint="give answers of agents that it asked for",
        ) from None


def _batches(batches: Iterable[tuple[Any, np.ndarray, Any]], rule: Rule) -> Iterator[tuple[Any, np.ndarray, Any]]:
    """Inputs as they come; where agents can be full, all of them together."""
    if not rule.capacities:
        yield from batches
        return
    parts = list(batches)
    if not parts:
        return
    ids = pa.chunked_array([pa.array(part[0]) if not isinstance(part[0], pa.ChunkedArray) else part[0].combine_chunks()
                            for part in parts]).combine_chunks()  # fmt: skip
    features = np.concatenate([part[1] for part in parts])
    answering = None if parts[0][2] is None else np.concatenate([part[2] for part in parts])
    yield ids, features, answering


def _said(work: Any, known: Known, row: int, state: tuple[int, ...], code: int, given: Any) -> str:
    if code < len(work.agents):
        return str(next(answer for agent, answer, *_ in reversed(given) if agent == code))
    some = known.take(np.array([row]))
    found = combine(some, state, RULES[code - len(work.agents)], work.rule.looks.num_classes)
    said = answer_of(found, 0, work.classes)
    return json.dumps(said) if "pred_boxes" in found else str(said)


def _typed(answer: Any, looks: Any) -> Any:
    """An answer as its task has it: text of a number where answers are numbers."""
    if looks.classes:
        return answer
    if looks.numbers:
        try:
            return float(answer)
        except (TypeError, ValueError):
            return answer
    return answer


def _ranked(table: pa.Table) -> pa.Table:
    """With places in the queue of what gets no answer."""
    nobody = np.array([action == ACTIONS[2] for action in table["action"].to_pylist()], bool)
    expected = table["expected_cost"].fill_null(np.inf).to_numpy()
    rows = np.flatnonzero(nobody)
    ranks = np.zeros(len(table), np.int32)
    ranks[rows[np.argsort(-expected[rows], kind="stable")]] = np.arange(1, len(rows) + 1)
    place = SCHEMA.get_field_index("rank")
    return table.set_column(place, SCHEMA.field(place), pa.array(ranks, pa.int32(), mask=~nobody))
