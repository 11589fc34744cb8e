"""CIFAR-10's binary files, drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from l2d.data.sources.cifar10 import CLASSES


def write_batches(folder: Path, records: int = 24) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Files of the format, written byte by byte as its page describes them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    found = {}
    for source in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        labels, images = rng.permutation(np.arange(records) % 10), rng.integers(256, size=(records, 32, 32, 3))
        content = bytearray()
        for label, image in zip(labels, images, strict=True):
            content.append(label)
            for color in range(3):
                for row in range(32):
                    content += bytes(image[row, :, color].tolist())
        (folder / f"{source}.bin").write_bytes(content)
        found[source] = labels, images
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return found
