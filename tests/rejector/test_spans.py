"""Spans of decisions, as OpenTelemetry's own SDK exports them, under the names that OpenInference publishes."""

from __future__ import annotations

import json

import pytest

import l2d
from l2d.data.errors import UsageError

ROW = {"x1": 1.0, "x2": None, "ward": "a"}


@pytest.fixture
def traced():
    """A provider, and what it exports."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def test_a_decision_is_a_span(patient_runs, tmp_path, traced):
    provider, exporter = traced
    with l2d.DecisionLog(tmp_path / "log") as log:
        router = l2d.load_router(patient_runs / "best", trace=provider, log=log)
        decision = router.route(ROW)
        router.close()
    (span,) = exporter.get_finished_spans()
    found = dict(span.attributes)
    assert span.name == "decision"
    assert found["openinference.span.kind"] == "DECISION"
    assert found["gen_ai.operation.name"] == "decision"
    assert (found["decision.system"], found["decision.model_name"]) == ("l2d", router.run.run_id)
    assert (found["l2d.decision.agent"], found["l2d.decision.id"]) == (decision.agent, decision.id)
    assert (found["l2d.decision.ranked"], found["l2d.decision.propensity"]) == (decision.ranked, 1.0)
    assert json.loads(found["output.value"]) == json.loads(json.dumps(decision.to_json()))
    assert "input.value" not in found
    assert span.end_time - span.start_time == pytest.approx(decision.seconds * 1e9, abs=1e4)


def test_names_are_those_that_openinference_publishes(patient_runs, traced):
    semconv = pytest.importorskip("openinference.semconv.trace")
    provider, exporter = traced
    l2d.load_router(patient_runs / "best", trace=provider, keep_inputs=True).route(ROW)
    (span,) = exporter.get_finished_spans()
    names = semconv.SpanAttributes
    published = {
        names.OPENINFERENCE_SPAN_KIND: semconv.OpenInferenceSpanKindValues.DECISION.value,
        names.INPUT_VALUE: json.dumps(ROW),
        names.INPUT_MIME_TYPE: semconv.OpenInferenceMimeTypeValues.JSON.value,
        names.OUTPUT_MIME_TYPE: semconv.OpenInferenceMimeTypeValues.JSON.value,
    }
    assert {name: span.attributes[name] for name in published} == published
    assert names.DECISION_MODEL_NAME in span.attributes


def test_each_answer_of_a_policy_is_a_span_within_the_program_s_own(patient_runs, tmp_path, traced):
    provider, exporter = traced
    l2d.policy(patient_runs / "best", ask="adaptive", save=tmp_path / "asks")
    router = l2d.load_router(tmp_path / "asks", trace=provider)
    with provider.get_tracer("mine").start_as_current_span("request") as mine:
        decision = router.route(ROW)
        while not decision.done:
            decision = router.next(decision, {"cla": "yes", "reg": 3.5})
    *spans, own = exporter.get_finished_spans()
    assert len(spans) == 1 + len(decision.asked)
    assert {span.parent.span_id for span in spans} == {mine.get_span_context().span_id} == {own.context.span_id}
    assert [span.attributes["l2d.decision.done"] for span in spans] == [False] * len(decision.asked) + [True]
    assert '"yes"' not in "".join(span.attributes["output.value"] for span in spans)


def test_what_is_missing_is_named(patient_runs, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UsageError) as told:
        l2d.load_router(patient_runs / "linear", trace=True)
    assert "l2d[otel]" in told.value.hint
