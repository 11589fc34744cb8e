"""Decisions as OpenTelemetry spans, named as OpenInference names calls of decision models (extra ``otel``).

Names: https://arize-ai.github.io/openinference/spec/spans/decision.html (kind ``DECISION``, ``decision.*``) and
OpenTelemetry's ``gen_ai.operation.name``. What neither has a name for begins with ``l2d.``. Inputs are left out unless
they are asked for. Where spans go is the program's own matter: a provider that it has set, or the environment
variables that OpenTelemetry documents; without either they go nowhere, and cost next to nothing.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.serving.decision import Decision

if TYPE_CHECKING:
    from l2d.rejector.served import Served

_text = json.JSONEncoder(ensure_ascii=False, default=str).encode


class Spans:
    """Makes a span of each decision of one run.

    Args:
        run: that decides.
        inputs: whether spans have them.
        provider: of tracers; the program's own if None.

    Raises:
        UsageError: OpenTelemetry is not installed.
    """

    def __init__(self, run: Served, *, inputs: bool = False, provider: Any = None):
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise UsageError(f"spans need the package {error.name}", hint="pip install 'l2d[otel]'") from error
        self._tracer = trace.get_tracer("l2d", tracer_provider=provider)
        self._inputs = inputs
        self._facts = {
            "openinference.span.kind": "DECISION",
            "gen_ai.operation.name": "decision",
            "decision.system": "l2d",
            "decision.model_name": run.run_id,
            "l2d.run.digest": run.digest,
        }

    def made(self, decision: Decision, row: Any = None) -> None:
        """A span of a decision that has just been made: it ends now, and began as long ago as deciding took."""
        end = time.time_ns()
        span = self._tracer.start_span("decision", start_time=end - int(decision.seconds * 1e9))
        if span.is_recording():
            span.set_attributes(self._facts | self._attributes(decision))
            if self._inputs and row is not None:
                plain = row.tolist() if isinstance(row, np.ndarray) else row
                span.set_attribute("input.value", plain if isinstance(plain, str) else _text(plain))
                span.set_attribute("input.mime_type", "text/plain" if isinstance(plain, str) else "application/json")
        span.end(end)

    def _attributes(self, decision: Decision) -> dict[str, Any]:
        said = decision.to_json()
        if not self._inputs:  # what an agent answered may say as much as the input
            said.pop("answer", None)
        found = {
            "output.value": _text(said),
            "output.mime_type": "application/json",
            "l2d.decision.agent": decision.agent,
            "l2d.decision.ranked": list(decision.ranked),
            "l2d.decision.propensity": decision.propensity,
            "l2d.decision.explored": decision.explored,
            "l2d.decision.price": decision.price,
            "l2d.decision.id": decision.id,
            "l2d.decision.asked": list(said["asked"]) if "asked" in said else None,
            "l2d.decision.done": said.get("done"),
        }
        return {name: value for name, value in found.items() if value is not None}


def exporting_provider() -> Any:
    """A provider that sends spans where OpenTelemetry's environment variables say (OTLP over HTTP); shut it down.

    Raises:
        UsageError: OpenTelemetry's SDK or exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(f"spans need the package {error.name}", hint="pip install 'l2d[otel]'") from error
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "l2d"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
