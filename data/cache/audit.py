"""Leakage audit of a cache: what test samples share with training ones, and agents that know the training split.

Everything is read once, part by part; of an input only a 64-bit digest is kept (two of a million different inputs fall
together with a probability of 3e-8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.audit_answers import ALONE, FEW, compared
from l2d.data.cache.audit_features import give_aways, row_numbers
from l2d.data.cache.audit_text import ALIKE, kept_texts, near_duplicates
from l2d.data.cache.audit_truth import told_truths
from l2d.data.cache.columns import dense_matrix, split_positions
from l2d.data.cache.reader import AgentRecord, CostCache
from l2d.data.errors import UsageError

#: Kinds of agents that the build fits on the training split, unless it is given their weights.
FITTED = ("two_head", "small_faster_rcnn")
ALARM = 0.001  # probability of any warning about an agent's costs if nothing leaks
COARSE = 0.5  # inputs of fewer distinct values than this share of the samples repeat without any leak
EXAMPLES = 3
MOST = 2_000_000  # samples that are looked at before a training: some seconds


@dataclass(frozen=True)
class Gap:
    """Mean raw cost of an agent on training and on test samples, and the difference's 95 % interval."""

    agent: str
    cost: str
    train: float
    test: float
    low: float
    high: float

    def row(self) -> dict:
        """As a row of a table."""
        return {
            "agent": self.agent,
            "cost": self.cost,
            "train": self.train,
            "test": self.test,
            "test - train": f"{self.test - self.train:+.4f}",
            "95 % interval": f"[{self.low:+.4f}, {self.high:+.4f}]",
        }


@dataclass(frozen=True)
class Finding:
    """One question of the audit and its answer.

    ``level`` is ``ok``, ``note`` (a fact to know) or ``warning`` (figures on test may be too good). ``samples`` counts
    the test samples concerned, where that can be said; ``examples`` are ids of some; ``gaps`` are an agent's.
    """

    check: str
    level: str
    what: str
    samples: int | None = None
    examples: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()

    def row(self) -> dict:
        """As a row of a table."""
        found = {"check": self.check, "level": self.level, "finding": self.what, "test samples": self.samples}
        return found | {"examples": ", ".join(self.examples)}


def audit(cache: CostCache, *, groups: tuple[str, ...] = ()) -> list[Finding]:
    """All checks: ids, groups, duplicated inputs, features that know too much, agents.

    Args:
        groups: kept columns whose values should not be in two splits, such as a patient's number. Intervals of agents'
            costs take the first one's values as the units that are independent.

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a part is damaged.
        UsageError: there is no such column.
    """
    cache.require_complete()
    samples = _Samples(cache, groups)
    findings = [_ids(samples), *(_group(samples, column) for column in groups)]
    findings += [_duplicates(samples, column) for column in samples.inputs]
    findings += [*_near(cache, samples), *_row_numbers(cache), *truths(cache), *_give_aways(cache), *answers(cache)]
    units = samples.groups[groups[0]] if groups else None
    return findings + _agents(cache, samples.split, units)


def leaks(cache: CostCache, inputs: Collection[str] = schema.INPUT_COLUMNS) -> list[Finding]:
    """The warnings about inputs: those that tell the truth, are duplicated or count the rows. Of agents only what they
    show is read, so it is cheap before a training.

    Args:
        inputs: those that are looked at for duplicates.

    Nothing is said of caches of more than :data:`MOST` samples, for which it would not be cheap.
    """
    if cache.record.num_samples > MOST:
        return []
    samples = _Samples(cache, (), inputs)
    findings = [*truths(cache), *(_duplicates(samples, column) for column in samples.inputs), *_row_numbers(cache)]
    return [finding for finding in findings if finding.level == "warning"]


