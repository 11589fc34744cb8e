"""A saved policy at work on one input at a time: whom to ask first, and after each answer whom to ask next.

Of a run of method ``best`` this loads numpy and not torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.samples.boxes import Boxes
from l2d.rejector.decisions.combine import RULES, combine
from l2d.rejector.decisions.rule import ABSTAIN, STOP, Rule
from l2d.rejector.decisions.saved import SavedPolicy, check_run, read_saved
from l2d.rejector.decisions.states import sure_of_boxes
from l2d.rejector.decisions.world import Answers, Known
from l2d.rejector.rows.unlabelled import InputRecord

#: Features float32 (n, width) -> expected task costs (n, agents), and chances of a right class or None.
Predictions = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Step:
    """Where a decision about one input stands.

    Attributes:
        ask: the agent to ask now; None where the decision is made.
        answer: the answer, once it is made; None while an agent is to be asked, and where no answer is given.
        answered_by: the agent whose answer that is, or how several were combined; None without an answer.
        expected_cost: of the answer, or of asking and all that follows, in units of loss.
        asked: the agents that have answered, in order.
    """

    ask: str | None
    answer: Any
    answered_by: str | None
    expected_cost: float
    asked: tuple[str, ...]
    known: Known = field(repr=False, compare=False)
    given: Mapping[int, Any] = field(repr=False, compare=False, default_factory=dict)

    @property
    def done(self) -> bool:
        return self.ask is None

    @property
    def no_answer(self) -> bool:
        """Whether the input goes to no agent: the queue for people."""
        return self.ask is None and self.answered_by is None


class PolicyAtWork:
    """A policy that decides input by input.

    Attributes:
        agents: their names.
        kind: what it is, such as ``cascade``.
        saved: its files.
        run_path: where its run lies.
    """

    def __init__(self, saved: SavedPolicy, run_path: Path):
        self.saved, self.rule, self.run_path = saved, saved.rule, run_path
        self.agents: list[str] = saved.rule.agents
        self.kind: str = saved.facts["result"]["kind"]
        self.classes: list[str] = saved.facts["classes"]
        self.looks_at, self.predictions, self.width = open_predictions(saved, run_path)
        self._lock = Lock()
        self._room: dict[int, int] = {}
        self._begun = 0  # inputs of this batch
        if self.rule.capacities and self.rule.batch:
            self.begin_batch(self.rule.batch)

    def begin_batch(self, inputs: int) -> None:
        """Begin another batch of inputs: agents have their whole capacity again.

        Input by input it is not known which of a batch gain most by a scarce agent, so the first that want it have it,
        and the others go elsewhere. ``l2d route`` takes a batch together. After as many inputs as the policy's batches
        have, the next one begins by itself.
        """
        with self._lock:
            self._refill(inputs)

    def _refill(self, inputs: int) -> None:
        self._begun, self._room = 0, {each.agent: each.of(inputs) for each in self.rule.capacities}

    def start(self, row: Mapping[str, Any] | Sequence[float] | np.ndarray, *, without: Collection[str] = ()) -> Step:
        """Begin with an input.

        Args:
            row: its columns, as in the source table; or its features as the run sees them, (width,).
            without: agents that cannot be asked now.

        Raises:
            DataError: a column is missing or cannot be used.
            UsageError: ``without`` names an unknown agent.
        """
        predicted, right = self.predictions(self._features(row)[None])
        if self.rule.capacities and self.rule.batch:
            with self._lock:
                if self._begun >= self.rule.batch:
                    self._refill(self.rule.batch)
                self._begun += 1
        available = np.ones((1, len(self.agents)), bool)
        for name in without:
            available[0, self._position(name)] = False
        return self._decided(Known(
            predicted=predicted, right=right, available=available, answers=unanswered(self.rule, 1, self.classes)
        ), {}, ())  # fmt: skip

    def next(self, step: Step, answer: Any, *, sure: float | None = None, paid: float | None = None) -> Step:
        """Go on with what the asked agent said.

        Args:
            answer: a class (its name, or its index), class probabilities (classes,), a number; a dictionary of ``cla``
                and ``reg`` where an answer is both; of ``boxes``, ``labels`` and ``scores`` where answers are boxes.
                None: the agent has no answer.
            sure: how sure it says it is, from 0 to 1; probabilities say it themselves.
            paid: what the answer was paid.

        Raises:
            UsageError: the decision is made already.
            DataError: the answer cannot be used.
        """
        if step.ask is None:
            raise UsageError("this decision is made: no agent is to be asked", hint="start with the next input")
        agent = self._position(step.ask)
        if answer is None:
            available = step.known.available.copy()
            available[0, agent] = False
            return self._decided(replace(step.known, available=available), step.given, step.asked)
        answers = with_answer(step.known.answers, 0, agent, answer, self.classes, sure=sure, paid=paid)
        return self._decided(
            replace(step.known, answers=answers), {**step.given, agent: answer}, (*step.asked, step.ask)
        )

    def _decided(self, known: Known, given: Mapping[int, Any], asked: tuple[str, ...]) -> Step:
        state = tuple(sorted(given))
        while True:
            decision = self.rule.decide(state, known)
            ask, code, expected = int(decision.ask[0]), int(decision.answer[0]), float(decision.expected[0])
            if ask == STOP or self._taken(ask):
                break
            available = known.available.copy()
            available[0, ask] = False
            known = replace(known, available=available)
        if ask != STOP:
            return Step(self.agents[ask], None, None, expected, asked, known, given)
        if code == ABSTAIN:
            return Step(None, None, None, expected, asked, known, given)
        if code < len(self.agents):
            said = given[code]
        else:
            said = answer_of(combine(known, state, RULES[code - len(self.agents)], self.rule.looks.num_classes), 0,
                             self.classes)  # fmt: skip
        return Step(None, said, self.rule.name_of(code), expected, asked, known, given)

    def _taken(self, agent: int) -> bool:
        """Whether the agent can answer another input of this batch, which is then counted."""
        with self._lock:
            left = self._room.get(agent)
            if left is not None:
                self._room[agent] = max(0, left - 1)
            return left is None or left > 0

    def _position(self, name: str) -> int:
        if name not in self.agents:
            raise UsageError(f"there is no agent {name!r}", hint=nearest(name, self.agents, "the agents are"))
        return self.agents.index(name)

    def _features(self, row: Mapping[str, Any] | Sequence[float] | np.ndarray) -> np.ndarray:
        if not isinstance(row, Mapping):
            features = np.asarray(row, np.float32)
            if features.shape != (self.width,) or not np.isfinite(features).all():
                raise DataError(
                    f"features of shape {features.shape}", hint=f"the run looks at {self.width} finite numbers"
                )
            return features
        import polars as pl

        encoder = self.looks_at.encoder
        if encoder is None:
            raise DataError("this run looks at features that come ready made", hint=f"give the {self.width} numbers")
        missing = [name for name in encoder.columns if name not in row]
        if missing:
            raise DataError(f"the input has no {missing[0]!r}", hint=f"it needs {', '.join(encoder.columns)}")
        frame = pl.DataFrame(
            [pl.Series(name, [row[name]], strict=False).cast(_type_of(kind), strict=False)
             for name, kind in encoder.columns.items()]
        )  # fmt: skip
        return np.asarray(encoder.transform(frame), np.float32)[0]


def _type_of(kind: str) -> Any:
    import polars as pl

    return getattr(pl, kind, None) or pl.String if "(" not in kind else pl.String


def load_policy(path: Path | str, *, run: Path | str | None = None) -> PolicyAtWork:
    """Open a policy that ``l2d policy --save`` wrote, to decide input by input.

    Args:
        path: its folder.
        run: where its run lies now, if it has moved without it.

    Raises:
        UsageError: there is no policy, or not its run.
        DataError: it is of another version.
    """
    saved = read_saved(Path(path))
    where = saved.run_path if run is None else Path(run)
    check_run(saved, where)
    return PolicyAtWork(saved, where)


def open_predictions(saved: SavedPolicy, run_path: Path) -> tuple[InputRecord, Predictions, int]:
    """What a policy's run looks at, its predictions of task costs, and the width of its features."""
    from l2d.data.cache.schema import text_file
    from l2d.rejector.runs.files import WEIGHTS_FILE, read_facts

    facts = read_facts(run_path)
    if facts["point"]["method"] == "best" and "input" in facts:
        from safetensors.numpy import load

        from l2d.rejector.best.scorer import model_of

        arrays = load((run_path / WEIGHTS_FILE).read_bytes())
        model, setting = model_of(arrays), saved.setting
        looks_at = InputRecord(**facts["input"], text=text_file(run_path, facts["input"]["made"]))
        tasks = list(setting["lambda"])
        weights = np.array([1.0] if setting["cost"] is not None else list(setting["lambda"].values()))
        right_of = (
            tasks.index("cla") if saved.rule.looks.classes and setting["cost"] is None and "cla" in tasks else None
        )

        def of_best(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            raw = model.predict(features)
            right = None if right_of is None else 1 - raw[:, :, right_of]
            return (raw[:, :, : len(weights)] * weights).sum(axis=2), right

        return looks_at, of_best, len(arrays["feature_mean"])
    return _of_any(saved, run_path)


def _of_any(saved: SavedPolicy, run_path: Path) -> tuple[InputRecord, Predictions, int]:
    from l2d.rejector.policies.cost_prediction import CostPredictor
    from l2d.rejector.runs.run import input_of, load_run

    run = load_run(run_path)
    run.rejector.check_routable()
    predictor = CostPredictor(**saved.facts["predictor"])
    charges = np.array(saved.facts["mean_charges"])
    weights = saved.setting["lambda"]
    classes = saved.rule.looks.classes and list(weights) == ["cla"]

    def predictions(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        scores = np.asarray(run.rejector.scores(features), np.float64)
        predicted = predictor.predict(scores, np.ones_like(scores, bool)) - charges
        return predicted, 1 - predicted / max(weights["cla"], 1e-9) if classes else None

    return input_of(run), predictions, len(np.asarray(run.rejector.state["feature_mean"]))


# --- answers as they arrive -------------------------------------------------------------------------------------------


def unanswered(rule: Rule, n: int, classes: Sequence[str]) -> Answers:
    """Answers before anyone has been asked."""
    looks, shape = rule.looks, (n, len(rule.agents))
    return Answers(
        classes=np.full(shape, -1) if looks.classes else None,
        chances=None,
        numbers=np.full(shape, np.nan) if looks.numbers else None,
        sure=np.full(shape, np.nan) if looks.sure else None,
        paid=np.full(shape, np.nan) if looks.paid else None,
        boxes=tuple(Boxes.empty(n) for _ in rule.agents) if looks.boxes else None,
    )


def with_answer(
    answers: Answers, row: int, agent: int, answer: Any, classes: Sequence[str], *, sure: float | None = None,
    paid: float | None = None, in_place: bool = False,
) -> Answers:  # fmt: skip
    """The answers with one more.

    Raises:
        DataError: it is of another form than the agents' answers.
    """
    found = answers if in_place else _copied(answers)
    parts = answer if isinstance(answer, Mapping) else {}
    chosen = parts.get("cla", None if parts else answer)
    number = parts.get("reg", None if parts else answer)
    if found.classes is not None:
        if chosen is None:
            raise DataError(f"an answer without a class: {answer!r}", hint="give a class, or its probabilities")
        told = isinstance(chosen, Sequence | np.ndarray) and not isinstance(chosen, str)
        chances = np.asarray(chosen, np.float64) if told else None
        if chances is not None:
            if chances.shape != (len(classes),) or not np.isfinite(chances).all():
                raise DataError(f"probabilities of shape {chances.shape}", hint=f"there are {len(classes)} classes")
            chosen, sure = int(chances.argmax()), float(chances.max()) if sure is None else sure
        index = class_index(chosen, classes)
        if chances is not None and found.chances is None:  # those that gave a class alone are sure of it
            found = replace(found, chances=np.eye(len(classes), dtype=np.float32)[found.classes])
        assert found.classes is not None
        found.classes[row, agent] = index
        if found.chances is not None:
            found.chances[row, agent] = np.eye(len(classes))[index] if chances is None else chances
    if found.numbers is not None:
        if not isinstance(number, int | float | np.number) or not np.isfinite(number):
            raise DataError(f"an answer without a number: {answer!r}", hint="give a finite number")
        found.numbers[row, agent] = float(number)
    if found.boxes is not None:
        image = one_image(answer, classes)
        sure = float(sure_of_boxes(image)[0]) if sure is None else sure
        found = replace(found, boxes=tuple(
            _with_image(boxes, row, image) if position == agent else boxes for position, boxes in enumerate(found.boxes)
        ))  # fmt: skip
    if found.sure is not None and sure is not None:
        found.sure[row, agent] = sure
    if found.paid is not None and paid is not None:
        found.paid[row, agent] = paid
    return found


def one_image(answer: Any, classes: Sequence[str]) -> Boxes:
    """The boxes of a detector's answer: a mapping of ``boxes`` (k, 4), ``labels`` and ``scores``, or that as JSON.

    Raises:
        DataError: it is none.
    """
    hint = 'give {"boxes": [[x1, y1, x2, y2], ...], "labels": [...], "scores": [...]}'
    try:
        parts = json.loads(answer) if isinstance(answer, str) else answer
        labels = [class_index(label, classes) for label in parts["labels"]]
        image = {"boxes": np.asarray(parts["boxes"], np.float64).reshape(-1, 4), "labels": labels}
        found = Boxes.from_images([image | {"scores": np.asarray(parts["scores"], np.float64)}])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"an answer that is not boxes: {str(answer)[:80]!r}", hint=hint) from error
    if not (np.isfinite(found.xyxy).all() and np.isfinite(found.score).all() and (found.score >= 0).all()):
        raise DataError("a box or score that is not a number", hint=hint)
    return found


def _with_image(boxes: Boxes, row: int, image: Boxes) -> Boxes:
    """The same images with other boxes on one of them."""
    return Boxes.concatenate([boxes.take(slice(0, row)), image, boxes.take(slice(row + 1, None))])


def class_index(answer: Any, classes: Sequence[str]) -> int:
    """The index of a class, given by its name or by its index.

    Raises:
        DataError: there is no such class.
    """
    if str(answer) in classes:
        return list(classes).index(str(answer))
    if isinstance(answer, int | np.integer) and 0 <= answer < max(len(classes), 1):
        return int(answer)
    raise DataError(f"there is no class {answer!r}", hint=nearest(str(answer), classes, "the classes are"))


def answer_of(found: dict[str, Any], row: int, classes: Sequence[str]) -> Any:
    """A combined answer as agents give theirs."""
    if "pred_boxes" in found:
        image = found["pred_boxes"].of(row)
        names = [classes[label] if label < len(classes) else label for label in image["labels"].tolist()]
        return {"boxes": image["boxes"].tolist(), "labels": names, "scores": image["scores"].tolist()}
    chosen = None
    if "pred_cla" in found:
        index = int(found["pred_cla"][row])
        chosen = classes[index] if index < len(classes) else index
    if "pred_reg" not in found:
        return chosen
    number = float(found["pred_reg"][row])
    return number if chosen is None else {"cla": chosen, "reg": number}


def _copied(answers: Answers) -> Answers:
    parts = {name: None if value is None else value.copy() for name, value in vars(answers).items() if name != "boxes"}
    return Answers(**parts, boxes=answers.boxes)
