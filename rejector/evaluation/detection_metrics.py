"""mAP of a system over a set of images, from the detections of whichever agent each image was allocated to.

The mAP of a set pools the detections of all its images, see :mod:`l2d.data.costs.pooled`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from l2d.data.costs.pooled import system_map
from l2d.data.samples.boxes import Boxes

__all__ = ["mixed_detections", "system_map"]


def mixed_detections(answers: Sequence[Boxes], chosen: np.ndarray) -> Boxes:
    """Detections of a system.

    Args:
        answers: of each agent, on the same n images.
        chosen: position in ``answers`` of the agent that answers each image, (n,).

    Returns:
        n images.
    """
    return Boxes.concatenate(list(answers)).take(chosen * len(answers[0]) + np.arange(len(answers[0])))