class _Samples:
    """What is kept of every sample.

    Attributes:
        names: sample ids.
        split: position in :data:`schema.SPLITS`, int8 (n,).
        inputs: digests of each input column, uint64 (n,).
        targets: digest of class and value, uint64 (n,).
        groups: of each column asked for, number of the group, int64 (n,), -1 where it is null.
    """

    def __init__(self, cache: CostCache, groups: tuple[str, ...], looked_at: Collection[str] = schema.INPUT_COLUMNS):
        for column in groups:
            if column not in cache.record.keep:
                kept = ", ".join(cache.record.keep) or "none"
                hint = f"kept are: {kept}. Add it to `keep` in [dataset] and build again: no agent is asked again"
                raise UsageError(f"there is no kept column {column!r}", where=cache.address, hint=hint)
        known = cache.record.inputs  # also holds facts of the dataset that are not input columns, such as category_ids
        columns = [name for name in schema.INPUT_COLUMNS if name in known and name in looked_at]
        shown_by = {name: known[name].get("agent") for name in columns}
        self.names: list[str] = []
        split, targets = [], []
        inputs: dict[str, list] = {column: [] for column in columns}
        numbers: dict[str, dict] = {column: {} for column in groups}
        codes: dict[str, list] = {column: [] for column in groups}
        own = [column for column in columns if shown_by[column] is None]
        wanted = list(dict.fromkeys(["sample_id", "split", "target_cla", "target_reg", *own, *groups]))
        for chunk in range(cache.record.num_chunks):
            part = cache.samples(chunk, wanted)
            start = len(self.names)
            self.names += part["sample_id"].to_pylist()
            split.append(split_positions(part["split"]).astype(np.int8))
            truth = [name for name in ("target_cla", "target_reg") if name in part.column_names]
            targets.append(_combined([_digests(part[name], start) for name in truth], len(part)))
            for column in columns:
                agent = shown_by[column]
                shown = part if agent is None else cache.predictions(agent, chunk, [column])
                nothing = pa.chunked_array([pa.nulls(len(part), pa.binary())])  # it failed on the whole chunk
                inputs[column].append(_digests(shown[column] if column in shown.column_names else nothing, start))
            for column, seen in numbers.items():
                values = part[column].to_pylist()
                codes[column] += [-1 if v is None else seen.setdefault(v, len(seen)) for v in values]
        self.split, self.targets = np.concatenate(split), np.concatenate(targets)
        self.inputs = {column: np.concatenate(parts) for column, parts in inputs.items()}
        self.groups = {column: np.array(values, np.int64) for column, values in codes.items()}

    def shared(self, keys: np.ndarray) -> np.ndarray:
        """Test samples whose key a training or validation sample has too: positions."""
        test = np.flatnonzero(self.split == 2)
        return test[np.isin(keys[test], keys[self.split != 2])]

    def examples(self, rows: np.ndarray) -> tuple[str, ...]:
        return tuple(self.names[row] for row in rows[:EXAMPLES])


def _ids(samples: _Samples) -> Finding:
    """Ids in two splits, which no build makes; and ids that differ in case or blanks alone."""
    exact = samples.shared(np.unique(samples.names, return_inverse=True)[1])
    if len(exact):
        what = "test ids that are training or validation ids too"
        return Finding("ids", "warning", what, len(exact), samples.examples(exact))
    alike = samples.shared(
        np.unique(["".join(name.split()).casefold() for name in samples.names], return_inverse=True)[1]
    )
    if len(alike):
        what = "test ids that differ from a training or validation id in case or blanks alone"
        return Finding("ids", "warning", what, len(alike), samples.examples(alike))
    return Finding("ids", "ok", "no id is in two splits", 0)


def _group(samples: _Samples, column: str) -> Finding:
    codes = samples.groups[column]
    keys = np.where(codes < 0, -1 - np.arange(len(codes)), codes)  # a sample without a group is alone
    rows = samples.shared(keys)
    check, number = f"group {column}", codes.max(initial=-1) + 1
    if not len(rows):
        return Finding(check, "ok", f"none of {number:,} groups is in test and in another split", 0)
    split = len(np.unique(codes[rows]))
    what = f"{split:,} of {number:,} groups are in test and in another split: split by this column"
    return Finding(check, "warning", what, len(rows), samples.examples(rows))


