"""Which detection takes which ground-truth box, for many images, classes and IoU thresholds at once, in plain NumPy.

Only boxes of one *group* meet: of one image and one class. Two rules:

* ``coco``, as pycocotools' ``evaluateImg``: detections choose in the order of their scores, each the free box with the
  greatest IoU, of equal ones the later; one to ignore only where no other will do. A crowd is always free, and its IoU
  is the share of the detection that lies in it.
* ``voc``, as the VOC devkit: a detection looks only at the box with the greatest IoU, of equal ones the first; a better
  scored one may have taken it, and there is no second choice. A box to ignore is always free.

COCO's rule is a serial dictatorship, so it equals deferred acceptance with one common order of priority: every
detection proposes to its favourite, each box keeps the best-scored one, the rejected move on. All groups and thresholds
advance together, and a few rounds do. VOC's rule is the same with lists of one favourite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from l2d.data.samples.boxes import BY_BOX, Boxes

# Work is cut so that temporaries stay in the processor's cache and the allocator reuses their memory.
CHUNK_IMAGES = 256
CHUNK_BOXES = 1 << 15
BLOCK_PAIRS = 1 << 15
MOST_CELLS = 6  # into 2^6 parts at most the centres of a group's boxes are sorted
PACKED_BITS = 63  # of a sort key that fits one integer
PLAIN_LABELS = 1 << 10  # beyond this number of classes their numbers are closed up first

Rule = Literal["coco", "voc"]


def checked_limits(thresholds: Sequence[float], rule: Rule) -> np.ndarray:
    """What an IoU has to reach, float64 (T,).

    Raises:
        ValueError: no thresholds, or one outside (0, 1].
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not len(limits) or not ((limits > 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds {thresholds!r} are not numbers in (0, 1]")
    return np.minimum(limits, 1 - 1e-10) if rule == "coco" else limits


def checked_labels(targets: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels of both, closed up where there are many classes, and a number that exceeds every one of them.

    Raises:
        ValueError: different numbers of images, a number that is not finite, a negative label.
    """
    if len(targets) != len(detections):
        raise ValueError(f"ground truth of {len(targets)} images, detections of {len(detections)}")
    if not all(np.isfinite(values).all() for values in (targets.xyxy, detections.xyxy, detections.score)):
        raise ValueError("a coordinate or score is not finite")
    labels = [targets.label, detections.label]
    if min(part.min(initial=0) for part in labels) < 0:
        raise ValueError("a label is negative")
    num_labels = int(max(part.max(initial=0) for part in labels)) + 1
    if num_labels > PLAIN_LABELS:
        known, closed = np.unique(np.concatenate(labels), return_inverse=True)
        labels, num_labels = np.split(closed, [len(targets.label)]), len(known)
    return labels[0], labels[1], num_labels


def chunks(targets: Boxes, detections: Boxes) -> Iterator[tuple[slice, Boxes, Boxes, int]]:
    """Some images at a time: which, their boxes as views, and a number that exceeds every label in them.

    Raises:
        ValueError: see :func:`checked_labels`.
    """
    *labels, num_labels = checked_labels(targets, detections)
    boxes = targets.offsets + detections.offsets
    start = 0
    while start < len(targets):
        fitting = int(np.searchsorted(boxes, boxes[start] + CHUNK_BOXES, side="right")) - 1
        images = slice(start, min(max(fitting, start + 1), start + CHUNK_IMAGES, len(targets)))
        yield images, _view(targets, images, labels[0]), _view(detections, images, labels[1]), num_labels
        start = images.stop


def _view(boxes: Boxes, images: slice, label: np.ndarray) -> Boxes:
    """Neighbouring images without a copy, with other labels."""
    offsets = boxes.offsets[images.start : images.stop + 1]
    rows = slice(offsets[0], offsets[-1])
    parts = {name: getattr(boxes, name)[rows] for name in BY_BOX if name != "label"}
    return Boxes(offsets=offsets - offsets[0], label=label[rows], **parts)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Boxes of n images sorted by group: an image and a class with ground truth there, be it to ignore.

    Attributes:
        num_images: n.
        num_labels: exceeds every label.
        image: int64 (G,): of each group, ascending.
        countable: int64 (G,): ground-truth boxes without ``ignore``.
        target: int64 (g,): rows of the ground truth by group, in input order within.
        target_first: int64 (G + 1,): where each group begins in ``target``.
        detection: int64 (d,): rows of detections by group, best score first, ties in input order; no more than the cap.
        group: int64 (d,): of each of these.
        first: int64 (G + 1,): where each group begins in ``detection``.
        alone: int64 (a,): rows of all other detections, of classes without ground truth in their image.
        alone_key: int64 (a,): image * num_labels + label of each.
    """

    num_images: int
    num_labels: int
    image: np.ndarray
    countable: np.ndarray
    target: np.ndarray
    target_first: np.ndarray
    detection: np.ndarray
    group: np.ndarray
    first: np.ndarray
    alone: np.ndarray
    alone_key: np.ndarray

    @classmethod
    def of(cls, targets: Boxes, detections: Boxes, num_labels: int, cap: int | None) -> Groups:
        """Sort the boxes of some images, at most ``cap`` detections a group."""
        key = targets.image * num_labels + targets.label
        target = _order(key)
        key = key[target]
        starts = _run_starts(key)
        group_of_key = np.full(len(targets) * num_labels, -1)
        group_of_key[key[starts]] = np.arange(len(starts))
        target_first = np.append(starts, len(key))
        countable_before = np.append(0, np.cumsum(~targets.ignore[target]))

        key_of_detection = detections.image * num_labels + detections.label
        group = group_of_key[key_of_detection]
        rows, alone = np.flatnonzero(group >= 0), np.flatnonzero(group < 0)
        rows = rows[_order(group[rows], _falling(detections.score[rows]))]
        first = np.searchsorted(group[rows], np.arange(len(starts) + 1))
        if cap is not None and np.diff(first).max(initial=0) > cap:
            rows = rows[np.arange(len(rows)) - first[group[rows]] < cap]
            first = np.searchsorted(group[rows], np.arange(len(starts) + 1))
        return cls(
            num_images=len(targets),
            num_labels=num_labels,
            image=key[starts] // num_labels,
            countable=np.diff(countable_before[target_first]),
            target=target,
            target_first=target_first,
            detection=rows,
            group=group[rows],
            first=first,
            alone=alone,
            alone_key=key_of_detection[alone],
        )


def _order(*keys: np.ndarray) -> np.ndarray:
    """Positions in ascending order of one or two keys of non-negative integers, ties in input order."""
    rows = len(keys[0])
    widths = [int(key.max(initial=0)).bit_length() for key in keys] + [rows.bit_length()]
    if sum(widths) > PACKED_BITS:
        return np.lexsort(keys[::-1])
    packed = keys[0]
    for key, width in zip((*keys[1:], np.arange(rows)), widths[1:], strict=True):
        packed = (packed << width) | key
    return np.sort(packed) & ((1 << widths[-1]) - 1)  # several times faster than a stable argsort


def _falling(scores: np.ndarray) -> np.ndarray:
    """Non-negative integers in the reverse order of scores, equal where these are equal: int64 (m,)."""
    narrow = scores.astype(np.float32)
    if (narrow != scores).any():
        return np.unique(-scores, return_inverse=True)[1]
    # a float's bits are in the order of its values, the negative ones reversed; 0.0 and -0.0 both come to 0
    bits = narrow.view(np.int32).astype(np.int64)
    falling = np.where(bits < 0, bits & 0x7FFFFFFF, -bits)
    return falling - falling.min(initial=0)


def _run_starts(values: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.flatnonzero(new)


@dataclass(frozen=True, kw_only=True)
class Match:
    """Matches by threshold, then detection.

    Attributes:
        num_thresholds: T.
        threshold: int64 (k,): position of the threshold.
        detection: int64 (k,): position in ``Groups.detection``.
        target: int64 (k,): position in ``Groups.target``.
        iou: float64 (k,).
    """

    num_thresholds: int
    threshold: np.ndarray
    detection: np.ndarray
    target: np.ndarray
    iou: np.ndarray


def match_groups(groups: Groups, targets: Boxes, detections: Boxes, limits: np.ndarray, rule: Rule) -> Match:
    """Which detection takes which object at each of the limits (T,), see the top of this file."""
    coco = rule == "coco"
    ignore, crowd = targets.ignore[groups.target], targets.crowd[groups.target]
    detection, target, iou = _candidates(groups, targets, detections, limits.min(), crowd if coco else None)
    # a detection's favourites first; most have but one
    same = detection[1:] == detection[:-1]
    several = np.zeros(len(detection), bool)
    several[1:] |= same
    several[:-1] |= same
    rows = np.flatnonzero(several)
    keys = (-target[rows], -iou[rows], ignore[target[rows]]) if coco else (target[rows], -iou[rows])
    order = np.arange(len(detection))
    order[rows] = rows[np.lexsort((*keys, detection[rows]))]
    if not coco:  # no second choice
        order = order[_run_starts(detection)]
    detection, target, iou = detection[order], target[order], iou[order]

    # a proposal for each pair and limit that it reaches, by limit, detection and preference
    reached = [np.flatnonzero(iou >= limit) for limit in limits]
    pair = np.concatenate(reached)
    threshold = np.repeat(np.arange(len(limits)), [len(part) for part in reached])
    proposer = threshold * len(groups.detection) + detection[pair]
    place = threshold * len(ignore) + target[pair]
    always_free = np.flatnonzero((crowd if coco else ignore)[target[pair]])
    num_places = len(limits) * len(ignore)
    place[always_free] = num_places + np.arange(len(always_free))  # a place for each proposal
    free = len(pair)
    holder = np.full(num_places + len(always_free), free)
    active = _run_starts(proposer)
    while len(active):
        wanted = place[active]
        before = holder[wanted]
        np.minimum.at(holder, wanted, active)  # of two proposals for a place the earlier one has the better score
        won = holder[wanted] == active
        displaced = before[won & (before < free)]
        following = np.concatenate([active[~won], displaced]) + 1
        following = following[following < free]
        active = following[proposer[following] == proposer[following - 1]]
    final = np.flatnonzero(holder[place] == np.arange(free))
    pair = pair[final]
    return Match(
        num_thresholds=len(limits),
        threshold=threshold[final],
        detection=detection[pair],
        target=target[pair],
        iou=iou[pair],
    )


def _candidates(
    groups: Groups, targets: Boxes, detections: Boxes, least: float, crowd: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one group with IoU >= ``least``: positions of detection (ascending) and target, and the IoU.

    The operations are those of pycocotools' ``bbIou`` on float64 (x, y, width, height), for equality to the last bit.
    """
    of_targets, of_detections = _Sides.of(targets, groups.target), _Sides.of(detections, groups.detection)
    few = np.zeros(len(groups.target), bool) if crowd is None else crowd
    some = np.flatnonzero(~few)
    found = _overlapping(of_detections, of_targets, *_near(groups, of_detections, of_targets, some, least), least)
    if len(some) < len(few):  # a crowd may be much larger than what lies in it, so none is too far away
        order = np.flatnonzero(few)
        first = np.searchsorted(order, groups.target_first)
        counts = np.diff(first)[groups.group]
        inside = _overlapping(of_detections, of_targets, order, first[groups.group], counts, least, crowds=True)
        detection, target, iou = (np.concatenate(pair) for pair in zip(found, inside, strict=True))
        order = np.argsort(detection, kind="stable")
        found = detection[order], target[order], iou[order]
    return found


@dataclass(frozen=True)
class _Sides:
    """Boxes side by side, float64 each."""

    left: np.ndarray
    top: np.ndarray
    right: np.ndarray
    bottom: np.ndarray
    width: np.ndarray
    area: np.ndarray

    @classmethod
    def of(cls, boxes: Boxes, rows: np.ndarray) -> _Sides:
        left, top = boxes.xyxy[:, :2].take(rows, axis=0).T.astype(np.float64, order="C")
        width, height = boxes.size.take(rows, axis=0).T.astype(np.float64, order="C")
        return cls(left, top, left + width, top + height, width, width * height)


def _near(
    groups: Groups, detections: _Sides, targets: _Sides, some: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some targets by group and by where their centres lie; and of each detection the first near it, and how many are.

    With an IoU of ``t`` in the plane, two boxes have at least that of their widths alone; so the centre of the other is
    no farther away than ``(1 / t - 1) / 2`` widths. Centres are counted in cells, so that what is near is looked up.
    """
    num_groups = len(groups.image)
    group = np.repeat(np.arange(num_groups), np.diff(groups.target_first))[some]
    centre = targets.left[some] + targets.width[some] / 2
    start, stop = centre.min(initial=np.inf), centre.max(initial=-np.inf)
    cells = 1 << min(MOST_CELLS, (4 * len(some) // max(num_groups, 1)).bit_length())
    scale = cells / (stop - start) if stop > start else 0.0
    largest = max(np.abs(side).max(initial=0.0) for side in (detections.left, detections.right, targets.right))
    if not (np.isfinite(largest) and np.isfinite(scale) and scale > 0):  # numbers at the edge of what there is
        cells, start, scale, largest = 1, 0.0, 0.0, 0.0
    place = group * cells + np.minimum(((centre - start) * scale).astype(np.int64), cells - 1)
    begin = np.concatenate([np.zeros(1, np.int64), np.bincount(place, minlength=num_groups * cells).cumsum()])
    order = some[np.argsort(place, kind="stable")] if cells > 1 else some

    reach = detections.width * ((1 / least - 1) / 2 * (1 + 1e-9)) + 1e-14 * largest  # with room for what is rounded
    middle = detections.left + detections.width / 2 - start
    ahead = groups.group * cells
    low = ahead + ((middle - reach) * scale).clip(0, cells - 1).astype(np.int64)
    high = ahead + ((middle + reach) * scale).clip(-1, cells - 1).astype(np.int64)
    first = begin[low]
    return order, first, np.maximum(begin[high + 1] - first, 0)


def _overlapping(
    detections: _Sides,
    targets: _Sides,
    order: np.ndarray,
    first: np.ndarray,
    counts: np.ndarray,
    least: float,
    *,
    crowds: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See :func:`_candidates`: of each detection the targets ``order[first : first + counts]`` are looked at."""
    needed = least * (1 - 1e-9) * (detections.right - detections.left)  # less of its width is too low an IoU anyway
    ends = np.cumsum(counts)
    lead = first - (ends - counts)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    start = 0
    while start < len(counts):
        done = ends[start] - counts[start]
        stop = max(int(np.searchsorted(ends, done + BLOCK_PAIRS, side="right")), start + 1)
        d = np.repeat(np.arange(start, stop), counts[start:stop])
        t = order[np.arange(done, ends[stop - 1]) + lead[d]]
        width = np.minimum(detections.right[d], targets.right[t]) - np.maximum(detections.left[d], targets.left[t])
        some = np.flatnonzero(width > needed[d])
        d, t, width = d[some], t[some], width[some]
        height = np.minimum(detections.bottom[d], targets.bottom[t]) - np.maximum(detections.top[d], targets.top[t])
        both = width * height  # negative where they do not overlap, which is not enough below
        either = detections.area[d] if crowds else detections.area[d] + targets.area[t] - both
        some = np.flatnonzero(both > least * (1 - 1e-9) * either)  # without 0 / 0, and few are left to divide
        d, t, iou = d[some], t[some], both[some] / either[some]
        some = np.flatnonzero(iou >= least)
        found.append((d[some], t[some], iou[some]))
        start = stop
    detection, target, iou = (np.concatenate(part) for part in zip(*found, strict=True))
    return detection, target, iou
