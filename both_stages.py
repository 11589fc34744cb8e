"""What takes both stages: photographs for a run that looks at what an agent makes of them.

The stages do not know each other; this lends the second what the first can do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from l2d.rejector.decisions.routing import PolicyRoute
    from l2d.rejector.route import RouteReport
    from l2d.rejector.rows.photographs import ToShow
    from l2d.rejector.runs.elsewhere import Beta


def shown_by_agents(device: str) -> Callable[[ToShow], Iterator[tuple[np.ndarray, list[str | None]]]]:
    """How the agents of a recipe are run on photographs, on a device: auto, cpu, cuda …"""

    def show(wanted: ToShow) -> Iterator[tuple[np.ndarray, list[str | None]]]:
        from l2d.cache_builder.showing import shown_features
        from l2d.data.device import resolve_device

        return shown_features(
            wanted.files,
            wanted.ids,
            agent=wanted.agent,
            fingerprint=wanted.fingerprint,
            recipe=wanted.recipe,
            cache=wanted.cache,
            at_once=wanted.at_once,
            device=resolve_device(device),
        )

    return show


def route(
    run: Any,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    id_column: str | None = None,
    policy: Path | str | None = None,
    answers: Path | str | None = None,
    without: Collection[str] = (),
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    calibration: Path | str | None = None,
    recipe: Path | str | None = None,
    device: str = "auto",
    images: Path | str | None = None,
    overwrite: bool = False,
    progress: Callable[[int | None], Callable[[int], None]] | None = None,
) -> RouteReport | PolicyRoute:
    """Allocate new inputs; see :func:`l2d.rejector.route.route`.

    ``source`` is a table, a cache, or photographs: an image file, a folder of them, or several of either. Where the run
    looks at what an agent makes of a photograph, that agent is run, as ``recipe`` describes it (by default the file
    beside the run's cache that is named as the cache is), on ``device``. Where a cache keeps no images, ``images``
    is the folder of their files.

    With a policy of the decision engine a round of it, see :func:`l2d.rejector.decisions.routing.route_policy`:
    ``answers`` are those so far.

    ``beta`` and ``weights`` are as in :func:`sweep`: a run of method ``best`` takes others than it was trained at.
    ``calibration`` is a file of :func:`recalibrate`.
    """
    from l2d.rejector.at_work import route as routed
    from l2d.rejector.rows.photographs import Showing

    return routed(
        run,
        source,
        out,
        id_column=id_column,
        policy=policy,
        answers=answers,
        without=without,
        beta=beta,
        weights=weights,
        calibration=calibration,
        showing=Showing(shown_by_agents(device), None if recipe is None else Path(recipe)),
        images=images,
        overwrite=overwrite,
        progress=progress,
    )
