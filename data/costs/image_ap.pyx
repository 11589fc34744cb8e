# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The loop of :mod:`l2d.data.costs.compiled`: matches the boxes of one image after another and adds up its precision.

The two rules are those at the top of :mod:`l2d.data.costs.box_matching`. A detection takes its object before any worse
one is looked at, so what needs rounds of proposals in NumPy needs none here. Every sum runs in NumPy's order, and the
compiler may not contract products and sums, so results have the same bits.
"""

from libc.math cimport NAN
from libc.stdint cimport int64_t

import numpy as np

ctypedef unsigned char flag

cdef enum:
    COCO = 0
    VOC2007 = 1
    SHORT = 16  # runs that are sorted by insertion before they are merged


cdef struct Scratch:
    # Of the image at hand: classes that have objects, ascending, and where their boxes begin.
    int64_t* group_of  # by class; -1 where the image has none
    int64_t* claimed_by  # by class; the last image that claimed it
    int64_t* group_label
    int64_t* target_first
    int64_t* first
    int64_t* place
    int64_t* target  # rows by class
    int64_t* order  # rows of detections by class, then those of other classes
    # Of the group at hand.
    double* key
    double* spare_key
    int64_t* spare
    flag* ignored
    flag* crowds
    double* sides  # left, right, top, bottom, area of each object
    int64_t* near  # objects that the detection at hand overlaps, its favourite first
    double* overlap
    flag* taken  # by threshold and object
    int64_t* right_at  # by threshold: ranks of true positives
    int64_t* found
    int64_t* neither
    flag* wrong
    double* weight
    double* envelope


def over_images(
    const int64_t[::1] target_offsets, const int64_t[::1] target_label, const double[:, ::1] target_xyxy,
    const double[:, ::1] target_size, const flag[::1] ignore, const flag[::1] crowd,
    const int64_t[::1] offsets, const int64_t[::1] label, const double[:, ::1] xyxy, const double[:, ::1] size,
    const double[::1] score,
    int64_t num_labels, const double[::1] limits, double least, const double[::1] recalls, int protocol, int64_t cap,
    double confident, double[:, ::1] ap, int64_t[::1] present, int64_t[:, ::1] claimed,
):
    """Fill ``ap`` (n, T), ``present`` (n,) and ``claimed`` (n, T); nothing is checked here."""
    cdef int64_t num_limits = limits.shape[0]
    cdef int64_t objects = longest(target_offsets)
    cdef int64_t most = longest(offsets)
    keep = []  # arrays stay alive while their memory is used
    cdef Scratch s
    s.group_of = whole(keep, num_labels, -1)
    s.claimed_by = whole(keep, num_labels, -1)
    s.group_label = whole(keep, objects, 0)
    s.target_first = whole(keep, objects + 1, 0)
    s.first = whole(keep, objects + 1, 0)
    s.place = whole(keep, objects, 0)
    s.target = whole(keep, objects, 0)
    s.order = whole(keep, most, 0)
    s.key = real(keep, most)
    s.spare_key = real(keep, most)
    s.spare = whole(keep, most, 0)
    s.ignored = flags(keep, objects)
    s.crowds = flags(keep, objects)
    s.sides = real(keep, 5 * objects)
    s.near = whole(keep, objects, 0)
    s.overlap = real(keep, objects)
    s.taken = flags(keep, num_limits * objects)
    s.right_at = whole(keep, num_limits * min(objects, most), 0)
    s.found = whole(keep, num_limits, 0)
    s.neither = whole(keep, num_limits, 0)
    s.wrong = flags(keep, num_limits)
    s.weight = real(keep, objects)
    s.envelope = real(keep, objects)
    cdef int64_t most_right = min(objects, most)
    cdef int64_t image, group, limit, position, row, alone, num_groups, classes, begin, many, countable, candidates
    cdef int64_t rank, box, match, last
    cdef bint coco = protocol == COCO
    cdef flag* always_free
    cdef double points
    with nogil:
        for image in range(target_offsets.shape[0] - 1):
            num_groups = group_targets(target_offsets[image], target_offsets[image + 1], target_label, &s)
            alone = group_detections(offsets[image], offsets[image + 1], label, num_groups, &s)
            for limit in range(num_limits):
                ap[image, limit] = 0
                claimed[image, limit] = 0
            for position in range(alone, offsets[image + 1] - offsets[image]):
                row = s.order[position]
                if score[row] >= confident and s.claimed_by[label[row]] != image:
                    s.claimed_by[label[row]] = image
                    for limit in range(num_limits):
                        claimed[image, limit] += 1
            classes = 0
            for group in range(num_groups):
                begin = s.target_first[group]
                many = s.target_first[group + 1] - begin
                countable = 0
                for position in range(many):
                    row = s.target[begin + position]
                    s.ignored[position] = ignore[row]
                    s.crowds[position] = coco and crowd[row]
                    countable += not ignore[row]
                    s.sides[5 * position] = target_xyxy[row, 0]
                    s.sides[5 * position + 1] = target_xyxy[row, 0] + target_size[row, 0]
                    s.sides[5 * position + 2] = target_xyxy[row, 1]
                    s.sides[5 * position + 3] = target_xyxy[row, 1] + target_size[row, 1]
                    s.sides[5 * position + 4] = target_size[row, 0] * target_size[row, 1]
                classes += countable > 0
                always_free = s.crowds if coco else s.ignored
                sort_by_score(s.first[group], s.first[group + 1], score, &s)
                last = s.first[group] + min(s.first[group + 1] - s.first[group], cap)
                for limit in range(num_limits):
                    s.found[limit] = s.neither[limit] = 0
                    s.wrong[limit] = False
                for position in range(num_limits * many):
                    s.taken[position] = False
                for position in range(s.first[group], last):
                    row = s.order[position]
                    candidates = overlapping(row, many, xyxy, size, least, &s)
                    if candidates == 0:
                        if countable == 0 and score[row] >= confident:
                            for limit in range(num_limits):
                                s.wrong[limit] = True
                        continue
                    if not coco:
                        favourite(candidates, &s)
                        candidates = 1
                    elif candidates > 1:
                        by_preference(candidates, &s)
                    for limit in range(num_limits):
                        match = -1
                        for rank in range(candidates):
                            if s.overlap[rank] >= limits[limit]:
                                box = s.near[rank]
                                if always_free[box] or not s.taken[limit * many + box]:
                                    match = box
                                    break
                        if match < 0:
                            if countable == 0 and score[row] >= confident:
                                s.wrong[limit] = True
                            continue
                        s.taken[limit * many + match] = True
                        if s.ignored[match]:
                            s.neither[limit] += 1
                        else:
                            rank = position - s.first[group] + 1 - s.neither[limit]
                            s.right_at[limit * most_right + s.found[limit]] = rank
                            s.found[limit] += 1
                if countable == 0:
                    for limit in range(num_limits):
                        claimed[image, limit] += s.wrong[limit]
                    continue
                points = weights(protocol, countable, recalls, s.weight)
                for limit in range(num_limits):
                    ap[image, limit] += (
                        area(&s.right_at[limit * most_right], s.found[limit], s.weight, s.envelope) / points
                    )
            present[image] = classes
            for limit in range(num_limits):
                ap[image, limit] = ap[image, limit] / classes if classes else NAN
            for group in range(num_groups):
                s.group_of[s.group_label[group]] = -1


cdef int64_t* whole(list keep, int64_t length, int64_t value):
    cdef int64_t[::1] values = np.full(max(length, 1), value, np.int64)
    keep.append(values)
    return &values[0]


cdef double* real(list keep, int64_t length):
    cdef double[::1] values = np.empty(max(length, 1))
    keep.append(values)
    return &values[0]


cdef flag* flags(list keep, int64_t length):
    cdef flag[::1] values = np.empty(max(length, 1), np.uint8)
    keep.append(values)
    return &values[0]


cdef int64_t longest(const int64_t[::1] offsets) noexcept nogil:
    cdef int64_t image, most = 0
    for image in range(offsets.shape[0] - 1):
        most = max(most, offsets[image + 1] - offsets[image])
    return most


cdef int64_t group_targets(int64_t start, int64_t stop, const int64_t[::1] label, Scratch* s) noexcept nogil:
    """Objects of an image by class, classes in ascending order: how many these are."""
    cdef int64_t groups = 0, row, group, hole, value
    for row in range(start, stop):
        value = label[row]
        if s.group_of[value] < 0:
            s.group_of[value] = 0
            hole = groups
            while hole > 0 and s.group_label[hole - 1] > value:
                s.group_label[hole] = s.group_label[hole - 1]
                hole -= 1
            s.group_label[hole] = value
            groups += 1
    for group in range(groups):
        s.group_of[s.group_label[group]] = group
        s.place[group] = 0
    for row in range(start, stop):
        s.place[s.group_of[label[row]]] += 1
    cumulate(groups, s.place, s.target_first)
    for row in range(start, stop):
        group = s.group_of[label[row]]
        s.target[s.place[group]] = row
        s.place[group] += 1
    return groups


cdef int64_t group_detections(
    int64_t start, int64_t stop, const int64_t[::1] label, int64_t groups, Scratch* s
) noexcept nogil:
    """Detections of an image by group, then those of other classes: where these begin."""
    cdef int64_t row, group, rest
    for group in range(groups):
        s.place[group] = 0
    for row in range(start, stop):
        group = s.group_of[label[row]]
        if group >= 0:
            s.place[group] += 1
    cumulate(groups, s.place, s.first)
    rest = s.first[groups]
    for row in range(start, stop):
        group = s.group_of[label[row]]
        if group >= 0:
            s.order[s.place[group]] = row
            s.place[group] += 1
        else:
            s.order[rest] = row
            rest += 1
    return s.first[groups]


cdef void cumulate(int64_t groups, int64_t* counts, int64_t* first) noexcept nogil:
    """Where each group begins: into ``first``, and in place of its count."""
    cdef int64_t group, start = 0
    for group in range(groups):
        first[group] = start
        start += counts[group]
        counts[group] = first[group]
    first[groups] = start


cdef void sort_by_score(int64_t begin, int64_t stop, const double[::1] score, Scratch* s) noexcept nogil:
    """Best score first, equal ones as they are: insertion in short runs, then merges."""
    cdef int64_t start, position, row, hole, middle, end, left, right, width = SHORT
    cdef double value
    start = begin
    for position in range(begin, stop):
        if position == start + SHORT:
            start = position
        row = s.order[position]
        value = score[row]
        hole = position
        while hole > start and s.key[hole - 1] < value:
            s.order[hole] = s.order[hole - 1]
            s.key[hole] = s.key[hole - 1]
            hole -= 1
        s.order[hole] = row
        s.key[hole] = value
    while width < stop - begin:
        start = begin
        while start < stop - width:
            middle = start + width
            end = min(middle + width, stop)
            for position in range(start, middle):
                s.spare[position] = s.order[position]
                s.spare_key[position] = s.key[position]
            left = hole = start
            right = middle
            while left < middle:
                if right < end and s.key[right] > s.spare_key[left]:
                    s.order[hole] = s.order[right]
                    s.key[hole] = s.key[right]
                    right += 1
                else:
                    s.order[hole] = s.spare[left]
                    s.key[hole] = s.spare_key[left]
                    left += 1
                hole += 1
            start += 2 * width
        width *= 2


cdef int64_t overlapping(
    int64_t row, int64_t many, const double[:, ::1] xyxy, const double[:, ::1] size, double least, Scratch* s
) noexcept nogil:
    """Objects of the group whose IoU reaches ``least``, in input order: how many. pycocotools' operations, in order."""
    cdef double left = xyxy[row, 0], top = xyxy[row, 1]
    cdef double right = left + size[row, 0], bottom = top + size[row, 1], mine = size[row, 0] * size[row, 1]
    cdef double needed = least * (1 - 1e-9) * (right - left)  # less of its width is too low an IoU anyway
    cdef double width, both, either, iou
    cdef double* side
    cdef int64_t position, count = 0
    for position in range(many):
        side = &s.sides[5 * position]
        width = min(right, side[1]) - max(left, side[0])
        if not width > needed:
            continue
        both = width * (min(bottom, side[3]) - max(top, side[2]))
        either = mine if s.crowds[position] else mine + side[4] - both
        if both > least * (1 - 1e-9) * either:
            iou = both / either
            if iou >= least:
                s.near[count] = position
                s.overlap[count] = iou
                count += 1
    return count