def _duplicates(samples: _Samples, column: str) -> Finding:
    """Test samples with the very input of another split's sample."""
    keys = samples.inputs[column]
    rows = samples.shared(keys)
    check, distinct = f"duplicated {column}", len(np.unique(keys))
    if not len(rows):
        return Finding(check, "ok", "no test input is in another split", 0)
    same = samples.shared(_combined([keys, samples.targets], len(keys)))
    share = len(rows) / (samples.split == 2).sum()
    what = f"{share:.1%} of test inputs are in another split too, {len(same):,} of them with the same targets"
    if distinct < COARSE * len(keys):
        what += f"; there are only {distinct:,} distinct inputs of {len(keys):,}, so that may be chance"
        return Finding(check, "note", what, len(rows), samples.examples(rows))
    return Finding(check, "warning", what, len(rows), samples.examples(rows))


def _near(cache: CostCache, samples: _Samples) -> list[Finding]:
    """Kept texts of the test split that stand in another split with a few other words."""
    found = []
    kept = kept_texts(cache)
    for column in kept:
        near = near_duplicates(cache, column)
        check, share = f"near-duplicated {column}", len(near) / max(1, int((samples.split == 2).sum()))
        if not near:
            found.append(Finding(check, "ok", "no test text is like one of another split", 0))
            continue
        what = f"{share:.1%} of test texts have a near-duplicate in another split, which shares {ALIKE:.0%} of its "
        what += f"word triples or more (such as {near[0].test} and {near[0].other}, {near[0].alike:.0%})"
        examples = tuple(f"{pair.test} ~ {pair.other}" for pair in near[:EXAMPLES])
        found.append(Finding(check, "warning", what, len(near), examples))
    texts = [each["name"] for each in cache.record.inputs.get("features", {}).get("encoder") or () if "fitted" in each]
    if texts and not kept:
        what = (
            f"the text {texts[0]} is not kept, so near-duplicates are not looked for: keep its column, and build again"
        )
        found.append(Finding("near-duplicates", "note", what))
    return found


def _row_numbers(cache: CostCache) -> list[Finding]:
    """Features that know a sample's place in its file, which is often sorted by class, source or time."""
    if "features" not in cache.record.inputs:
        return []
    counting, growing = row_numbers(cache)
    if counting:
        what = f"{', '.join(counting)} counts the rows: a rejector learns the order of the file; leave it out"
        return [Finding("row numbers", "warning", what)]
    if growing:
        what = f"{', '.join(growing)} grows from each row to the next: an id or a time; is it known of new inputs?"
        return [Finding("row numbers", "note", what)]
    return [Finding("row numbers", "ok", "no feature counts the rows")]


def truths(cache: CostCache) -> list[Finding]:
    """Features that tell the truth, as a second column with the diagnosis does."""
    if "features" not in cache.record.inputs:
        return []
    ask = "is it known before an agent answers? If not, leave it out"
    return [
        Finding(f"feature {name}", "warning", f"alone it tells {what}; {ask}")
        for name, what in told_truths(cache).items()
    ]


def _give_aways(cache: CostCache) -> list[Finding]:
    """Features from which an agent's cost is known without it being asked."""
    if "features" not in cache.record.inputs:
        return []
    found: dict[str, list[str]] = {}
    for one in give_aways(cache):
        said = "which agent costs least" if one.agent is None else f"what {one.agent} costs"
        found.setdefault(one.feature, []).append(f"{said} ({one.share:.0%})")
    ask = "is it known before an agent answers?"
    return [
        Finding(f"feature {name}", "warning", f"alone it tells {', '.join(said)} on test samples; {ask}")
        for name, said in found.items()
    ] or [Finding("features", "ok", "none of them alone tells what an agent costs")]


def answers(cache: CostCache) -> list[Finding]:
    """Whether samples have the answers of several agents, where agents lack some."""
    found, total = compared(cache), cache.record.num_samples
    if found is None:
        return []
    if not found:
        return [Finding("answers", "warning", f"{ALONE}; have some inputs answered by several agents")]
    what = f"{found:,} of {total:,} samples have the answers of two agents or more"
    if found < FEW * total:
        return [Finding("answers", "note", f"{what}: only these show which agent is better on an input")]
    return [Finding("answers", "ok", what)]


