"""What the decision log keeps: one table of records, of which each says what kind it is.

``decision``: who could be asked about an input, their scores, who was chosen and with what probability. ``outcome``:
what the answer of a decision turned out to cost. ``inputs``: sums over the features of some hundred inputs, which tell
of drift and of no single input. ``step``: where a decision of a policy that may ask several agents stands after an
answer. ``fall``: the guard fell back to ``agent``, after ``rows`` outcomes. No input is kept unless that is asked for:
digests tell equal ones.
"""

from __future__ import annotations

import polars as pl

#: Column -> type, and in which records it is filled.
SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "kind": pl.String,
    "id": pl.String,  # of a decision; in an outcome, of the decision that it is of
    "time": pl.Int64,  # microseconds since 1970, UTC
    "run": pl.String,  # digest, see LOG/runs
    "input": pl.String,  # the caller's name of the input, if it gave one
    "input_digest": pl.String,
    "features_digest": pl.String,
    "candidates": pl.List(pl.Boolean),  # who could be asked; agents are in the run's order
    "scores": pl.List(pl.Float32),
    "agent": pl.Int32,  # that was chosen; null: none could be
    "greedy": pl.Int32,  # of the best score
    "propensity": pl.Float64,
    "explore": pl.Float64,  # share of decisions drawn at random
    "price": pl.Float64,
    "seconds": pl.Float64,  # the decision took; in an outcome, the answer
    "shadow_run": pl.String,
    "shadow": pl.Int32,  # what a second run would have chosen, in the order of the first; null: an agent of its own
    "row": pl.String,  # the input, if it is asked for
    "cost": pl.Float64,  # of an outcome: weighted over tasks, without query cost
    "paid": pl.Float64,
    "rows": pl.Int64,  # of inputs: how many
    "sums": pl.List(pl.Float64),
    "squares": pl.List(pl.Float64),
    "outside": pl.List(pl.Int64),  # beyond the range of training
    "step": pl.Int32,  # of a policy that may ask several agents: how many have answered
    "asked": pl.List(pl.Int32),  # which have, in order; `agent` is to be asked next, null: the decision is made
    "replied": pl.Int32,  # the agent that was asked before
    "silent": pl.Boolean,  # it had no answer
    "sure": pl.Float64,  # it says it is
    "answered_by": pl.String,  # once the decision is made: an agent, or how answers were combined
    "expected": pl.Float64,  # cost of that, or of asking and all that follows
    "answer": pl.String,  # as JSON, if inputs are asked for
}
DECISION, OUTCOME, INPUTS, STEP, FALL = "decision", "outcome", "inputs", "step", "fall"

PARTS, JOURNALS, RUNS = "parts", "journals", "runs"
