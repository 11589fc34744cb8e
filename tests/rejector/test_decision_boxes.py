"""Boxes of several detectors as one answer: fused as published, judged by the cache's cost, online as in rounds."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.cache import store
from l2d.data.costs.detection import DetectionCost
from l2d.data.errors import DataError
from l2d.data.samples.boxes import Boxes
from l2d.rejector.decisions.combine import combine
from l2d.rejector.decisions.fusion import fuse, keep_best
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.states import sure_of_boxes
from l2d.rejector.decisions.walk import walk
from l2d.rejector.decisions.world import Answers, Known, World
from l2d.rejector.runs.run import load_run

DETECTORS = [
    {"boxes": [[.10, .10, .40, .50], [.60, .20, .90, .70], [.12, .11, .41, .52]], "scores": [.9, .8, .35],
     "labels": [0, 1, 0]},
    {"boxes": [[.11, .09, .42, .48], [.55, .25, .88, .72]], "scores": [.7, .6], "labels": [0, 2]},
    {"boxes": [[.10, .13, .37, .55], [.61, .19, .93, .69], [.05, .80, .15, .95]], "scores": [.5, .95, .3],
     "labels": [0, 1, 1]},
]  # fmt: skip

#: What ensemble-boxes 1.0.9 makes of these: box, score, class; of ``weighted`` with weights 2, 1 and 0.5.
PUBLISHED = {
    "mean": [
        [0.105714, 0.104694, 0.40102, 0.507347, 0.6125, 0], [0.605429, 0.194571, 0.916286, 0.694571, 0.583333, 1],
        [0.55, 0.25, 0.88, 0.72, 0.2, 2], [0.05, 0.8, 0.15, 0.95, 0.1, 1],
    ],
    "weighted": [
        [0.106087, 0.102174, 0.403913, 0.503623, 0.739286, 0], [0.602289, 0.197711, 0.906868, 0.697711, 0.592857, 1],
        [0.55, 0.25, 0.88, 0.72, 0.171429, 2], [0.05, 0.8, 0.15, 0.95, 0.042857, 1],
    ],
    "vote": [
        [0.61, 0.19, 0.93, 0.69, 0.95, 1], [0.1, 0.1, 0.4, 0.5, 0.9, 0], [0.55, 0.25, 0.88, 0.72, 0.6, 2],
        [0.05, 0.8, 0.15, 0.95, 0.3, 1],
    ],
}  # fmt: skip


def answers_of(images: int) -> list[Boxes]:
    """The detectors' answers to the image, among others without a box."""
    nothing = {"boxes": np.zeros((0, 4)), "scores": [], "labels": []}
    return [Boxes.from_images([nothing, each, *([nothing] * (images - 2))]) for each in DETECTORS]


@pytest.mark.parametrize("rule", list(PUBLISHED))
def test_boxes_are_fused_as_published(rule):
    """By ``combine``, whose weights are one over the predicted cost."""
    answers = tuple(answers_of(3))
    known = Known(
        predicted=np.array([[1.0, 1.0, 1.0], [0.5, 1.0, 2.0], [1.0, 1.0, 1.0]]), right=None,
        available=np.ones((3, 3), bool), answers=Answers(boxes=answers),
    )  # fmt: skip
    found = combine(known, [0, 1, 2], rule, 0)["pred_boxes"]
    assert found.counts.tolist() == [0, 4, 0]
    image = found.of(1)
    rows = np.column_stack([image["boxes"], image["scores"], image["labels"]])
    np.testing.assert_allclose(rows, PUBLISHED[rule], atol=2e-6)
    pixels = [
        Boxes(offsets=a.offsets, xyxy=640 * a.xyxy, label=a.label, score=a.score, ignore=a.ignore, crowd=a.crowd)
        for a in answers
    ]
    weights = 1 / known.predicted if rule == "weighted" else np.ones((3, 3))
    again = keep_best(pixels) if rule == "vote" else fuse(pixels, weights)
    np.testing.assert_allclose(again.xyxy, 640 * found.xyxy, atol=1e-9)


