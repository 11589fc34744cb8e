"""Anything else: a function of the user's own, which may call a network, an API or a database."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data.boxes import Boxes
from data.dataset import Batch, Dataset
from data.errors import AgentFailure, UsageError
from data.schema import NO_ANSWER

from ..answers import NOTES, Answers
from .base import Agent, AgentConfig, file_digest


class PythonConfig(AgentConfig):
    """``kind = "python"``: ``file`` defines ``function(batch, **options)`` returning a dict of arrays.

    ``batch`` is a :class:`data.dataset.Batch`; the dict has ``cla`` or ``prob``, and ``reg``, as the tasks require; or,
    for images, ``boxes``: a list with one ``{"boxes": (k, 4), "labels": (k,), "scores": (k,)}`` an image, corners in
    pixels and labels as class indices. With ``features = ["features"]`` it also has ``features`` (n, width), the
    rejector's input. ``seconds`` and ``paid`` (n,) say how long each answer took and what it cost. With ``partial =
    true`` the agent need not answer every sample: where a value is None or NaN (an image's ``boxes`` None) it has no
    answer and is unavailable. The file is run, so treat it like any program: use only your own.
    """

    kind: Literal["python"]
    file: Path
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "ask"
    options: dict[str, Any] = {}
    partial: bool = False  # None or NaN in an answer is then no answer, instead of a wrong one
    version: str = ""  # if given, it tells answers apart instead of the file's content: change it when they change


class PythonAgent(Agent):
    config: PythonConfig
    timed = True
    can_answer = ("cla", "reg", "boxes")
    can_show = ("features",)
    reads = ("features", "target_cla", "target_reg", "target_boxes", "images")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        path = self.config.file
        if not path.is_file():
            raise UsageError(
                f"agent {self.config.name!r}: there is no such file",
                where=path,
                hint="relative paths are relative to the recipe",
            )

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        path = self.config.file
        loader = importlib.machinery.SourceFileLoader(f"l2d_agent_{self.config.name}", str(path))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise AgentFailure(
                f"agent {self.config.name!r}: its file fails: {error!r}",
                where=path,
                hint="fix it and run the same command again",
            ) from error
        if not callable(getattr(module, self.config.function, None)):
            raise UsageError(
                f"agent {self.config.name!r}: there is no function {self.config.function!r}",
                where=path,
                hint=f"define `def {self.config.function}(batch): return {{'cla': …}}`",
            )
        self.function = getattr(module, self.config.function)

    def ask(self, batch: Batch) -> Answers:
        found = self.function(batch, **self.config.options)
        if not isinstance(found, dict) or not found or set(found) - {"cla", "prob", "reg", "boxes", "features", *NOTES}:
            shown = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise AgentFailure(
                f"agent {self.config.name!r} returned {shown}",
                where=f"the batch from sample {batch.ids[0]!r} to {batch.ids[-1]!r}",
                hint="return a dict of cla, prob, reg, boxes, features",
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
        return Answers(**found)

    def _boxes(self, images: list[dict | None]) -> dict[str, Any]:
        """Detections; of a partial agent, None instead of an image's is no answer."""
        if not self.partial or all(one is not None for one in images):
            return {"boxes": Boxes.from_images(images)}
        nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "scores": np.zeros(0)}
        gaps = np.array([NO_ANSWER if one is None else None for one in images], dtype=object)
        return {"boxes": Boxes.from_images([nothing if one is None else one for one in images]), "failure": gaps}

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """Any column may have been read. The file counts by its content, unless a ``version`` speaks for it."""
        fields = super().fingerprint(dataset)
        fields |= {name: value for name, value in dataset.content.items() if name.startswith("column ")}
        by_content = file_digest(self.config.file) if self.config.file.is_file() else None
        fields["file"] = self.config.file.name if self.config.version else by_content
        return fields
