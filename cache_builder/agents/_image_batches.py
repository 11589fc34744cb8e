"""Images decoded ahead of the model that looks at them, those of like shape next to each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from l2d.data.errors import DataError
from l2d.data.samples.images import read_image


def order_by_shape(width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Positions (n,) such that images of like shape follow each other, so that a batch needs little padding.

    Detectors scale the shorter side to one length, so that the ratio of the sides comes first, then the size. Ties keep
    their order: the same images always make the same batches.
    """
    return np.lexsort((width * height, width / height))


class ImageReader:
    """Decodes images in threads, some ahead of the one that is asked for.

    Args:
        workers: threads; torchvision's decoders let other Python code run meanwhile.
        ahead: images decoded before they are asked for; twice the batch keeps a GPU busy.
        pin: put them into page-locked memory, from which a copy to a GPU runs beside its computing.
    """

    def __init__(self, *, workers: int, ahead: int, pin: bool):
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.ahead, self.pin = ahead, pin

    def read(self, paths: Sequence[Path], order: np.ndarray) -> Iterator[tuple[int, torch.Tensor | str]]:
        """Images in an order.

        Args:
            paths: image files.
            order: positions in ``paths``.

        Yields:
            Position, and the image as uint8 (3, H, W), or why it cannot be read.
        """
        positions = iter(order.tolist())
        under_way: deque[tuple[int, Future]] = deque()

        def start(count: int) -> None:
            under_way.extend((p, self.pool.submit(self._read, paths[p])) for p in islice(positions, count))

        start(self.ahead)
        try:
            while under_way:
                position, image = under_way.popleft()
                start(1)
                yield position, image.result()
        finally:
            for _, image in under_way:
                image.cancel()

    def _read(self, path: Path) -> torch.Tensor | str:
        try:
            image = read_image(path)
        except DataError as error:
            return f"cannot read {path}: {error.what}"
        return image.pin_memory() if self.pin else image
