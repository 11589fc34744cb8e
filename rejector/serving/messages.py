"""Requests and answers of the server, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any

_INPUT: dict[str, Any] = {
    "description": "Column -> value, null where one is missing; or a text, where that is all the rejector looks at.",
    "oneOf": [{"type": "object"}, {"type": "string"}],
    "examples": [{"age": 71, "ward": "b", "creatinine": None}],
}
_LIMITS: dict[str, Any] = {
    "available": {
        "type": "array", "items": {"type": "string"}, "description": "Agents that can be asked now. Default: all."
    },
    "cap": {"type": "number", "minimum": 0, "description": "The most that the answer may be priced at."},
    "reason": {"type": "boolean", "default": False, "description": "Say which features moved the choice."},
}  # fmt: skip
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_DECISION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "Of the record in the log, for /feedback; absent without a log."},
        "agent": {"type": ["string", "null"], "description": "Which to ask; null: none can be."},
        "ranked": {"type": "array", "items": {"type": "string"}, "description": "In the order in which to try them."},
        "costs": {"anyOf": [_NUMBERS, {"type": "null"}], "description": "Predicted total cost of each agent."},
        "scores": {**_NUMBERS, "description": "Of each agent; larger is better."},
        "price": {"type": ["number", "null"], "description": "Of the answer."},
        "propensity": {"type": "number", "description": "Probability with which this agent was to be chosen."},
        "explored": {"type": "boolean", "description": "Drawn at random."},
        "reason": {"type": "string"},
        "done": {"type": "boolean", "description": "Of a policy that may ask several agents: the decision is made."},
        "asked": {"type": "array", "items": {"type": "string"}, "description": "Of a policy: who has answered."},
        "answer": {"description": "Of a policy: the answer, once the decision is made; null: none is given."},
        "answered_by": {"type": ["string", "null"], "description": "The agent whose it is, or how several make it."},
        "expected_cost": {"type": ["number", "null"], "description": "Of the answer, or of all that follows."},
    },
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {"type": "object", "properties": {name: {"type": "string"} for name in ("what", "where", "next")}}
    },
}
_REFUSALS = {
    400: "Not JSON, or an argument is wrong.",
    401: "No key.",
    404: "No such decision.",
    409: "Another agent is asked now, or none.",
    413: "The body is too large.",
    422: "A column or value cannot be used.",
    503: "Busy: try again.",
}


def _shown(
    summary: str, answer: dict[str, Any] | None, body: dict[str, Any] | None = None, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    kind = "application/json" if answer is not None else "text/plain"
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": {kind: {"schema": answer or {}}}}}
    extra: dict[str, Any] = {"responses": responses}
    if body is not None:
        schema = {"type": "object", "properties": body, "required": list(needed), "additionalProperties": False}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        for status, text in _REFUSALS.items():
            responses[str(status)] = {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    return {"summary": summary, "openapi": extra}


ROUTE = _shown(
    "Which agent to ask about an input",
    _DECISION,
    {"input": _INPUT, "id": {"type": "string", "description": "Your name of the input, for the log."}, **_LIMITS},
    ("input",),
)
BATCH = _shown(
    "The same of several inputs",
    {"type": "object", "properties": {"decisions": {"type": "array", "items": _DECISION}}},
    {"inputs": {"type": "array", "items": _INPUT, "minItems": 1}, **_LIMITS},
    ("inputs",),
)
NEXT = _shown(
    "An agent's answer: whom a policy asks next, or what it answers",
    _DECISION,
    {
        "id": {"type": "string", "description": "Of the decision."},
        "answer": {"description": "A class, class probabilities, a number, or `cla` and `reg`; null: there is none."},
        "agent": {"type": "string", "description": "Whose answer it is: the same twice changes nothing."},
        "sure": {"type": "number", "minimum": 0, "maximum": 1, "description": "How sure the agent says it is."},
        "paid": {"type": "number", "minimum": 0, "description": "Price of the answer, in money."},
        "reason": _LIMITS["reason"],
    },
    ("id", "answer"),
)
FEEDBACK = _shown(
    "What the answer of a decision cost",
    {"type": "object", "properties": {"id": {"type": "string"}}},
    {
        "id": {"type": "string", "description": "Of the decision."},
        "cost": {"description": "Its loss, without query cost.", "oneOf": [{"type": "number"}, _NUMBERS]},
        "paid": {"type": "number", "description": "Price of the answer, in money."},
        "seconds": {"type": "number", "description": "That it took."},
    },
    ("id",),
)  # fmt: skip
HEALTH = _shown("Whether it is there, and which run it serves", {"type": "object"})
METRICS = _shown("Counters for Prometheus", None)
RELOAD = _shown("Open the run's folder again", {"type": "object"})

#: Path -> what it is.
SHOWN = {
    "/route": ROUTE, "/route/batch": BATCH, "/next": NEXT, "/feedback": FEEDBACK, "/reload": RELOAD, "/health": HEALTH,
    "/metrics": METRICS,
}  # fmt: skip
