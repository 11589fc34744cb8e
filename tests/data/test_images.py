"""Image files: every kind decodes to RGB as stored, damaged ones are refused by name, small copies are averages."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image

from l2d.data.errors import DataError
from l2d.data.samples.images import decode_thumbnails, image_size, read_image, thumbnail

PIXELS = np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG written by hand from the specification: Pillow writes no colour of 16 bits. ``values`` uint16 (H, W, 3)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PALETTE = Image.fromarray(PIXELS).quantize(16)
EXACT = {
    "colour": (encoded(Image.fromarray(PIXELS), "PNG"), PIXELS),
    "grey": (encoded(Image.fromarray(GREY), "PNG"), np.stack([GREY] * 3, axis=2)),
    "palette": (encoded(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "transparent palette": (
        encoded(PALETTE, "PNG", transparency=bytes(range(0, 160, 10))),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "one bit": (
        encoded(Image.fromarray(GREY > 99), "PNG"),
        np.stack([np.where(GREY > 99, 255, 0)] * 3, axis=2),
    ),
    "transparent colour": (encoded(Image.fromarray(np.dstack([PIXELS, GREY])), "PNG"), PIXELS),
    "transparent grey": (encoded(Image.fromarray(PIXELS[..., :2]), "PNG"), np.stack([GREY] * 3, axis=2)),
    "grey of 16 bits": (
        encoded(Image.fromarray(GREY.astype(np.uint16) * 256 + 7), "PNG"),
        np.stack([GREY] * 3, axis=2),
    ),
    "colour of 16 bits": (png_of_16_bits(PIXELS.astype(np.uint16) * 256 + 7), PIXELS),
}


@pytest.mark.parametrize("kind", EXACT)
def test_every_kind_of_png_gives_its_pixels(tmp_path, kind):
    content, expected = EXACT[kind]
    (tmp_path / "image.png").write_bytes(content)
    found = read_image(tmp_path / "image.png")
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), expected.transpose(2, 0, 1))
    assert image_size(tmp_path / "image.png") == (30, 20)


@pytest.mark.filterwarnings("ignore:The image decoding")  # torchvision's, which is why data.images does without them
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_files_give_the_pixels_that_torchvision_reads(tmp_path, mode):
    from torchvision.io import decode_image

    content = encoded(Image.fromarray(PIXELS).convert(mode), "JPEG", quality=90)
    (tmp_path / "image.jpg").write_bytes(content)
    expected = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode="RGB")
    assert torch.equal(read_image(tmp_path / "image.jpg"), expected)


def test_the_pixels_are_those_stored_whatever_orientation_is_noted(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "plain.jpg", quality=90)
    image.save(tmp_path / "turned.jpg", quality=90, exif=turned)
    with Image.open(tmp_path / "turned.jpg") as stored:
        assert stored.getexif()[0x0112] == 6
    assert torch.equal(read_image(tmp_path / "turned.jpg"), read_image(tmp_path / "plain.jpg"))
    assert image_size(tmp_path / "turned.jpg") == (30, 20)
    assert thumbnail(tmp_path / "turned.jpg", 8) == thumbnail(tmp_path / "plain.jpg", 8)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    bitmap = encoded(Image.fromarray(PIXELS), "BMP")  # Pillow could read it; some formats it reads with other programs
    for name, content in (("text.jpg", b"no image"), ("empty.png", b""), ("bitmap.jpg", bitmap)):
        path = tmp_path / name
        path.write_bytes(content)
        for read in (read_image, image_size, lambda path: thumbnail(path, 8)):
            refused(lambda read=read, path=path: read(path), DataError, name, "cannot be read as an image")
    for gone in (tmp_path / "gone.jpg", str(tmp_path / "gone.jpg")):
        refused(lambda gone=gone: read_image(gone), DataError, "gone.jpg", "no such image")
    for odd in (tmp_path, tmp_path / ("x" * 300), Path(str(tmp_path / "a\0b"))):
        refused(lambda odd=odd: read_image(odd), DataError, "cannot be read as an image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_file_is_refused_or_read_and_nothing_else(tmp_path, kind):
    """torchvision 0.29.2 crashes the process on some of these PNG files."""
    whole = encoded(Image.fromarray(PIXELS), kind)
    path = tmp_path / f"image.{kind}"
    generator = np.random.default_rng(1)
    errors = []
    for trial in range(300):
        content = bytearray(whole)
        if trial % 3 == 0:
            content = content[: generator.integers(len(content))]
        else:
            for position in generator.integers(len(content), size=trial % 3):
                content[position] ^= 1 << generator.integers(8)
        path.write_bytes(content)
        try:
            assert read_image(path).shape[0] == 3
        except DataError as error:
            errors.append(str(error))
    assert len(errors) >= 100  # all that were cut off, at the least
    assert all(str(path) in error for error in errors)


def test_a_cut_off_file_is_refused(tmp_path):
    for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG")):
        content = encoded(Image.fromarray(PIXELS), kind)
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        refused(lambda name=name: read_image(tmp_path / name), DataError, name)
        refused(lambda name=name: thumbnail(tmp_path / name, 8), DataError, name)


def test_running_out_of_memory_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "any.png")


def test_a_small_image_is_the_average_of_what_it_covers(tmp_path):
    quarters = np.zeros((40, 80, 3), np.uint8)
    quarters[:20, :40], quarters[:20, 40:], quarters[20:, :40] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(quarters).save(tmp_path / "quarters.png")
    found = decode_thumbnails([thumbnail(tmp_path / "quarters.png", 8)])[0]
    assert found.shape == (3, 8, 8)
    corners = [found[:, row, column].tolist() for row, column in ((0, 0), (0, 7), (7, 0), (7, 7))]
    assert corners == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]

    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)  # picking pixels would give 0 or 255
    Image.fromarray(board).save(tmp_path / "board.png")
    found = decode_thumbnails([thumbnail(tmp_path / "board.png", 8)])
    assert np.abs(found.astype(int) - 127).max() <= 3


def test_small_images_come_back_as_one_array_from_any_number_of_threads(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(20)]
    for k, path in enumerate(paths):
        Image.fromarray(np.full((5 + k, 9, 3), 10 * k, np.uint8)).save(path)
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda path: thumbnail(path, 16), paths))
    found = decode_thumbnails(files)
    assert (found.shape, found.dtype) == ((20, 3, 16, 16), np.uint8)
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(0, 200, 10)[:, None, None, None], found.shape))
    assert decode_thumbnails([]).shape == (0, 3, 0, 0)


def test_small_images_that_do_not_fit_are_refused_by_position(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    small, smaller = thumbnail(tmp_path / "a.png", 16), thumbnail(tmp_path / "a.png", 8)
    refused(lambda: decode_thumbnails([small, smaller]), DataError, "small image 1", "8 x 8", "16 x 16")
    refused(lambda: decode_thumbnails([small, small[:40]]), DataError, "small image 1", "cannot be read")


def test_importing_the_readers_loads_nothing_heavy():
    code = (
        "import sys\nfrom l2d.data.sources import coco, digits, voc\nfrom l2d.data.samples import images\n"
        "print(sorted({'torch', 'torchvision', 'PIL', 'sklearn.datasets'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
