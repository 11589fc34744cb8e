"""What a file of detections calls images and classes, and which of the dataset's these are."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

from l2d.cache_builder.agents._detection_config import DetectionsConfig
from l2d.cache_builder.agents._detection_files import DetectionFile, Found
from l2d.cache_builder.agents._labels import class_index
from l2d.data.errors import UsageError
from l2d.data.samples.dataset import Dataset

UNKNOWN, AMBIGUOUS = -1, -2  # in the place of an image's position


class ImageNames:
    """Positions of images by what names them."""

    def __init__(self, file: DetectionFile, found: Found, config: DetectionsConfig, dataset: Dataset):
        self.file, self.found, self.dataset = file, found, dataset
        self.match, self.others = config.match, config.others
        self.files = _file_names(dataset)
        if self.match != "id" and self.files is None:
            raise UsageError(
                f"match = {self.match!r}, but the dataset does not name files", where=f"agent {file.agent!r}"
            )
        self.known = self._names(self.match)

    def _names(self, match: str) -> dict[str, int]:
        """Name -> position; :data:`AMBIGUOUS` for a name that two images have."""
        known: dict[str, int] = {}

        def add(name: str, position: int) -> None:
            known[name] = AMBIGUOUS if known.get(name, position) != position else position

        if match == "id":
            if "image_id" in self.dataset.columns.columns:
                for position, name in enumerate(self.dataset.columns["image_id"].to_list()):
                    add(str(name), position)
            return known | {name: position for position, name in enumerate(self.dataset.ids)}
        for position, name in enumerate(self.files or ()):
            path = PurePath(name)
            for form in {path.as_posix(), path.name} if match == "file_name" else {path.stem}:
                add(form, position)
        return known

    def position(self, name: str | int, file_name: str | None, row: int) -> int:
        """Which sample an image is, :data:`UNKNOWN` if it is none and may be left out."""
        if self.match == "id":
            found = self.known.get(str(name), UNKNOWN)
            if found >= 0 and file_name is not None and self.files is not None:
                self._agree(name, file_name, found, row)
        else:
            text = str(name) if file_name is None else file_name
            path = PurePath(text)
            forms = (path.as_posix(), path.name) if self.match == "file_name" else (path.stem, path.name)
            found = next((self.known[form] for form in forms if form in self.known), UNKNOWN)
        if found == AMBIGUOUS:
            what = "image_id" if self.match == "id" else self.match
            self._refuse(f"two images of the dataset have the {what} {name}", row, "use sample ids, train/17")
        if found == UNKNOWN and self.others == "refuse":
            self._refuse(f"image {name!r} is not in the dataset", row, self._advice())
        return found

    def _agree(self, name: str | int, file_name: str, position: int, row: int) -> None:
        own = self.files[position]
        if PurePath(own).stem != PurePath(file_name).stem:
            self._refuse(
                f"image_id {name} is {own} in the dataset, and file_name says {file_name}",
                row,
                'match = "file_name" goes by the file, and "stem" by its name without suffix; or correct the ids',
            )

    def _advice(self) -> str:
        """Which way of matching would find most of the file's images."""
        found, best, most = self.found, None, 0
        for match in ("id", "file_name", "stem"):
            if match == self.match or (match != "id" and self.files is None):
                continue
            known = self._names(match)
            names = [str(file or name) for name, file in zip(found.image, found.file_name, strict=True)]
            names = names if match == "id" else [PurePath(text).name for text in names]
            hits = sum(known.get(text, UNKNOWN) >= 0 for text in names)
            if hits > most:
                best, most = match, hits
        if best is not None:
            return f'match = "{best}" finds {most:,} of {len(found.image):,}'
        shown = self.dataset.ids[0] if self.match == "id" else self.files[0]
        return f'they are named like {shown!r}; others = "drop" leaves out what is on other images'

    def _refuse(self, what: str, row: int, hint: str) -> None:
        self.file.refuse(what, row, hint)