def slowly_kept(boxes: np.ndarray, scores: np.ndarray, iou: float) -> list[int]:
    """Non-maximum suppression of one image and class, box by box."""
    kept: list[int] = []
    for one in np.argsort(-scores, kind="stable").tolist():
        free = True
        for other in kept:
            inside = np.minimum(boxes[one, 2:], boxes[other, 2:]) - np.maximum(boxes[one, :2], boxes[other, :2])
            shared = max(inside[0], 0) * max(inside[1], 0)
            areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (one, other)]
            free &= shared / (sum(areas) - shared) <= iou
        kept += [one] if free else []
    return kept


def test_the_best_of_boxes_that_overlap_are_kept():
    generator = np.random.default_rng(2)
    images = [[], []]
    for _ in range(20):
        for answer in images:
            count = int(generator.integers(0, 9))
            corner = generator.uniform(0, 20, (count, 2))
            boxes = np.hstack([corner, corner + generator.uniform(0, 12, (count, 2))])  # some as good as nothing
            answer.append(
                {"boxes": boxes, "labels": generator.integers(0, 2, count), "scores": generator.random(count)}
            )
    answers = [Boxes.from_images(answer) for answer in images]
    found = keep_best(answers)
    for image in range(20):
        both = [answer.of(image) for answer in answers]
        boxes, labels, scores = (np.concatenate([one[key] for one in both]) for key in ("boxes", "labels", "scores"))
        expected = []
        for label in (0, 1):
            mine = labels == label
            expected += scores[mine][slowly_kept(boxes[mine], scores[mine], 0.5)].tolist()
        assert found.of(image)["scores"].tolist() == sorted(expected, reverse=True)


def test_three_detectors_that_err_apart_are_worth_asking_together():
    """Each misses a quarter and is a little off: fused they cost less, and the search finds it."""
    generator, n = np.random.default_rng(5), 100
    corner = generator.uniform(5, 50, (n, 2, 2))
    truth = np.concatenate([corner, corner + generator.uniform(15, 30, (n, 2, 2))], axis=2)
    objects = Boxes.from_images([{"boxes": boxes, "labels": [0, 1]} for boxes in truth])
    answers = []
    for _ in range(3):
        found = []
        for boxes in truth:
            there = np.flatnonzero(generator.random(2) < 0.75)
            near = boxes[there] + generator.normal(0, 2.0, (len(there), 4))
            found.append({"boxes": near, "labels": there, "scores": generator.uniform(0.5, 1, len(there))})
        answers.append(Boxes.from_images(found))
    judge = DetectionCost()
    costs = np.stack([judge.compute(answer, objects) for answer in answers], axis=1).astype(float)
    world = World(
        ids=list(map(str, range(n))), agents=["a", "b", "c"], costs=costs, charges=np.zeros((n, 3)),
        known=Known(
            predicted=np.tile(costs.mean(axis=0), (n, 1)), right=None, available=np.ones((n, 3), bool),
            answers=Answers(boxes=tuple(answers), sure=np.stack([sure_of_boxes(a) for a in answers], axis=1)),
            fold=np.sort(generator.integers(5, size=n)),
        ),
        price=np.ones((n, 3)), cost_of=lambda found, rows: judge.compute(found["pred_boxes"], objects.take(rows)),
    )  # fmt: skip
    losses = {}
    for rule in ("mean", "vote"):
        search = Search(world, depth=3, combining=rule)
        committee = search.committee()
        assert sorted(committee.members) == [0, 1, 2]
        walked = walk(committee, world)
        losses[rule] = walked.loss.mean()
        own = fuse(answers, np.ones((n, 3))) if rule == "mean" else keep_best(answers)
        np.testing.assert_allclose(walked.loss, judge.compute(own, objects), atol=1e-6)
    alone = costs.mean(axis=0).min()
    assert losses["mean"] < losses["vote"] < alone - 0.1
    cascade = walk(Search(world, depth=3, combining="mean").cascade(), world, held_out=True)
    assert cascade.loss.mean() < alone - 0.1


