"""A dataset from one table (Parquet or CSV): which columns are id, targets and features is said in SQL expressions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from l2d.data.cache.schema import INPUT_COLUMNS, TARGET_TYPES, token_column
from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.clusters import FEWEST_OF_ELBOW, fit_clusters
from l2d.data.samples.column_file import Table, held
from l2d.data.samples.columns import column_lines, no_text, row_number_notes
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.embedded_text import EmbeddedText
from l2d.data.samples.encoded_columns import fitted_and_encoded
from l2d.data.samples.expressions import check, column_named, columns_of, evaluate, name_of, quoted
from l2d.data.samples.features import FeatureEncoder, check_features
from l2d.data.samples.images import image_files
from l2d.data.samples.split_names import Splits
from l2d.data.samples.splits import hash_split, named_splits, require_all_splits, split_column, validation_share
from l2d.data.samples.standardise import standardisation
from l2d.data.samples.text import TextSettings
from l2d.data.samples.texts import series_of, texts_of
from l2d.data.samples.token_columns import TokenEncoder
from l2d.data.samples.true_texts import true_texts
from l2d.data.sources._classes import classes_of
from l2d.data.sources.text_table import Reading, open_table


class Strict(BaseModel):
    """A part of a recipe: unknown keys, other types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitConfig(Strict):
    """``[dataset.split]``: by a hash of the id, in equal proportions within each stratum, or as a column says."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the samples."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the samples. With a `column` that names no validation rows: the share of `train` that is taken for it.
    """
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the samples."""
    stratify: list[str] = []
    """SQL: every stratum is divided in the same proportions."""
    salt: str = "l2d"
    """Another salt draws another split."""
    column: str | None = None
    """SQL that gives `train`, `validation` or `test`; replaces the hash."""

    @model_validator(mode="after")
    def _sums_to_one(self):
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train + validation + test must be 1")
        return self


class KMeansConfig(Strict):
    """How many clusters, and from which start."""

    count: Annotated[int, Field(ge=2)] | Literal["elbow"] = "elbow"
    """Number of clusters, or where the curve of distances has its elbow."""
    largest: Annotated[int, Field(ge=2, le=100)] = 10
    """The elbow looks at 1 to this many clusters, 4 or more, and at no more than there are distinct points."""
    seed: int = 42
    """Draws the start of k-means."""

    @model_validator(mode="after")
    def _elbow_can_be_seen(self):
        if self.count == "elbow" and self.largest < FEWEST_OF_ELBOW:
            raise ValueError(
                f"an elbow cannot be seen in the curve of 1 to {self.largest} clusters: largest = {FEWEST_OF_ELBOW} "
                "or more, or give count a number"
            )
        return self


class ClusterConfig(KMeansConfig):
    """``[dataset.clusters]``: k-means on standardised training features, as column ``cluster`` (1 the largest)."""

    features: list[str] = []
    """SQL to cluster on; the rejector's features if not given."""


class TokensConfig(Strict):
    """A field of ``[dataset.tokens]``: lists of codes, such as diagnoses or words, for networks that read lists."""

    column: str
    """SQL that gives a list, or a text that is cut."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """What a text is cut at."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """Codes seen fewer times than this in training become `<unk>`."""
    max_length: Annotated[int, Field(ge=1, le=4096)] = 64
    """Codes of a list that a network looks at: the first ones."""


class TextConfig(Strict):
    """A field of ``[dataset.text]``: text that is read word by word, see :mod:`l2d.data.samples.text`."""

    column: str | None = None
    """SQL that gives a text, or a list of texts; the column of the field's name if not given."""
    components: Annotated[int, Field(ge=1, le=512)] = TextSettings.components
    """Columns that say what the words say, at most."""
    terms: Annotated[int, Field(ge=1, le=1_000_000)] = TextSettings.terms
    """Words in the vocabulary: those that most training texts have."""
    phrases: Annotated[int, Field(ge=1, le=5)] = TextSettings.phrases
    """Up to how many words in a row are terms too."""
    embed: str | None = None
    """In place of the words, sentence embeddings: the folder of a model (model2vec, or an ONNX encoder with its
    tokenizer), or `package:NAME` of an installed package. Needs `pip install "l2d[text]"`.
    """


TokenFieldName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=80)]


