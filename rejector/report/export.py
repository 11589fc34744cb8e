"""Figures as files: PNG or SVG, drawn by the same Vega-Lite that draws them in the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode

from l2d.data.cache import store
from l2d.data.errors import UsageError, nearest
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.report.figures import theme
from l2d.rejector.report.figures.rejectors import Figure, Panel, compare
from l2d.rejector.report.figures.sweep import sweep
from l2d.rejector.report.page import by_cache, figures_of
from l2d.rejector.report.script import VEGA_LITE
from l2d.rejector.report.shown import lay_out

WIDTH = 340  # of a panel without its labels, in pixels
MOST_COLUMNS = 4


def picture(figures: list[Figure], format: str) -> bytes:
    """Figures as one picture on white, a row (or more) of panels each.

    Args:
        format: ``png`` or ``svg``.

    Raises:
        UsageError: another format.
    """
    import vl_convert

    rows: list[dict[str, Any]] = []
    datasets: dict[str, Any] = {}
    for figure in figures:
        columns = min(len(figure.panels), MOST_COLUMNS)
        for start in range(0, len(figure.panels), columns):
            row = []
            for panel in figure.panels[start : start + columns]:
                datasets |= panel.spec.get("datasets", {})  # only a whole specification may have some
                drawn = {key: value for key, value in panel.spec.items() if key != "datasets"}
                row.append({**drawn, "title": panel.title, "width": WIDTH})
            rows.append({"hconcat": row, "spacing": 40})
    spec = {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.split('.')[0]}.json",
        "vconcat": rows,
        "datasets": datasets,
        "spacing": 36,
    }
    config = {**theme.config("light", font="sans-serif"), "background": "white", "padding": 16}
    convert: dict[str, Callable[..., bytes | str]] = {
        "png": vl_convert.vegalite_to_png,
        "svg": vl_convert.vegalite_to_svg,
    }
    if format not in convert:
        raise UsageError(f"there is no figure format {format!r}", hint=nearest(format, convert))
    more = {"scale": 1.6} if format == "png" else {}
    made = convert[format](spec, vl_version=VEGA_LITE, config=config, **more)
    return made if isinstance(made, bytes) else made.encode()


def write_picture(figure: Figure, out: Path) -> None:
    """Write one figure: a .png or .svg file; it is replaced."""
    store.commit_bytes(out, picture([figure], out.suffix.lower().lstrip(".") or "png"), replace=True)


@debug_mode(False)
def write_figure(evaluations: list[Evaluation], out: Path) -> None:
    """Write one picture of the first cache, for a README or a slide: rejectors beside baselines, and the sweep.

    Args:
        out: a .png or .svg file; it is replaced.
    """
    layout = lay_out(by_cache(evaluations)[0])
    found = [figure for figure in (compare(layout), sweep(layout)) if figure is not None]
    found = [replace(figure, panels=_three(figure.panels)) for figure in found]
    store.commit_bytes(out, picture(found, out.suffix.lower().lstrip(".") or "png"), replace=True)


def _three(panels: list[Panel]) -> list[Panel]:
    """The panels that say most: of four, neither the differences nor a second metric."""
    less = [panel for panel in panels if panel.name != "difference"] if len(panels) > 3 else panels
    return less if len(less) <= 3 else [less[0], *less[-2:]]


def write_figures(
    evaluations: list[Evaluation], folder: Path, *, format: str = "png", by: list[str] | None = None
) -> list[Path]:
    """Write every figure of the page to a folder, ``CACHE-FIGURE.png`` or ``.svg``; returns the files."""
    written = []
    caches = by_cache(evaluations)
    names = [members[0].cache.record.name for members in caches]
    for number, members in enumerate(caches):
        name = names[number] if names.count(names[number]) == 1 else f"{names[number]}-{number + 1}"
        for figure in figures_of(lay_out(members), by):
            file = folder / f"{name}-{figure.name}.{format}"
            store.commit_bytes(file, picture([figure], format), replace=True)
            written.append(file)
    return written
