"""Anything else: a function of the user's own, which may call a network, an API or a database."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from l2d.cache_builder.agents._base import Agent, AgentConfig, file_digest
from l2d.cache_builder.agents._labels import LabelList, class_labels, names_of
from l2d.cache_builder.agents._named_boxes import boxes_of
from l2d.cache_builder.agents._options import option_files, require_files, resolved
from l2d.cache_builder.agents._summary import summary_of_detections
from l2d.cache_builder.agents._user_modules import (
    FACTORY,
    FromSource,
    beside,
    defines,
    find_factory,
    make,
    modules_beside,
    own_files,
    run_safely,
)
from l2d.cache_builder.answers import NOTES, Answers
from l2d.data.cache.schema import NO_ANSWER
from l2d.data.errors import AgentFailure, UsageError, nearest
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Batch, Dataset

KEYS = {"cla", "prob", "reg", "text", "boxes", "features", *NOTES}  # of what the function returns


class PythonConfig(AgentConfig):
    """``kind = "python"``: ``file`` defines ``function(batch, **options)`` returning a dict of arrays.

    Or ``factory = "package.module:name"``, a function or class: ``name(**options)``, called once, gives the callable
    that is asked, and loads what takes time. The module is one that is installed, or lies beneath ``path`` (the
    recipe's folder). Files and modules may import others that lie beside them; these count as part of the agent.

    ``batch`` is a :class:`l2d.data.samples.dataset.Batch`; the dict has ``cla`` or ``prob``, ``reg``, and ``text`` (a
    list of texts), as the tasks require; or, for images, ``boxes``: a list with one ``{"boxes": (k, 4), "labels": (k,),
    "scores": (k,)}`` an image, corners in pixels and labels as class indices, as positions in ``labels``, or as names.
    With ``features = ["features"]`` it also has ``features`` (n, width), the rejector's input; ``["detections"]`` is
    the summary of its boxes. ``seconds`` and ``paid`` (n,) say how long each answer took and what it cost. With
    ``partial = true`` the agent need not answer every sample: where a value is None or NaN (an image's ``boxes`` None)
    it has no answer and is unavailable. The file is run, so treat it like any program: use only your own.
    """

    kind: Literal["python"]
    file: Path | None = None
    """A file that defines the function."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "ask"
    """Name of the function in `file`."""
    factory: Annotated[str, Field(pattern=FACTORY)] | None = None
    """Or `"module:name"`: called once with the options, it returns the function that is asked."""
    path: Path = Path(".")
    """Folder in which the factory's module is looked for first; the recipe's by default."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function or factory."""
    features: list[Literal["features", "detections"]] = []
    """What the first agent gives the rejector as input."""
    labels: LabelList | None = None
    """What the labels of its boxes stand for, in order; if not given, the dataset's classes."""
    label_map: dict[str, str] = {}
    """Its name of a class -> the dataset's: `{ human = "person" }`. COCO's names of VOC's classes are known."""
    min_score: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Boxes with a lower score are dropped."""
    partial: bool = False
    """None or NaN in an answer means that there is no answer, instead of a wrong one."""
    expected: Path | None = None
    """A file with a few answers that it has to give; they are compared before the build."""
    version: str = ""
    """If given, a new version means new answers, whatever the code says. Otherwise the content of the files does."""

    @model_validator(mode="after")
    def _file_or_factory(self):
        if (self.file is None) == (self.factory is None):
            raise ValueError("give `file`, or `factory`")
        return self


class PythonAgent(Agent):
    config: PythonConfig
    timed = True
    can_answer = ("cla", "reg", "text", "boxes")
    can_show = ("features", "detections")
    unfingerprinted: ClassVar[set[str]] = Agent.unfingerprinted | {"path"}
    reads = ("features", "tokens", "target_cla", "target_reg", "target_boxes", "target_text", "images", "pixels")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        path = self.config.file
        self._labels(dataset)
        require_files(self.config.options, self.config._folder, self.config.name)
        if path is None:
            find_factory(self.config.factory, self.config.path, self.config.name)
        elif not path.is_file():
            raise UsageError(
                f"agent {self.config.name!r}: there is no such file",
                where=path,
                hint="relative paths are relative to the recipe",
            )
        elif not defines(path, self.config.function):
            raise self._lacks_function()

    def _labels(self, dataset: Dataset) -> np.ndarray | None:
        """Index of the dataset's class for each of ``labels``; None where labels are class indices."""
        config = self.config
        if config.labels is None:
            unknown = sorted(set(config.label_map.values()) - set(dataset.classes))
            if unknown:
                raise UsageError(
                    f"label_map: the dataset has no class {unknown[0]!r}",
                    where=f"agent {config.name!r}",
                    hint=nearest(unknown[0], dataset.classes, "it has"),
                )
            return None
        return class_labels(names_of(config.labels, dataset.classes), dataset.classes, config)

    def _lacks_function(self) -> UsageError:
        return UsageError(
            f"agent {self.config.name!r}: there is no function {self.config.function!r}",
            where=self.config.file,
            hint=f"define `def {self.config.function}(batch): return {{'cla': …}}`",
        )

    @property
    def _options(self) -> dict[str, Any]:
        return resolved(self.config.options, self.config._folder)

    @property
    def _folder(self) -> Path:
        """Where modules that lie beside the agent's own are looked for."""
        return self.config.path if self.config.file is None else self.config.file.parent

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        config = self.config
        self.classes, self.positions = dataset.classes, self._labels(dataset)
        if config.file is not None:
            with run_safely(config.name, "its file", config.file, config.file.parent):
                self.function = self._defined()
            return
        self.function = make(config.factory, config.path, self._options, config.name)
        if not callable(self.function):
            raise UsageError(
                f"agent {config.name!r}: the factory made {type(self.function).__name__}, which cannot be called",
                where=f"factory = {config.factory!r}",
                hint="return a function of a batch",
            )

    def _defined(self) -> Callable:
        """The function that the file defines, ready to be given a batch."""
        config = self.config
        loader = FromSource(f"l2d_agent_{config.name}", str(config.file))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(module)
        if not callable(getattr(module, config.function, None)):
            raise self._lacks_function()
        return partial(getattr(module, config.function), **self._options)

    def ask(self, batch: Batch) -> Answers:
        with beside(self._folder):  # for imports inside the function
            found = self.function(batch)
        if not isinstance(found, dict) or not found or set(found) - KEYS:
            shown = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise AgentFailure(
                f"agent {self.config.name!r} returned {shown}",
                where=f"the batch from sample {batch.ids[0]!r} to {batch.ids[-1]!r}",
                hint="return a dict of cla, prob, reg, text, boxes, features",
            )
        if "boxes" in found:
            try:
                found = {**found, **self._boxes(found["boxes"])}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AgentFailure(
                    f"agent {self.config.name!r} returned boxes of another form: {error!r}",
                    where=f"the batch from sample {batch.ids[0]!r} to {batch.ids[-1]!r}",
                    hint="one dict an image: boxes (k, 4), labels (k,), scores (k,)",
                ) from error
        if "detections" in self.config.features:
            found = {**found, "features": self._shown(found, batch)}
        return Answers(**found)

    def _shown(self, found: dict[str, Any], batch: Batch) -> np.ndarray:
        """The rejector's input where the summary of its boxes is part of it, (n, width)."""
        if "boxes" not in found:
            raise AgentFailure(
                f"agent {self.config.name!r} returned no boxes to summarise",
                where=f"the batch from sample {batch.ids[0]!r} to {batch.ids[-1]!r}",
                hint='features = ["detections"] is for detectors; leave it out',
            )
        area = (batch.columns["width"] * batch.columns["height"]).to_numpy()
        summary = summary_of_detections(found["boxes"], area, len(self.classes))
        return np.hstack([found["features"], summary]) if "features" in self.config.features else summary

    def _boxes(self, images: list[dict | None]) -> dict[str, Any]:
        """Detections; of a partial agent, None instead of an image's is no answer."""
        images = [one if one is None else self._ours(one) for one in images]
        if not self.partial or all(one is not None for one in images):
            return {"boxes": Boxes.from_images(images)}
        nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "scores": np.zeros(0)}
        gaps = np.array([NO_ANSWER if one is None else None for one in images], dtype=object)
        return {"boxes": Boxes.from_images([nothing if one is None else one for one in images]), "failure": gaps}

    def _ours(self, image: dict) -> dict:
        """An image's boxes of the dataset's classes, labels as their indices."""
        config = self.config
        return boxes_of(image, self.classes, self.positions, config.label_map, config.min_score)

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """Any column may have been read. Files count by their content, unless a ``version`` speaks for them."""
        config, fields = self.config, super().fingerprint(dataset)
        for name in ("labels", "label_map", "min_score"):  # came after caches had been built
            if not fields[name]:
                del fields[name]
        named = {} if config.version else option_files(config.options, config._folder)
        if named:
            fields["option_files"] = named
        fields |= dataset.column_digests()
        if config.factory is not None:
            fields["file"] = None if config.version else own_files(config.factory, config.path)
            return fields
        by_content = file_digest(config.file) if config.file.is_file() else None
        fields["file"] = config.file.name if config.version else by_content
        imported = [] if config.version or by_content is None else modules_beside(config.file, self._folder)
        if imported:
            fields["imports"] = {str(path.relative_to(self._folder)): file_digest(path) for path in imported}
        return fields