class TableConfig(Strict):
    """``[dataset]``: one table, a row a sample. Targets, features and filters are SQL expressions over its columns."""

    kind: Literal["table"] = "table"
    path: Path
    """A `.parquet`, `.csv` or `.tsv` file with a row for each sample."""
    missing: list[str] | dict[str, list[str]] | None = None
    """Texts that mean a missing value, beside the empty cell: a list for every column, or `{ column = ["unknown"] }`.
    """
    id: str
    """Column or SQL: the sample's id, unique."""
    where: str | None = None
    """SQL: rows to keep."""
    target_text: str | None = None
    """SQL: the true answers of a question, a text or a list of texts, of which the nearest counts."""
    target_cla: str | None = None
    """SQL: the class. At most 10,000 classes; 1,000 where they are decimals or more than half as many as rows."""
    classes: list[str] | None = None
    """Where `target_cla` is text: its values in order. Otherwise names for its values, sorted."""
    target_reg: str | None = None
    """SQL: the number."""
    unit_reg: str = ""
    """What `target_reg` is measured in, for people."""
    features: list[str] = []
    """SQL, `… AS name`, each over its own row: what the rejector sees; or give `text`, `tokens` or `image`."""
    text: list[str] | dict[str, TextConfig] = []
    """Text that is read word by word: a list of SQL, or `[dataset.text.NAME]` with settings, see below."""
    tokens: dict[TokenFieldName, TokensConfig] = {}
    """Lists of codes, `NAME = { column = … }`, one entry for each field; see below."""
    image: str | None = None
    """SQL: file name of an image, relative to the folder of the table."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels of the small images that the cache keeps, for `--rejector conv` and `image`; none if not given."""
    keep: list[str] = []
    """Columns kept in the cache, for SQL and groups."""
    split: SplitConfig = SplitConfig()
    """How samples are divided, see below."""
    clusters: ClusterConfig | None = None
    """k-means on the training split, as column `cluster`, see below; none if not given."""

    @model_validator(mode="after")
    def _has_inputs(self):
        if not self.features and not self.text and not self.tokens and self.image is None:
            raise ValueError("the rejector needs `features`, `text`, `tokens` or an `image` to look at")
        if self.image_size is not None and self.image is None:
            raise ValueError("`image_size` needs `image`: the column of file names")
        if self.clusters is not None and not self.features and not self.text and not self.clusters.features:
            raise ValueError("[dataset.clusters] needs `features` of its own where [dataset] has none")
        for name, config in self.text.items() if isinstance(self.text, dict) else ():
            if config.embed is not None and {"terms", "phrases"} & config.model_fields_set:
                raise ValueError(f"[dataset.text.{name}] has `embed`, which takes no `terms` and no `phrases`")
        if len(self.texts) < len(self.text):
            names = [name_of(one) for one in self.text]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two texts are called {twice!r}: name one of them, `… AS other_name`")
        return self

    @property
    def texts(self) -> dict[str, TextSettings]:
        """Name of each text -> how it is read."""
        if isinstance(self.text, list):
            return {name_of(one): TextSettings(expression=one) for one in self.text}
        found = {}
        for name, config in self.text.items():
            settings = config.model_dump(exclude={"column"})
            found[name] = TextSettings(expression=config.column or quoted(name), **settings)
        return found


#: Columns of the samples table that are not the source's.
RESERVED_COLUMNS = {"cache", "sample_id", "split", *TARGET_TYPES, *INPUT_COLUMNS}


def load_table(config: TableConfig, name: str) -> Dataset:
    """Read the table and prepare everything stage one needs.

    Args:
        config: the recipe's ``[dataset]``, its path absolute.
        name: the recipe's name, for messages.

    Raises:
        DataError: the file, which is named, cannot be read, or a column, value or split is not as the recipe says.
    """
    as_text = [config.id, config.target_text or "", *(settings.expression for settings in config.texts.values())]
    as_text = [column_named(expression) or "" for expression in as_text]
    table, reading = open_table(config.path, text=as_text, missing=config.missing)
    if config.text or config.tokens or config.clusters is not None:
        table = held(table)  # they are not looked at row by row
    try:
        return _prepare(table, config, name, reading)
    except DataError as error:
        if error.where in (None, name):
            raise type(error)(error.what, where=config.path, hint=error.hint) from error
        raise