cdef void by_preference(int64_t count, Scratch* s) noexcept nogil:
    """Not to ignore before to ignore, then the greatest IoU, of equal ones the later box."""
    cdef int64_t position, box, hole
    cdef double iou
    cdef flag last, other
    for position in range(1, count):
        box, iou = s.near[position], s.overlap[position]
        last = s.ignored[box]
        hole = position
        while hole > 0:
            other = s.ignored[s.near[hole - 1]]
            if other < last or (other == last and s.overlap[hole - 1] > iou):
                break
            s.near[hole] = s.near[hole - 1]
            s.overlap[hole] = s.overlap[hole - 1]
            hole -= 1
        s.near[hole] = box
        s.overlap[hole] = iou


cdef void favourite(int64_t count, Scratch* s) noexcept nogil:
    """The greatest IoU to the front, of equal ones the first box."""
    cdef int64_t position, best = 0
    for position in range(1, count):
        if s.overlap[position] > s.overlap[best]:
            best = position
    s.near[0] = s.near[best]
    s.overlap[0] = s.overlap[best]


cdef double weights(int protocol, int64_t size, const double[::1] recalls, double* weight) noexcept nogil:
    """How many recall points the j-th true positive stands for; returned is how many points there are."""
    cdef int64_t position, point, reached = 0
    for position in range(size):
        weight[position] = 0 if protocol <= VOC2007 else 1
    if protocol == COCO:
        for point in range(recalls.shape[0]):
            while reached < size and <double>reached / size < recalls[point]:
                reached += 1
            weight[max(reached, 1) - 1] += 1
        return <double>recalls.shape[0]
    if protocol == VOC2007:
        for point in range(11):
            reached = (point * size + 9) // 10  # the least j with j / size >= point / 10
            weight[max(reached, 1) - 1] += 1
        return 11
    return <double>size


cdef double area(int64_t* right_at, int64_t count, double* weight, double* envelope) noexcept nogil:
    """Precision at the true positives, each the greatest from there on, times the points they stand for."""
    cdef double total = 0, greatest = 0
    cdef int64_t position
    for position in range(count - 1, -1, -1):
        greatest = max(greatest, <double>(position + 1) / right_at[position])
        envelope[position] = greatest
    for position in range(count):
        total += envelope[position] * weight[position]
    return total
