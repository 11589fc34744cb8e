"""A cache described in Croissant 1.0, MLCommons' vocabulary for data sets: files, columns, units and licence.

Croissant is JSON-LD over schema.org; hubs and search engines read it, and the package ``mlcroissant`` loads the tables
with it. The description follows from the cache's records and the footers of its first parts, so the same cache has the
same description. It has no part in what the cache is: nothing reads it back.

Source: Akhtar et al., "Croissant: a metadata format for ML-ready datasets", DEEM 2024, and
http://mlcommons.org/croissant/1.0.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.reader import CostCache

NAME = "croissant.json"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def description(cache: CostCache) -> dict[str, Any]:
    """The description of a complete cache, as a JSON object.

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a first part is not what was sealed.
    """
    cache.require_complete()
    record, path = cache.record, cache.path
    tables = [_Table(cache, "samples", "samples", "The samples, a row each.", schema.samples_part(path, 0))]
    for agent, name in zip(cache.all_agents, _identifiers([agent.name for agent in cache.all_agents]), strict=True):
        said = f"What {agent.name} answered, a row a sample. {agent.description}".strip()
        predictions = schema.predictions_part(path, agent.name, 0)
        costs = schema.costs_part(path, agent.name, 0, record.cost_digest)
        tables.append(_Table(cache, f"predictions-{name}", f"predictions of {agent.name}", said, predictions))
        said = f"What the answers of {agent.name} cost, a row a sample."
        tables.append(_Table(cache, f"costs-{name}", f"costs of {agent.name}", said, costs))
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": record.name,
        "description": _about(cache),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
    }
    if record.license:
        found["license"] = record.license
    found["distribution"] = [table.files() for table in tables]
    found["recordSet"] = [table.records() for table in tables]
    return found


def description_bytes(cache: CostCache) -> bytes:
    """:func:`description` as the file is written."""
    return (json.dumps(description(cache), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _about(cache: CostCache) -> str:
    record = cache.record
    agents, references = ([agent.name for agent in some] for some in (cache.agents, cache.references))
    lines = [
        f"A cost cache of l2d, for learning to defer: what each of {len(agents)} agents answers and costs on "
        f"{record.num_samples:,} samples.",
        f"Tasks: {', '.join(record.tasks)}. Agents: {', '.join(agents)}.",
    ]
    if references:
        lines.append(f"Reported beside them: {', '.join(references)}.")
    if record.classes:
        lines.append(f"Classes: {', '.join(f'{index} {name}' for index, name in enumerate(record.classes[:100]))}.")
    return " ".join(lines)


@dataclass(frozen=True)
class _Table:
    """A table of a cache: one folder of parts. ``part`` is its first."""

    cache: CostCache
    identifier: str
    name: str
    about: str
    part: Path

    def files(self) -> dict[str, Any]:
        """Its set of files."""
        record = self.cache.record
        return {
            "@type": "cr:FileSet",
            "@id": f"files-{self.identifier}",
            "name": f"files of {self.name}",
            "description": f"{record.num_chunks:,} files in order, of up to {record.chunk_size:,} rows.",
            "encodingFormat": "application/x-parquet",
            "includes": f"{self.part.relative_to(self.cache.path).parent.as_posix()}/*.parquet",
        }

    def records(self) -> dict[str, Any]:
        """Its set of records."""
        columns = self.cache.columns_of(self.part)
        fields = zip(_identifiers(columns.names), columns, strict=True)
        return {
            "@type": "cr:RecordSet",
            "@id": self.identifier,
            "name": self.name,
            "description": self.about,
            "key": {"@id": f"{self.identifier}/sample_id"},
            "field": [self._field(f"{self.identifier}/{identifier}", column) for identifier, column in fields],
        }

    def _field(self, identifier: str, column: pa.Field) -> dict[str, Any]:
        kind = column.type
        is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
        found: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": identifier,
            "name": column.name,
            "description": _meaning(self.cache, column),
            "dataType": _data_type(kind.value_type if is_list else kind),
            "source": {"fileSet": {"@id": f"files-{self.identifier}"}, "extract": {"column": column.name}},
        }
        if is_list:
            found["repeated"] = True
        if column.name == "sample_id" and self.name != "samples":
            found["references"] = {"field": {"@id": "samples/sample_id"}}
        return found


def _identifiers(names: list[str]) -> list[str]:
    """Names without blanks and slashes, which ``@id`` may not have; a position tells apart what is then alike."""
    plain = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    return [one if plain.count(one) == 1 else f"{one}.{position}" for position, one in enumerate(plain)]


def _data_type(kind: pa.DataType) -> str:
    tests = {
        "sc:Boolean": pa.types.is_boolean,
        "sc:Integer": pa.types.is_integer,
        "sc:Float": lambda one: pa.types.is_floating(one) or pa.types.is_decimal(one),
        "sc:Date": lambda one: pa.types.is_date(one) or pa.types.is_timestamp(one),
        "sc:ImageObject": lambda one: pa.types.is_binary(one) or pa.types.is_large_binary(one),
        "sc:StructuredValue": pa.types.is_struct,
    }
    return next((name for name, is_it in tests.items() if is_it(kind)), "sc:Text")


def _meaning(cache: CostCache, column: pa.Field) -> str:
    """What a column holds, with its unit, in a sentence."""
    record, name = cache.record, column.name
    unit = f", in {record.unit_reg}" if record.unit_reg else ""
    errors = f", of errors{unit}" if unit else ""
    paid = f", in {record.unit_paid}" if record.unit_paid else ""
    boxes = "boxes in pixels: x1, y1, x2, y2, score, label (class index), ignore, crowd, width, height (of the image)"
    width = f"{column.type.list_size} numbers" if pa.types.is_fixed_size_list(column.type) else "numbers"
    made = record.inputs.get("features", {}).get("names")
    known = {
        "sample_id": "The sample's id, unique.",
        "split": "train, validation or test.",
        "target_cla": "The class: an index into the classes of the description.",
        "target_reg": f"The number to be predicted{unit}.",
        "target_boxes": f"The objects of the image: {boxes}.",
        "target_text": "The true answers of the question: texts, of which the nearest counts; none: it has no answer.",
        "features": f"What a rejector looks at: {width}" + (f": {', '.join(made)}." if made else "."),
        "image": "What a rejector looks at: a small image, encoded.",
        "pred_cla": "The class that was answered: an index into the classes of the description.",
        "pred_prob": "Probability of each class, in their order.",
        "pred_reg": f"The number that was answered{unit}.",
        "pred_text": "The text that was answered.",
        "pred_boxes": f"The objects that were found: {boxes}.",
        "failure": f"Why there is no answer, or null; {schema.NO_ANSWER!r} where the agent was not available.",
        "seconds": "How long the answer took, in seconds.",
        "paid": f"What the answer was paid{paid}.",
        "cost_cla": f"Raw cost of the class{_rule(record.costs, 'cla')}. Null: no answer.",
        "cost_reg": f"Raw cost of the number{_rule(record.costs, 'reg')}{errors}. Null: no answer.",
        "cost_text": f"Raw cost of the text{_rule(record.costs, 'text')}. Null: no answer.",
        "cost_map": f"Raw cost of the boxes{_rule(record.costs, 'map')}. Null: no answer.",
    }
    if name in known:
        return known[name]
    if name.startswith(schema.TOKEN_PREFIX):
        return "What a rejector looks at: indices of codes; cache.json has the vocabulary under inputs."
    return "A column of the source table, kept as it was."


def _rule(costs: dict[str, Any], task: str) -> str:
    """How a cost is taken, as the cost table says."""
    told = ", ".join(f"{name} = {value}" for name, value in costs.get(task, {}).items())
    return f" ({told})" if told else ""