def _prepare(table: Table, config: TableConfig, name: str, reading: Reading) -> Dataset:
    if isinstance(config.missing, dict) and (unknown := [column for column in config.missing if column not in table]):
        raise DataError(
            f"`missing` names {unknown[0]!r}, and no column is called that",
            hint=f"the columns are {', '.join(table.columns)}",
        )
    if config.where is not None:
        table = held(table).filter(evaluate(table, config.where, pl.Boolean).fill_null(False))
    check_features(table, config.features)  # before anything that needs many rows
    for expression in _expressions(config):
        check(table, expression)
    if table.is_empty():
        raise DataError("no rows are left", hint="check `where`")
    ids_column = evaluate(table, config.id, pl.String)
    if ids_column.null_count():
        raise DataError(f"row {first_true(ids_column.is_null())} has no id", hint="filter it with `where`")
    ids = texts_of(ids_column)

    target_cla, classes = classes_of(table, config.target_cla, config.classes)
    target_reg = None
    if config.target_reg is not None:  # a copy, as torch wants memory that it may write to
        target_reg = evaluate(table, config.target_reg, pl.Float32).fill_null(float("nan")).to_numpy().copy()

    split, notes = _split(table, config.split, ids)
    target_text = None
    if config.target_text is not None:
        target_text, told = true_texts(table, config.target_text)
        notes += told
    train = split == "train"

    encoder, features, tokens, inputs, how = None, None, None, {}, reading.to_json(config.missing)
    if config.features or config.text:
        encoder, features = fitted_and_encoded(table, config.features, rows=train, text=config.texts, reading=how)
        inputs["features"] = {"kind": "dense", "width": len(encoder.names), **encoder.to_json()}
    if config.tokens:
        table = held(table)
        token_encoder = TokenEncoder.fit(table.filter(pl.Series(train)), config.tokens, reading=how)
        tokens = token_encoder.encode(table)
        inputs["tokens"] = token_encoder.to_json()

    images = None
    if config.image is not None:
        images = image_files(evaluate(table, config.image, pl.String), config.path.parent)
        if config.image_size is not None:
            inputs["image"] = {"file": config.image}

    keep = list(config.keep)
    for column in keep:
        if column not in table.columns:
            what = f"there is no column {column!r} to keep"
            raise DataError(what, hint=f"the columns are {', '.join(table.columns)}")
        if column in RESERVED_COLUMNS | {token_column(name) for name in config.tokens}:
            raise DataError(f"column {column!r} cannot be kept: the cache has its own", hint="rename it in the table")
    if config.clusters is not None:
        if "cluster" in table.columns:
            raise DataError("the table has a column 'cluster' already", hint="rename it: [dataset.clusters] adds one")
        space = features
        if config.clusters.features:
            space = FeatureEncoder.fit(table, config.clusters.features, rows=train).transform(held(table))
        if space is None:
            raise DataError("there are no features to cluster by", hint="name some: [dataset.clusters] features = […]")
        space = np.asarray(space)
        mean, std = standardisation(space[train])
        settings = config.clusters.model_dump(exclude={"features"})
        cluster, facts = fit_clusters((space - mean) / std, train, **settings)
        table = held(table).with_columns(pl.Series("cluster", cluster))
        keep.append("cluster")
        inputs["clusters"] = facts

    inputs["table"] = {
        "columns": column_lines(table, encoder, [n for e in _expressions(config) for n in columns_of(e)]),
        "notes": [*reading.lines(), *notes, *row_number_notes(table, config.features), *no_text(table, encoder, ids)],
    }
    left_out = {"path", "keep", "unit_reg"}  # content is what counts, not where it lies
    # caches of before there were tokens and text say nothing of them
    left_out |= {name for name in ("tokens", "text") if not getattr(config, name)}
    left_out |= {name for name in ("missing", "image", "image_size", "target_text") if getattr(config, name) is None}
    described = config.model_dump(mode="json", exclude=left_out)
    for feature in encoder.features if encoder is not None and isinstance(described.get("text"), dict) else ():
        if feature.name in described["text"]:
            described["text"][feature.name].pop("embed", None)
            if isinstance(feature, EmbeddedText):  # which encoder it is counts, not where it lies
                described["text"][feature.name]["embed"] = feature.encoder_digest()
    return Dataset(
        name=name,
        ids=ids,
        split=split,
        features=features,
        frozen=None if encoder is None else encoder.frozen(),
        tokens=tokens,
        images=images,
        image_size=config.image_size,
        columns=table,
        target_cla=target_cla,
        target_reg=target_reg,
        target_text=target_text,
        classes=classes,
        keep=tuple(dict.fromkeys(keep)),
        inputs=inputs,
        config=described,
        unit_reg=config.unit_reg,
    )


def _expressions(config: TableConfig) -> list[str]:
    """What a recipe says in SQL, but for features and `where`."""
    named = [config.id, config.target_cla, config.target_reg, config.target_text, config.image, config.split.column]
    clusters = config.clusters.features if config.clusters is not None else []
    found = [*named, *config.split.stratify, *clusters, *(field.column for field in config.tokens.values())]
    found += [settings.expression for settings in config.texts.values()]
    return [expression for expression in found if expression is not None]


def _strata(table: Table, expressions: list[str]) -> pl.DataFrame | list[object]:
    columns = [evaluate(table, each, pl.String).alias(f"{k}") for k, each in enumerate(expressions)]
    return pl.DataFrame(columns) if columns else [()] * len(table)


def _split(table: Table, config: SplitConfig, ids: Sequence[str]) -> tuple[np.ndarray | Splits, list[str]]:
    """The split of each row, and what to say of it."""
    if config.column is None:
        drawn = hash_split(  # which lets go of the strata
            ids,
            _strata(table, config.stratify),
            fractions=(config.train, config.validation, config.test),
            salt=config.salt,
        )
        unused = split_column(table)
        if unused is None:
            named = next((name for name in table.columns if name.lower() == "split"), None)
            says = f"splits: drawn at random; the column {named!r} is not used, its values are not train, test …"
            return drawn, [] if named is None else [says]
        use = f'split = {{ column = "{unused}" }} uses it'
        return drawn, [f"splits: drawn at random; the column {unused!r} is not used, {use}"]
    split, note = named_splits(evaluate(table, config.column, pl.String))
    notes = [] if note is None else [note]
    if not (split == "validation").any():
        train = np.flatnonzero(split == "train")
        taken = train[validation_share(series_of(ids).gather(train).to_list(), config.validation, config.salt)]
        split[taken] = "validation"
        notes.append(f"splits: {config.column!r} names no validation rows, so {len(taken):,} are drawn from training")
    require_all_splits(split, hint=f"{config.column!r} has to name rows for it")
    return split, notes
