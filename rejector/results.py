"""What the library returns about runs: rows that can be printed, put into a frame, or shown in a notebook.

What judges them loads torch, and is imported where it is shown: a policy of a run needs its folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from l2d.data.results import Shown
from l2d.rejector.runs.files import find_runs, one_run
from l2d.rejector.runs.run import Run, load_run

if TYPE_CHECKING:
    import polars as pl

    from l2d.rejector.evaluation.evaluation import Evaluation
    from l2d.rejector.policies.choose import Choice


@dataclass(frozen=True)
class Runs(Shown):
    """The runs of a sweep, in grid order.

    Attributes:
        folders: one a run.
        trained: how many of them were trained just now, the others being there already.
        seconds: that training took.
        left_out: samples that were not learnt from.
    """

    folders: list[Path]
    trained: int = 0
    seconds: float = 0.0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.folders)

    def __iter__(self) -> Iterator[Run]:
        return (load_run(folder) for folder in self.folders)

    def __getitem__(self, position: int) -> Run:
        return load_run(self.folders[position])

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "run": run.point.run_id,
                "method": run.point.method,
                "lambda": str(run.point.weights),
                "beta": run.point.beta_text,
                "nu": run.point.nu,
                "seed": run.point.seed,
                "best_epoch": run.rejector.best_epoch,
                "validation_risk": run.rejector.validation_risk,
            }
            for run in self
        ]

    def best(self, *targets: str, prefer: str | None = None) -> Path:
        """Folder of the run for a target such as ``"coverage>=0.6"``, chosen on validation."""
        return self.choose(*targets, prefer=prefer).run

    def choose(self, *targets: str, prefer: str | None = None) -> Choice:
        """As :meth:`best`, with the candidates and what the choice gives on test."""
        from l2d.rejector.policies.choose import Target, choose

        return choose(self.folders, [Target.parse(text) for text in targets], prefer=prefer)


@dataclass(frozen=True)
class Evaluations(Shown):
    """Evaluations of runs, a row each; :meth:`table` has the paper's table, the comparisons and the findings."""

    members: list[Evaluation]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.members)

    def __getitem__(self, position: int) -> Evaluation:
        return self.members[position]

    def rows(self) -> list[dict[str, Any]]:
        from l2d.rejector.evaluation.summary import flat_rows

        return flat_rows(self.members)

    def to_json(self) -> list[dict[str, Any]]:
        """A dictionary a run, settings together; docs/evaluation.md defines each key."""
        from l2d.rejector.evaluation.summary import settings_of

        return [evaluation.result for members in settings_of(self.members) for evaluation in members]

    def findings(self) -> list[str]:
        """Sentences: what was not beaten first, then what was."""
        from l2d.rejector.evaluation.summary import findings

        return [sentence for members in self._by_cache() for sentence in findings(members)]

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text
        from l2d.rejector.evaluation.summary import findings, tables

        parts = []
        for members in self._by_cache():
            parts += [table_text(rows, title=title) for title, rows in tables(members)]
            parts.append("\n".join(findings(members)))
        return "\n\n".join(parts)

    def _by_cache(self) -> list[list[Evaluation]]:
        found: dict[Path, list[Evaluation]] = {}
        for evaluation in self.members:
            found.setdefault(evaluation.cache.path, []).append(evaluation)
        return list(found.values())


@dataclass(frozen=True)
class Theory(Shown):
    """Why a rejector falls short: ``section`` is the JSON object users see."""

    section: dict[str, Any]

    @property
    def verdict(self) -> str:
        return self.section["verdict"]

    def rows(self) -> list[dict[str, Any]]:
        from l2d.rejector.theory.section import theory_rows

        return list(theory_rows(self.section))

    def to_json(self) -> dict[str, Any]:
        return self.section

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text
        from l2d.rejector.theory.section import shown_parts

        parts = [table_text(rows, title=title) for title, rows in shown_parts(self.section).items()]
        return "\n\n".join([*parts, "\n".join([*self.section["notes"], "", self.verdict])])

    def write_figure(self, path: Path | str) -> None:
        """Write the figure: a .png or .svg file."""
        from l2d.data.cache.store import commit_bytes
        from l2d.rejector.report.export import picture
        from l2d.rejector.report.figures.theory import theory_figure

        path = Path(path)
        drawn = picture([theory_figure(self.section)], path.suffix.lower().lstrip(".") or "png")
        commit_bytes(path, drawn, replace=True)


@dataclass(frozen=True)
class QueryRows(Shown):
    """The rows of a query; ``arrow`` is the table."""

    arrow: pa.Table

    def __len__(self) -> int:
        return len(self.arrow)

    def rows(self) -> list[dict[str, Any]]:
        return self.arrow.to_pylist()

    @cached_property
    def _frame(self) -> pl.DataFrame:
        import polars as pl

        frame = pl.from_arrow(self.arrow)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def frame(self) -> pl.DataFrame:
        return self._frame


def folders_of(runs: Any) -> list[Path]:
    """Folders of runs: of a sweep's result, of a run, or at and beneath paths.

    Raises:
        UsageError: there is no run at a path.
    """
    if isinstance(runs, Runs):
        return list(runs.folders)
    if isinstance(runs, Run):
        return [runs.path]
    if isinstance(runs, str | Path):
        return find_runs(Path(runs))
    return [folder for each in runs for folder in folders_of(each)]


def one_folder(run: Any) -> list[Path]:
    """The folder of one run, likewise; several are left to the caller to refuse."""
    return [one_run(Path(run))] if isinstance(run, str | Path) else folders_of(run)