@pytest.fixture(scope="module")
def saved(detection_runs, tmp_path_factory):
    """A run, and a folder with a committee of its two experts, whatever would be best."""
    folder = tmp_path_factory.mktemp("boxes")
    run = detection_runs[1]["mlp"]
    l2d.policy(run, ask="committee", depth=2, combine="mean", save=folder / "committee")
    file = folder / "committee" / "policy.json"
    facts = store.read_json(file)
    facts["rule"]["members"] = [1, 2]
    store.commit_json(file, facts, replace=True)
    return run, folder


def as_answer(boxes: Boxes, image: int, names: list[str]) -> dict:
    found = boxes.of(image)
    labels = [names[label] for label in found["labels"].tolist()]
    return {"boxes": found["boxes"].tolist(), "labels": labels, "scores": found["scores"].tolist()}


def test_a_saved_policy_fuses_online_and_in_rounds(saved, tmp_path, detection_runs):
    run, folder = saved
    policy = l2d.load_policy(folder / "committee")
    read = read_worlds(load_run(run))
    world = read.worlds["test"]
    rule = policy.rule
    names = policy.classes
    out, given, rounds = tmp_path / "round.csv", tmp_path / "answers.csv", []
    l2d.route(run, detection_runs[0], out, policy=folder / "committee", overwrite=True)
    place = {name: row for row, name in enumerate(world.ids)}
    first = pl.read_csv(out, infer_schema=False).filter(pl.col("sample_id").is_in(list(world.ids)))
    asked = first.filter(pl.col("action") == "ask")
    assert len(asked) == len(world)
    for one in rule.members:
        rounds += [
            {"sample_id": name, "agent": policy.agents[one],
             "answer": json.dumps(as_answer(world.known.answers.boxes[one], place[name], names))}
            for name in world.ids
        ]  # fmt: skip
    pl.DataFrame(rounds).write_csv(given)
    l2d.route(run, detection_runs[0], out, policy=folder / "committee", answers=given, overwrite=True)
    done = pl.read_csv(out, infer_schema=False).filter(pl.col("sample_id").is_in(list(world.ids)))
    assert done["action"].unique().to_list() == ["answer"]
    said = {row["sample_id"]: json.loads(row["answer"]) for row in done.iter_rows(named=True)}
    for name in list(world.ids)[:6]:
        step = policy.start(np.zeros(policy.width, np.float32))
        for one in rule.members:
            assert step.ask == policy.agents[one]
            step = policy.next(step, as_answer(world.known.answers.boxes[one], place[name], names))
        assert step.done
        assert step.answer == said[name]
    fused = Boxes.from_images(
        [
            {**answer, "labels": [names.index(label) for label in answer["labels"]]}
            for answer in map(said.get, world.ids)
        ]
    )
    walked = walk(rule, world)
    np.testing.assert_allclose(world.cost_of({"pred_boxes": fused}, np.arange(len(world))), walked.task, atol=1e-9)
    assert all(np.diff(each["scores"]).max(initial=-1) <= 0 for each in said.values())


def test_answers_that_are_not_boxes_are_refused(saved):
    policy = l2d.load_policy(saved[1] / "committee")
    step = policy.start(np.zeros(policy.width, np.float32))
    bad = ["seven", {"boxes": [[0, 0, 1, 1]], "labels": ["zero"]}, {"boxes": [[0, 0, 1]], "labels": [0], "scores": [1]}]
    bad += [{"boxes": [[0, 0, 1, 1]], "labels": ["elephant"], "scores": [1]}]
    bad += [{"boxes": [[0, 0, 1, 1]], "labels": [0], "scores": [float("nan")]}]
    for answer in bad:
        with pytest.raises(DataError):
            policy.next(step, answer)
