"""Images per second of `l2d build` against a bare `model(images)` loop over the same batches, decoded before.

    python benchmarks/detector_throughput.py --device cuda --autocast float16
    OMP_NUM_THREADS=1 python benchmarks/detector_throughput.py --device cpu --clock cpu --images 24 --batch-size 4 \\
        --build-batch 8 --architectures fasterrcnn_mobilenet_v3_large_fpn

Made-up JPEG photographs of Pascal VOC's usual sizes, random weights, torchvision's own 800 pixels. The bare loop
runs the agent's own model (same weights, memory layout, autocast) over batches that are decoded, converted and on the
device before its clock starts, and leaves its answers there; it runs before and after the build. The build reads,
decodes, copies, keeps pooled features and writes; its rate is taken from the end of its first batch to its last
answer, so that loading weights is not in it; "whole build" is all of it, digests of images and costs included.

`--clock cpu` counts the seconds that the process computes on all cores, for a CPU that others use as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import get_model_builder, get_model_weights

from l2d.cache_builder.agents import make_agent
from l2d.cache_builder.agents._torchvision_models import TorchvisionAgent
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import Recipe, load_recipe
from l2d.data.samples.dataset import Dataset
from l2d.data.sources import load_dataset

ARCHITECTURES = ["fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
SIZES = [(500, 375)] * 5 + [(500, 333)] * 3 + [(375, 500)] * 2 + [(333, 500), (500, 334), (500, 400), (500, 281)]
ANNOTATION = """<annotation><filename>{name}.jpg</filename><size><width>{width}</width><height>{height}</height>
<depth>3</depth></size><object><name>dog</name><bndbox><xmin>50</xmin><ymin>50</ymin><xmax>200</xmax><ymax>200</ymax>
</bndbox></object></annotation>"""
RECIPE = """
[dataset]
kind = "voc"
path = "VOCdevkit"

[costs.map]

[build]
batch_size = {build_batch}

[[agents]]
name = "model"
kind = "torchvision_detector"
architecture = "{architecture}"
weights = "{weights}"
features = ["backbone", "detections"]
batch_size = {batch_size}
{autocast}
"""


def write_photographs(devkit: Path, count: int) -> None:
    """Smooth random images with some grain: their files are about as large as VOC's."""
    folder, generator = devkit / "VOC2012", np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    names = [f"2012_{number:06d}" for number in range(count)]
    for name in names:
        width, height = SIZES[generator.integers(len(SIZES))]
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.float64)
        image = (image + generator.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=85)
        annotation = ANNOTATION.format(name=name, width=width, height=height)
        (folder / "Annotations" / f"{name}.xml").write_text(annotation)
    train = max(2, count * 4 // 5)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names[:train]))
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\n".join(names[train:]))


def write_weights(architecture: str, folder: Path) -> Path:
    """Random weights as a file of the published ones' name, so that the agent takes them for these."""
    torch.manual_seed(0)
    weights = get_model_weights(architecture).DEFAULT
    model = get_model_builder(architecture)(weights=None, weights_backbone=None, num_classes=91)
    file = folder / Path(weights.url).name
    torch.save(model.state_dict(), file)
    return file


class BareLoop:
    """The agent's model over the very batches that the build gives it."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: str, clock: Callable[[], float]):
        self.clock = clock
        agent = make_agent(recipe.agents[0])
        assert isinstance(agent, TorchvisionAgent)
        agent.load(None, dataset, device)
        self.agent, self.device = agent, torch.device(device)
        self.batches: list[list[torch.Tensor]] = []
        size = recipe.build.batch_size
        answer, agent.detect = agent.detect, self._note
        for start in range(0, len(dataset), size):
            agent.ask(dataset.batch(range(start, min(start + size, len(dataset)))))
        agent.detect = answer

    def _note(self, images: list[torch.Tensor]) -> tuple[list[dict], np.ndarray]:
        """In the place of the model: keep what it would be asked about, find nothing."""
        self.batches.append([image.to(self.device).float() / 255 for image in images])
        nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int32), "scores": np.zeros(0)}
        return [nothing] * len(images), np.zeros((len(images), 1), np.float32)

    @torch.inference_mode()
    def rate(self) -> float:
        """Images per second."""
        self._run(self.batches[:2])
        start = self.clock()
        self._run(self.batches)
        return sum(map(len, self.batches)) / (self.clock() - start)

    def _run(self, batches: list) -> None:
        autocast = self.agent.config.autocast
        dtype = None if autocast is None else getattr(torch, autocast)
        with torch.autocast(self.device.type, dtype=dtype, enabled=autocast is not None):
            for images in batches:
                self.agent.model(images)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build_rate(recipe: Recipe, out: Path, device: str, clock: Callable[[], float]) -> tuple[float, float]:
    """Images per second while images are asked about, and seconds of the whole build."""
    told: list[tuple[float, int]] = []

    def progress(name: str, samples: int) -> Callable[[int], None]:
        return lambda done: told.append((clock(), done))

    start = clock()
    build(recipe, out, device=device, progress=progress)
    seconds = clock() - start
    asked = sum(done for _, done in told[1:])
    return asked / sum(b - a for (a, _), (b, _) in pairwise(told)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--build-batch", type=int, default=64, help="[build] batch_size")
    parser.add_argument("--autocast", choices=["float16", "bfloat16"])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    if options.images < 2 * options.build_batch:
        parser.error("--images has to be at least two of --build-batch: the rate is taken after the first")
    ratios = {}
    print("| architecture | bare loop, images/s | build, images/s | ratio | whole build, s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="detector_throughput_") as folder:
        write_photographs(Path(folder) / "VOCdevkit", options.images)
        for architecture in options.architectures.split(","):
            text = RECIPE.format(
                architecture=architecture,
                weights=write_weights(architecture, Path(folder)),
                build_batch=options.build_batch,
                batch_size=options.batch_size,
                autocast=f'autocast = "{options.autocast}"' if options.autocast else "",
            )
            file = Path(folder) / f"{architecture}.toml"
            file.write_text(text)
            recipe = load_recipe(str(file))
            bare = BareLoop(recipe, load_dataset(recipe.dataset, recipe.name), options.device, clock)
            before = bare.rate()
            ours, seconds = build_rate(recipe, Path(folder) / architecture, options.device, clock)
            plain = 2 / (1 / before + 1 / bare.rate())  # images of both runs over seconds of both runs
            ratios[architecture] = round(ours / plain, 3)
            print(f"| `{architecture}` | {plain:.2f} | {ours:.2f} | {ours / plain:.2f} | {seconds:.1f} |", flush=True)
            del bare
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
