"""MLflow: a run as a model of flavour ``pyfunc`` (package ``mlflow`` or ``mlflow-skinny``, with pandas).

The model is this file, and its data the run's folder (MLflow's "models from code"), so that nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext

from l2d.rejector.runs.files import one_run

if TYPE_CHECKING:
    import pandas as pd


class RunModel(PythonModel):
    """Decides about each row of a table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the run."""
        from l2d.rejector.serving.opening import load_router

        self.router = load_router(context.artifacts["run"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row a row: ``agent``, ``price``, and ``score_AGENT`` of each.

        Args:
            model_input: the columns that the run looks at; missing values are null.
            params: ``available`` (agents, comma-separated) and ``cap``.
        """
        import pandas as pd
        import polars as pl

        asked = params or {}
        available = asked["available"].split(",") if asked.get("available") else None
        rows = pl.from_pandas(model_input).to_dicts()
        decisions = self.router.route_batch(rows, available=available, cap=asked.get("cap"))
        return pd.DataFrame(
            [
                {"agent": one.agent, "price": one.price}
                | {f"score_{name}": float(score) for name, score in zip(one.agents, one.scores, strict=True)}
                for one in decisions
            ]
        )


def save(run: Any, path: Path | str, **options: Any) -> None:
    """Write a run as an MLflow model; ``options`` of ``mlflow.pyfunc.save_model``.

    Args:
        run: a run, or its folder.
        path: a folder that is not there yet.
    """
    folder = one_run(Path(getattr(run, "path", run)))
    mlflow.pyfunc.save_model(str(path), python_model=__file__, artifacts={"run": str(folder)}, **options)


if __name__ != "l2d.rejector.serving.adapters.mlflow_model":  # MLflow runs this file to have the model
    mlflow.models.set_model(RunModel())