class LabelNames:
    """Classes by the labels of detections."""

    def __init__(self, file: DetectionFile, found: Found, config: DetectionsConfig, dataset: Dataset):
        self.file, self.found, self.config, self.dataset = file, found, config, dataset
        texts = config.file.is_dir() and config.categories != "ids"
        self.by_id = texts or (config.file.suffix.lower() == ".json" and not found.names)
        if self.config.categories != "ids" and not self.by_id:
            raise UsageError(
                f"categories = {self.config.categories!r}, but the labels of this file are names",
                where=f"agent {self.config.name!r}",
                hint="leave it out; `labels` maps other names",
            )

    def index(self, position: np.ndarray) -> np.ndarray:
        """Index of the class of each detection (m,), -1 for what is none and may be left out.

        Args:
            position: of the image of each detection (m,), negative where the dataset has it not.
        """
        found = self.found
        sets = self._sets(position)
        known: dict[tuple[int, object], int] = {}
        taken: dict[
            tuple[int, int], tuple[object, bool]
        ] = {}  # (set, class) -> its label, and whether `labels` says so
        result = np.full(len(found.label), -1, dtype=np.int64)
        for row, label in enumerate(found.label):
            if label is None:
                continue
            key = (int(sets[row]), label)
            if key not in known:
                known[key] = self._class(label, key[0], row)
                self._once(taken, key, known[key], row)
            result[row] = known[key]
        return result

    def _sets(self, position: np.ndarray) -> np.ndarray:
        """Which set of the dataset the image of each detection is in, where sets have ids of their own; else 0."""
        of = self.dataset.inputs.get("category_ids_of")
        if not of:
            return np.zeros(len(position), dtype=np.int64)
        names = list(of)
        own = np.array([names.index(source) for source in self.dataset.columns["source"].to_list()])
        return np.where(position >= 0, own[position], 0)

    def _ids(self, which: int) -> dict[str, int]:
        """Category ids as text -> class, in one set of the dataset."""
        if self.config.categories != "ids":
            first = int(self.config.categories == "from_1")
            return {str(k + first): k for k in range(len(self.dataset.classes))}
        of = self.dataset.inputs.get("category_ids_of")
        ids = list(of.values())[which] if of else self.dataset.inputs.get("category_ids", ())
        return {str(category): k for k, category in enumerate(ids) if category is not None}

    def _class(self, label: str | int, which: int, row: int) -> int:
        name, found = str(label), self.found
        if name in self.config.labels:
            return self.dataset.classes.index(self.config.labels[name])
        if self.by_id:
            result = self._ids(which).get(name, -1)
            if "0" in self.config.labels and "0" not in self._ids(which):
                self.file.refuse(
                    f"`labels` maps category_id 0, which is not one of the dataset's, and does not name {label}",
                    row,
                    'a file that counts from 0 needs all of its ids there, or categories = "from_0"',
                )
            if result < 0:
                self._refuse_counted_from_0(which, row)
        else:
            own = found.names.get(name, name)
            result = int(class_index([own], self.dataset.classes, self.config.labels)[0])
        if result < 0 and self.config.others == "refuse":
            shown = f"category_id {label}" if self.by_id else f"label {found.names.get(name, label)!r}"
            self.file.refuse(
                f"{shown} is not one of the dataset's",
                row,
                f'map it, labels = {{ "{label}" = "{self.dataset.classes[0]}" }}, or leave such out: others = "drop"',
            )
        return result

    def _refuse_counted_from_0(self, which: int, row: int) -> None:
        """A file that counts categories from 0 where the dataset does not would be read one class off."""
        own, count = self._ids(which), len(self.dataset.classes)
        present = {str(label) for label in self.found.label if label is not None} - self.config.labels.keys()
        numbers = {int(label) for label in present}
        if "0" in present and "0" not in own and max(numbers) < count:
            self.file.refuse(
                f"category_id 0 is not one of the dataset's ({', '.join(list(own)[:5])} …): the file seems to count "
                "from 0",
                row,
                f'categories = "from_0" reads 0 as {self.dataset.classes[0]!r}, 1 as '
                f"{self.dataset.classes[min(1, count - 1)]!r} …; else name every id in `labels`",
            )

    def _once(self, taken: dict, key: tuple[int, object], found: int, row: int) -> None:
        """Refuse that two ids are one class where `labels` says so of one and the dataset of the other."""
        if found < 0 or not self.by_id:
            return
        label, mapped = key[1], str(key[1]) in self.config.labels
        before = taken.setdefault((key[0], found), (label, mapped))
        if before[1] != mapped:
            self.file.refuse(
                f"category_id {before[0]} and {label} would both be {self.dataset.classes[found]!r}, one by `labels` "
                "and one by the dataset's ids",
                row,
                'name both in `labels` if that is meant; categories = "from_0" counts all classes from 0',
            )


def _file_names(dataset: Dataset) -> list[str] | None:
    """The file of each image as its publisher names it; None where images are not files."""
    if "file_name" in dataset.columns.columns:
        return dataset.columns["file_name"].to_list()
    return None if dataset.images is None else [path.name for path in dataset.images]
