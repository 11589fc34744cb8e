"""A semi-synthetic detection dataset in Pascal VOC's format: real handwritten digits on made-up canvases.

The digits are the 1,797 of ``sklearn.datasets.load_digits`` (8 x 8 pixels, UCI's *Optical Recognition of Handwritten
Digits*, test part); everything around them is drawn. Scenes differ in difficulty in ways that can be seen in the image:
how many digits, how large, how much they stand out, how much noise and clutter. So detectors of different capacity do
about equally well on some scenes and not on others, which is what learning to defer needs.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.data.sources.voc import VocAnnotation, VocObject, format_voc

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
YEAR = "digits"  # so that sets are named "digits/train"
IMAGES = {"fit": 1000, "train": 1500, "val": 500, "test": 1000}

#: A digit lower than this is marked difficult, as VOC marks what can hardly be told: it had 8 pixels to begin with.
DIFFICULT_HEIGHT = 10

#: Real digits: glyphs (k, 8, 8) uint8 and labels (k,).
Pool = tuple[np.ndarray, np.ndarray]

README = """Semi-synthetic scenes of handwritten digits, in Pascal VOC's format

Made by l2d (data/sources/digits.py), seed {seed}, {size} x {size} pixels, {counts}.

The digits are real: scikit-learn's load_digits, from UCI's Optical Recognition of Handwritten Digits (E. Alpaydin and
C. Kaynak, 1998, CC BY 4.0). The scenes they stand in are not: backgrounds, noise and clutter are drawn, digits are
scaled, turned and recoloured. No digit is used in two of the sets. Results on these scenes say nothing about
photographs.
"""


def write_digits(folder: Path, *, images: Mapping[str, int] = IMAGES, size: int = 144, seed: int = 0) -> bool:
    """Write the scenes as a VOCdevkit folder: ``VOCdigits`` with its annotations, images and sets, and a README.

    The same arguments and the same versions of numpy, Pillow and scikit-learn give the same bytes. A scene shows one to
    five digits. The folder appears whole or not at all.

    Args:
        folder: the VOCdevkit folder, not there yet.
        images: set -> number of its scenes. Each set gets real digits of its own, in proportion.
        size: width and height of the scenes in pixels.
        seed: another one draws other scenes and hands out the digits otherwise.

    Returns:
        Whether it was written; False where the folder is there already and its README says it is of these arguments.

    Raises:
        UsageError: a set without a proper name or without scenes, or scenes too small for a digit.
        DataError: the folder is there already and something else, or cannot be written.
    """
    folder = Path(folder)
    for name, count in images.items():
        if not name.isidentifier() or count < 1:
            raise UsageError(
                f"the set {name!r} is to have {count} scenes",
                where=folder,
                hint='write {"val": 200}, a name and 1 or more',
            )
    if size < 64 or not images:
        raise UsageError(
            f"{size} x {size} pixels, {len(images)} sets", where=folder, hint="give 64 pixels and one set, or more"
        )
    counts = ", ".join(f"{count} {name}" for name, count in images.items())
    readme = README.format(seed=seed, size=size, counts=counts).encode()
    if folder.exists():
        if (folder / "README.txt").is_file() and (folder / "README.txt").read_bytes() == readme:
            return False
        raise DataError("this folder is there already", where=folder, hint="name another one, or remove it")
    pools = _share_digits(images, seed)
    store.commit_folder(folder, lambda temporary: _fill(temporary, images, pools, size, seed, readme))
    return True


def write_digit_table(file: Path) -> bool:
    """Write the digits themselves, a row each: ``digit`` (its number), ``class`` (0 to 9) and ``p00`` to ``p77``, the
    inks of 8 x 8 pixels by row and column, 0 to 16.

    Returns:
        Whether it was written; False where it is there already.
    """
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    columns = {"digit": np.arange(len(digits.target), dtype=np.int32), "class": digits.target.astype(np.int32)}
    for row in range(8):
        columns |= {f"p{row}{column}": digits.images[:, row, column].astype(np.float32) for column in range(8)}
    batch = pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})
    return store.commit_batches(file, batch.schema, [batch], {})


def _fill(
    folder: Path, images: Mapping[str, int], pools: Mapping[str, Pool], size: int, seed: int, readme: bytes
) -> None:
    store.commit_bytes(folder / "README.txt", readme)
    year = folder / f"VOC{YEAR}"
    first = 1

    def write(name: str, scene: int) -> str:
        scene_id = f"{first + scene:06d}"
        generator = np.random.default_rng([seed, zlib.crc32(name.encode()), scene])
        pixels, objects = draw_scene(generator, pools[name], size)
        annotation = VocAnnotation(f"{scene_id}.jpg", size, size, objects)
        text = format_voc(annotation, folder=year.name, database="semi-synthetic digits, l2d")
        store.commit_bytes(year / "Annotations" / f"{scene_id}.xml", text)
        store.commit_bytes(year / "JPEGImages" / f"{scene_id}.jpg", _jpeg(pixels))
        return scene_id

    with ThreadPoolExecutor() as threads:  # each scene has a generator of its own, so their order does not matter
        for name, count in images.items():
            ids = list(threads.map(partial(write, name), range(count)))
            store.commit_bytes(year / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{i}\n" for i in ids).encode())
            first += count


def _share_digits(images: Mapping[str, int], seed: int) -> dict[str, Pool]:
    """Hand every digit to one of the sets, as many as its scenes are of all: glyphs (k, 8, 8) uint8 and labels (k,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    glyphs = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng([seed, len(glyphs)]).permutation(len(glyphs))
    shares = np.cumsum(list(images.values())) / sum(images.values())
    parts = np.split(order, np.round(shares[:-1] * len(order)).astype(int))
    for name, part in zip(images, parts, strict=True):
        if not len(part):
            raise UsageError(f"no digit is left for the set {name!r}", where=dict(images), hint="make it larger")
    return {name: (glyphs[part], digits.target[part]) for name, part in zip(images, parts, strict=True)}


def draw_scene(generator: np.random.Generator, pool: Pool, size: int) -> tuple[np.ndarray, list[VocObject]]:
    """One scene: uint8 (size, size, 3), and its digits.

    Args:
        generator: of all that is random.
        pool: glyphs (k, 8, 8) and labels (k,) to choose from.
    """
    overall = generator.random()

    def between(easy: float, hard: float) -> float:
        """A setting of this scene: near its overall difficulty, so that hardships mostly come together."""
        return easy + (hard - easy) * float(np.clip(overall + generator.normal(0, 0.15), 0, 1))

    unevenness, contrast, noise = between(0.04, 0.3), between(0.65, 0.22), between(0.005, 0.12)
    polarity = generator.choice([1, -1])  # ink lighter or darker than its ground
    ground = 0.5 - polarity * generator.uniform(0.15, 0.35) + generator.normal(0, 0.06, 3)
    ink = polarity * contrast * np.clip(generator.normal(1, 0.15, 3), 0.6, 1.2)
    mask = _strokes(generator, size, round(between(0, 14)))  # how much ink there is
    height, turn = between(52, 14) * size / 144, between(3, 18)
    objects: list[VocObject] = []
    boxes = np.zeros((0, 4))
    for _ in range(1 + int(between(0, 4.99))):
        chosen = generator.integers(len(pool[0]))
        tall = float(np.clip(height * np.exp(generator.normal(0, 0.25)), 8, 0.6 * size))
        glyph = _glyph(pool[0][chosen], tall, generator.normal(0, turn))
        box = _place(generator, glyph.shape, boxes, size)
        if box is None:
            continue
        left, top, right, bottom = box
        part = mask[top:bottom, left:right]
        part += glyph * (1 - part)
        boxes = np.vstack([boxes, box])
        name = CLASSES[pool[1][chosen]]
        objects.append(
            VocObject(
                name, (float(left), float(top), float(right), float(bottom)), bool(bottom - top < DIFFICULT_HEIGHT)
            )
        )
    light = unevenness * _unevenness(generator, size) + noise * generator.standard_normal(mask.shape, dtype=np.float32)
    ground, ink = (colour.astype(np.float32)[:, None, None] for colour in (ground, ink))
    colours = np.clip(ground + light + ink * mask, 0, 1) * 255
    return np.ascontiguousarray(colours.astype(np.uint8).transpose(1, 2, 0)), objects


def _unevenness(generator: np.random.Generator, size: int) -> np.ndarray:
    """How light falls on a canvas: from one side, and in spots; (size, size), about -1 to 1."""
    from PIL import Image

    angle = generator.uniform(0, 2 * np.pi)
    down, right = (np.linspace(-end, end, size, dtype=np.float32) for end in (0.5 * np.cos(angle), 0.5 * np.sin(angle)))
    spots = Image.fromarray(generator.normal(0, 0.6, (6, 6)).astype(np.float32))
    return down[:, None] + right + np.asarray(spots.resize((size, size), Image.Resampling.BICUBIC))


def _strokes(generator: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Bent lines, a little like parts of digits, of their ink or of its opposite: clutter, (size, size) in [-1, 1]."""
    from PIL import Image, ImageDraw

    mask = Image.new("F", (size, size))
    for _ in range(count):
        steps = generator.normal(0, 0.06 * size, (generator.integers(2, 5), 2))
        points = [tuple(point) for point in (generator.uniform(0, size, 2) + np.cumsum(steps, axis=0)).tolist()]
        strength = float(generator.choice([0.8, 0.8, -0.4]))
        ImageDraw.Draw(mask).line(points, fill=strength, width=int(generator.integers(1, 4)))
    return np.array(mask)


def _glyph(glyph: np.ndarray, height: float, degrees: float) -> np.ndarray:
    """A digit scaled and turned, cut to its ink: (h, w) in [0, 1]."""
    from PIL import Image

    side = round(height * 10 / 8)  # with an edge of one of its pixels all around, for ink that reaches the glyph's edge
    image = Image.fromarray(np.pad(glyph, 1)).resize((side, side), Image.Resampling.BICUBIC)
    mask = np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, expand=True), np.float32) / 255
    rows, columns = (np.flatnonzero((mask > 0.25).any(axis=axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    generator: np.random.Generator, shape: tuple[int, ...], others: np.ndarray, size: int, tries: int = 40
) -> np.ndarray | None:
    """A box for a digit that shares at most a tenth of the smaller one with any other; None if there is no room."""
    height, width = shape
    for _ in range(tries):
        left, top = generator.integers(0, size - width + 1), generator.integers(0, size - height + 1)
        box = np.array([left, top, left + width, top + height])
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        smaller = np.minimum(height * width, (others[:, 2:] - others[:, :2]).prod(axis=1))
        if (shared <= 0.1 * smaller).all():
            return box
    return None


def _jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()
