"""From true boxes and several detectors' results to a recipe: ``l2d import detections``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from l2d.cache_builder.agents._detection_config import DetectionsConfig
from l2d.cache_builder.agents._detection_files import DetectionFile, Found
from l2d.cache_builder.agents.detections import DetectionsAgent
from l2d.cache_builder.importing.draft import Draft
from l2d.cache_builder.importing.samples import Say
from l2d.cache_builder.importing.source import relative, some
from l2d.cache_builder.recipe import Recipe, parse_recipe
from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.samples.dataset import Dataset
from l2d.data.sources import load_dataset
from l2d.data.sources.voc import SUFFIXES, VOC_CLASSES, parse_voc
from l2d.data.toml import toml_list, toml_text

TEST, VALIDATION = 0.4, 0.2  # shares of images that come without sets; the second is of what the first leaves
LINE = DetectionsConfig.model_fields["line"].default


@dataclass(frozen=True)
class DetectionSource:
    """What is imported.

    Attributes:
        truth: COCO's annotations (``.json``), a VOCdevkit, or a folder with VOC's XML files anywhere beneath it.
        results: agent -> its file or folder, as agents of the kind ``detections`` read them. The first is agent 0.
        model: the agent that is free; moved to the front.
        images: folder of the images; looked for beside the truth if None.
        classes: names in order; None: COCO's categories by id, VOC's 20, or what the XML files have, sorted.
        labels, line, coordinates, categories, match: of every agent; None: found out, and said.
        partial: an image that an agent's results do not name has no answer, instead of no objects.
        drop_others: leave out detections on other images or of other labels.
    """

    truth: Path
    results: dict[str, Path]
    model: str | None = None
    images: Path | None = None
    classes: list[str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    line: str = LINE
    coordinates: str | None = None
    categories: str | None = None
    match: str | None = None
    partial: bool = False
    drop_others: bool = False


def draft_detections(source: DetectionSource, folder: Path, out: str, say: Say) -> Draft:
    """A recipe for what detectors have found on images with true boxes. The cost of an image is ``1 - mAP`` of it.

    Everything that the build will read is read and checked here.

    Args:
        folder: where the recipe will lie; paths are relative to it.
        out: name of the cache.
        say: told how truth and results are read, and what each agent's file covers.

    Raises:
        UsageError: the truth or a file is not there, or it cannot be told how its labels are meant.
        DataError: a file is not as its format has it.
    """
    if not source.results:
        raise UsageError("no detector's results are named", hint="l2d import detections TRUTH RESULTS…, or --agent")
    first = source.model or next(iter(source.results))
    if first not in source.results:
        raise UsageError(f"--model {first}: no agent is called so", hint=nearest(first, source.results, "they are"))
    for name, path in source.results.items():
        if not path.exists():
            raise UsageError(f"agent {name!r}: there is no such file or folder", where=path, hint="is its name right?")
    dataset_lines = ["[dataset]", *_truth(source, folder, say)]
    if source.classes:
        dataset_lines.append(f"classes = {toml_list(source.classes)}")
    lines = [f"description = {toml_text(f'Imported from {source.truth.name}')}", "", *dataset_lines]
    lines += ["", "[costs.map]                     # 1 - mAP of the image, over IoU 0.50:0.05:0.95"]
    lines += ['kind = "coco"                   # or "voc2012": IoU 0.5 alone']
    place = folder / f"{out}.toml"
    probe = parse_recipe("\n".join([*lines, *_block(source, first, {}, folder)]), place)
    dataset = load_dataset(probe.dataset, probe.name)
    _say_what_there_is(dataset, source, say)
    for name in sorted(source.results, key=lambda name: name != first):
        path = source.results[name]
        found = DetectionFile(path, name, gaps=source.partial, line=source.line).read()
        keys = _reading(source, name, path, found, dataset)
        lines += ["", *_block(source, name, keys, folder)]
        if name == first:
            yours = "true           # it is yours: asking it costs nothing"
            lines.append(f"free = {yours if source.model else 'false          # it is one of several, not yours'}")
            lines.append('features = ["detections"]     # the rejector looks at what it found')
    text = "\n".join(lines) + "\n"
    _check(parse_recipe(text, place), dataset, say)
    free = "is free (free = false: it has its price)" if source.model else "is not free (--model NAME: yours, which is)"
    say(f"{'the model' if source.model else 'no agent is the model: the first'}, agent 0, is {first}; asking it {free}")
    return Draft(text)


def _block(source: DetectionSource, name: str, keys: dict[str, str], folder: Path) -> list[str]:
    block = ["[[agents]]", f"name = {toml_text(name)}", 'kind = "detections"']
    block += [f"file = {relative(source.results[name], folder)}"]
    if source.results[name].is_dir():
        block.append(f"line = {toml_text(source.line)}")
    block += [f"{key} = {toml_text(value)}" for key, value in keys.items()]
    if source.labels:
        named = ", ".join(f"{toml_text(label)} = {toml_text(to)}" for label, to in source.labels.items())
        block.append(f"labels = {{ {named} }}")
    if source.drop_others:
        block.append('others = "drop"')
    if source.partial:
        block.append("partial = true")
    return [*block, "price = 1.0           # relative to the others; nothing says what its answers cost: edit it"]


# --- true boxes -------------------------------------------------------------------------------------------------------


def _truth(source: DetectionSource, folder: Path, say: Say) -> list[str]:
    """Lines under ``[dataset]``, classes that the command names left out."""
    truth = source.truth
    if truth.is_file() and truth.suffix.lower() == ".json":
        return _coco(source, folder, say)
    if not truth.is_dir():
        what = "there is no such file or folder" if not truth.exists() else "is neither .json nor a folder"
        raise UsageError(what, where=truth, hint="COCO's annotations, a VOCdevkit, or a folder with VOC's XML files")
    for root in (truth, truth / "VOCdevkit", truth / "TrainVal" / "VOCdevkit", truth.absolute().parent):
        years = sorted(root.glob("VOC*/ImageSets/Main"))
        if years and (root != truth.absolute().parent or truth.absolute() / "ImageSets" / "Main" in years):
            return _devkit(root, years[-1], folder, say)
    return _xml(source, folder, say)


def _shares(say: Say) -> list[str]:
    say(f"test split: {TEST:.0%} of the images, validation: {VALIDATION:.0%} of the others, by a hash of the id")
    return [f"test = {TEST}            # share of the images", f"validation = {VALIDATION}      # of the others"]


def _coco(source: DetectionSource, folder: Path, say: Say) -> list[str]:
    truth = source.truth
    chosen = f"annotations = {toml_text(truth.name)}"
    chosen += "" if source.images is None else f", images = {relative(source.images, truth.parent)}"
    lines = ['kind = "coco"', f"path = {relative(truth.parent, folder)}", f"sets = {{ train = {{ {chosen} }} }}"]
    return [*lines, *_shares(say)]


def _devkit(root: Path, main: Path, folder: Path, say: Say) -> list[str]:
    year = main.parent.parent.name.removeprefix("VOC")
    there = {path.stem for path in main.glob("*.txt")}
    train = next((name for name in ("train", "trainval", "val") if name in there), None)
    if train is None:
        raise DataError("there is no list train.txt, trainval.txt or val.txt", where=main, hint="unpack the devkit")
    sets: dict[str, str] = {"train": train}
    if train == "train" and {"val", "test"} <= there:
        sets |= {"validation": "val", "test": "test"}
    elif "test" in there or (train == "train" and "val" in there):
        sets["test"] = "test" if "test" in there else "val"
    named = ", ".join(f'{split} = ["{year}/{name}"]' for split, name in sets.items())
    say(f"sets of the devkit: {named}")
    lines = ['kind = "voc"', f"path = {relative(root, folder)}", f"sets = {{ {named} }}"]
    return [*lines, *([] if "test" in sets else _shares(say))]


def _xml(source: DetectionSource, folder: Path, say: Say) -> list[str]:
    """A folder with XML files in one place, and images in another or the same."""
    truth = source.truth
    notes = Counter(path.parent for path in sorted(truth.rglob("*.xml")))
    if len(notes) != 1:
        what = f"XML files lie in {len(notes)} folders" if notes else "there are no XML files beneath it, and no .json"
        raise UsageError(what, where=truth, hint="name COCO's annotations, a VOCdevkit, or one folder of XML files")
    (place,) = notes
    names, stems = set(), set()
    for file in place.glob("*.xml"):
        stems.add(file.stem)
        names |= {thing.name for thing in parse_voc(file.read_bytes(), file).objects}
    pictures = [path for path in truth.rglob("*") if path.suffix.lower() in SUFFIXES and path.stem in stems]
    most = Counter(path.parent for path in sorted(pictures)).most_common(1)
    images = source.images or (most[0][0] if most else None)
    lines = ['kind = "voc"', f"path = {relative(truth, folder)}"]
    lines.append(f"annotations = {relative(place, truth)}       # every XML file here")
    if images is not None:
        lines.append(f"images = {relative(images, truth)}")
    if not source.classes and not names <= set(VOC_CLASSES):
        lines.append(f"classes = {toml_list(sorted(names))}")
    return [*lines, *_shares(say)]


def _say_what_there_is(dataset: Dataset, source: DetectionSource, say: Say) -> None:
    splits, count = Counter(dataset.split.tolist()), int(dataset.columns["num_objects"].sum())
    said = ", ".join(f"{splits[name]:,} {name}" for name in ("train", "validation", "test"))
    say(f"{source.truth}: {len(dataset):,} images ({said}), {count:,} objects to be found")
    say(f"{len(dataset.classes)} classes: {some(list(dataset.classes))}")
    if dataset.images is None:
        say("no image files are named (--images FOLDER), so nothing can look at the pixels; boxes and results suffice")


# --- results ----------------------------------------------------------------------------------------------------------


def _reading(source: DetectionSource, name: str, path: Path, found: Found, dataset: Dataset) -> dict[str, str]:
    """Keys of an agent that its command does not say: what labels and coordinates count, what names an image."""
    keys = {}
    labels = {str(label) for label in found.label if label is not None} - source.labels.keys()
    own_ids = bool(dataset.inputs.get("category_ids")) and not path.is_dir()
    numbers = not found.names and (path.is_dir() or path.suffix.lower() == ".json")
    numbers = numbers and bool(labels) and all(label.isdigit() for label in labels) and not own_ids
    if source.categories is not None and (numbers or own_ids):
        keys["categories"] = source.categories
    elif numbers:
        if "0" not in labels:
            what = f"agent {name!r}: labels are numbers from {min(map(int, labels))} to {max(map(int, labels))}"
            first = f"1 is {dataset.classes[0]!r}"
            raise UsageError(what, where=path, hint=f"--categories from_1 ({first}) or from_0; or --label NUMBER=CLASS")
        keys["categories"] = "from_0"
    fractions = len(found.xyxy) > 0 and bool((found.xyxy <= 1).all()) and bool((found.xyxy >= 0).all())
    coordinates = source.coordinates or ("fractions" if fractions else None)
    if coordinates is not None:
        keys["coordinates"] = coordinates
    match = source.match or ("stem" if path.is_dir() and "file_name" in dataset.columns.columns else None)
    if match is not None:
        keys["match"] = match
    return keys


def _check(recipe: Recipe, dataset: Dataset, say: Say) -> None:
    """Read each agent's results as the build will, and say how that was."""
    for config in recipe.agents:
        assert isinstance(config, DetectionsConfig)
        agent = DetectionsAgent(config)
        agent.check(dataset, ["boxes"])
        used, boxes = set(agent.boxes.label.tolist()), agent.boxes
        looked = int(agent.looked_at.sum())
        scores = f", scores {boxes.score.min():.3g} to {boxes.score.max():.3g}" if len(boxes.score) else ""
        counts = f"{len(boxes.label):,} detections on {looked:,} of {len(dataset):,} images, {len(used)} classes"
        say(f"{config.name}: {config.file.name}, {counts}{scores}")
        if config.categories != "ids":
            first, last = int(config.categories == "from_1"), len(dataset.classes) - (config.categories == "from_0")
            say(f"  labels count the classes: {first} is {dataset.classes[0]!r}, {last} is {dataset.classes[-1]!r}")
        meant = {"pixels": "pixels from the corner", "pixels_from_1": "pixels from 1, the last one covered named"}
        say(f"  coordinates are {meant.get(config.coordinates, 'shares of width and height')} (--coordinates)")
        for remark in agent.remarks:
            say(f"  {remark}")
        if looked < len(dataset) and not config.partial:
            say(f"  images on which it found nothing: {len(dataset) - looked:,} (--partial: it has no answer there)")