def _agents(cache: CostCache, split: np.ndarray, units: np.ndarray | None) -> list[Finding]:
    """Whether an agent's raw costs are lower on training than on test samples, beyond chance.

    Welch's interval of the difference of means, over groups where ``units`` numbers them. The level of one comparison
    is Bonferroni's share of :data:`ALARM`.
    """
    columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
    alarm = NormalDist().inv_cdf(1 - ALARM / (len(cache.agents) * len(columns)))
    found = []
    for agent in cache.agents:
        parts = [cache.costs(agent.name, chunk, columns) for chunk in range(cache.record.num_chunks)]
        worst, gaps = -np.inf, []
        for column in columns:
            costs = np.concatenate([part[column].to_numpy().astype(np.float64) for part in parts])
            (test, error), (train, other) = (_mean(costs, split == k, units) for k in (2, 0))
            gap, deviation = test - train, float(np.hypot(error, other))
            if not np.isfinite(gap):
                continue  # no answer in one of the splits
            worst = max(worst, gap / deviation if deviation > 0 else (np.inf if gap > 0 else 0.0))
            half = 1.959964 * deviation
            gaps.append(Gap(agent.name, column, train, test, gap - half, gap + half))
        found.append(_about_agent(agent, worst > alarm, tuple(gaps)))
    return found


def _about_agent(agent: AgentRecord, cheaper: bool, gaps: tuple[Gap, ...]) -> Finding:
    fitted = agent.kind in FITTED and agent.fingerprint.get("weights") is None
    level = "warning" if cheaper else "note" if fitted else "ok"
    if fitted:
        what = "fitted by the build, on training samples unless the recipe has a set for that"
        what += "; it costs less there, so a rejector that learns there trusts it too much" if cheaper else ""
    else:
        what = "costs less on training samples: it may have seen their targets" if cheaper else "costs the same there"
    return Finding(f"agent {agent.name}", level, what, gaps=gaps)


def _mean(costs: np.ndarray, mask: np.ndarray, units: np.ndarray | None) -> tuple[float, float]:
    """Mean of the costs there are, and its standard error; NaN without any."""
    rows = np.flatnonzero(mask & ~np.isnan(costs))
    if not len(rows):
        return np.nan, np.nan
    mean = float(costs[rows].mean())
    residuals = costs[rows] - mean
    if units is not None:  # a ratio of sums over groups, linearised
        own: np.ndarray = np.where(units[rows] < 0, units.max() + 1 + rows, units[rows])
        residuals = np.bincount(np.unique(own, return_inverse=True)[1], residuals)
    count = len(residuals)
    if count < 2:
        return mean, np.inf
    return mean, float(np.sqrt((residuals**2).sum() * count / (count - 1)) / len(rows))


# --- digests --------------------------------------------------------------------------------------------------------


def _digests(column: pa.ChunkedArray, start: int) -> np.ndarray:
    """A 64-bit digest of each value, uint64 (n,); nulls are like nothing else.

    Args:
        start: position of the first row in the cache.
    """
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        found = _digests_of_rows(dense_matrix(column))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.fill_null(0).to_numpy()
        found = _digests_of_rows(values.astype(np.float32 if pa.types.is_floating(kind) else np.int32)[:, None])
    else:  # encoded images, tokens
        content = ((v if isinstance(v, bytes) else repr(v).encode()) for v in column.to_pylist())
        digests = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in content)
        found = np.frombuffer(digests, np.uint64).copy()
    if column.null_count:
        nulls = np.flatnonzero(column.combine_chunks().is_null().to_numpy(zero_copy_only=False))
        found[nulls] = _mixed(nulls.astype(np.uint64) + np.uint64(start) + np.uint64(1 << 63))
    return found


def _digests_of_rows(values: np.ndarray) -> np.ndarray:
    """Digests of rows of 32-bit numbers (n, width): each number is mixed with its place's own constant, and summed."""
    values = values + values.dtype.type(0)  # -0.0 is 0.0
    words = np.ascontiguousarray(values).view(np.uint32)
    constants = np.random.default_rng(0).integers(0, 1 << 63, size=words.shape[1], dtype=np.uint64)
    total = np.zeros(len(words), np.uint64)
    for place in range(words.shape[1]):
        total += _mixed(words[:, place].astype(np.uint64) ^ constants[place])
    return total


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's mixing of 64 bits (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _combined(digests: list[np.ndarray], rows: int) -> np.ndarray:
    """One digest of several, in order."""
    total = np.zeros(rows, np.uint64)
    for digest in digests:
        total = _mixed(total ^ digest)
    return total
