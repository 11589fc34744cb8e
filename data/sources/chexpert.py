"""CheXpert's chest radiographs (Irvin et al. 2019): one of the competition's five tasks, from ``train.csv``.

The second experiment of Mozannar and Sontag (2020) defers on such a task to an expert who is better where a support
device can be seen, so ``Support Devices`` is kept as a column.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.patient_split import PatientSplit, split_by_patient
from l2d.data.samples.splits import validation_share
from l2d.data.sources.table import Strict

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
HINT = "use the file as it was published (CheXpert-v1.0 or CheXpert-v1.0-small)"


class ChexpertConfig(Strict):
    """``[dataset]`` of CheXpert. Patients of ``train.csv`` are cut into splits; ``valid.csv`` may be the test split."""

    kind: Literal["chexpert"] = "chexpert"
    path: Path
    """The folder with `train.csv`, such as `CheXpert-v1.0-small`."""
    target: Literal["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
    """The finding that is predicted."""
    uncertain: Literal["zeros", "ones", "ignore"] = "zeros"
    """What a label of -1 means: absent, present, or not a sample."""
    unmentioned: Literal["zeros", "ignore"] = "zeros"
    """What a blank label means: absent, or not a sample."""
    views: Literal["frontal", "all"] = "frontal"
    """Which views are samples."""
    test: Literal["patients", "valid"] = "patients"
    """The test split: a share of the patients of `train.csv`, or all of `valid.csv`."""
    split: PatientSplit = PatientSplit(train=0.8, validation=0.1, test=0.1)
    """Shares of the patients, see below; by default 0.8, 0.1 and 0.1."""
    image_features: Path | None = None
    """A Parquet file with `Path`, and `features` (lists of one length) or columns of numbers."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels of the small images that the cache keeps, for `--rejector conv` and `image`; none if not given."""

    @model_validator(mode="after")
    def _has_inputs(self):
        if self.image_features is None and self.image_size is None:
            raise ValueError("give image_features, image_size or both: the rejector has to look at something")
        return self


def load_chexpert(config: ChexpertConfig, name: str) -> Dataset:
    """Read the labels and what is known of the images.

    Sample ids are ``Path`` without its first folder: ``train/patient00001/study1/view1_frontal.jpg``. Columns:
    ``patient``, ``sex``, ``age``, ``view``, ``projection`` (AP, PA …) and ``support_devices`` (1, 0, -1 where
    uncertain, null where not mentioned).

    Args:
        config: the recipe's ``[dataset]``, its paths absolute.
        name: the recipe's name, for messages.

    Raises:
        DataError: a file is missing, lacks a column, or has a value that the format does not know; an image has no
            features or is not there; names file and row.
    """
    table = read_labels(config.path / "train.csv")
    if config.test == "valid":
        table = pl.concat([table, read_labels(config.path / "valid.csv")])
    label = pl.col(config.target)
    if config.views == "frontal":
        table = table.filter(pl.col("Frontal/Lateral") == "Frontal")
    if config.uncertain == "ignore":
        table = table.filter(label.fill_null(0) != -1)
    if config.unmentioned == "ignore":
        table = table.filter(label.is_not_null())
    uncertain = 1 if config.uncertain == "ones" else 0
    target = table.select(label.fill_null(0).replace(-1, uncertain).cast(pl.Int32)).to_series().to_numpy().copy()
    if table.is_empty() or target.min() == target.max():
        raise DataError(
            f"{table.height} images are left, {int(target.sum())} with {config.target}",
            where=config.path,
            hint="both have to occur: see `views`, `uncertain` and `unmentioned`",
        )
    inputs, features = {}, None
    if config.image_features is not None:
        features = read_features(config.image_features, table["Path"])
        inputs["features"] = {"kind": "dense", "width": features.shape[1], "of": "image_features"}
    images = tuple(config.path / path for path in table["Path"]) if config.image_size is not None else None
    columns = table.select(
        "patient",
        sex="Sex",
        age="Age",
        view="Frontal/Lateral",
        projection="AP/PA",
        support_devices=pl.col("Support Devices").cast(pl.Int32),
    )
    return Dataset(
        name=name,
        ids=table["Path"].to_list(),
        split=_split(table, target, config),
        features=features,
        columns=columns,
        target_cla=target,
        images=images,
        image_size=config.image_size,
        classes=("absent", "present"),
        keep=tuple(columns.columns),
        inputs=inputs,
        config=config.model_dump(mode="json", exclude={"path", "image_features"}),
    )


def _split(table: pl.DataFrame, target: np.ndarray, config: ChexpertConfig) -> np.ndarray:
    if config.test == "patients":
        return split_by_patient(table["patient"], target == 1, config.split)
    valid = (table["file"] == "valid.csv").to_numpy()
    patients = table["patient"].filter(pl.Series(~valid)).unique(maintain_order=True).to_list()
    if len(patients) < 2 or not valid.any():
        raise DataError(
            f"{len(patients)} patients in train.csv and {int(valid.sum())} images in valid.csv are left",
            where=config.path,
            hint="two or more patients to train and validate on, and one image to test on",
        )
    share = config.split.validation / (config.split.train + config.split.validation)
    drawn = {patients[i] for i in validation_share(patients, share, config.split.salt)}
    validation = table["patient"].is_in(list(drawn)).to_numpy()
    return np.where(valid, "test", np.where(validation, "validation", "train")).astype("<U10")


def read_labels(file: Path) -> pl.DataFrame:
    """``train.csv`` or ``valid.csv``: its columns (labels as int8: 1, 0, -1 or null), ``patient`` and ``file``.

    ``Path`` is as in :func:`inside`.

    Raises:
        DataError: see :func:`load_chexpert`.
    """
    if not file.is_file():
        raise DataError("there is no such file", where=file, hint="give the folder that holds train.csv and valid.csv")
    try:
        table = pl.read_csv(file, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read: {str(error).splitlines()[0]}", where=file, hint=HINT) from error
    for column in COLUMNS:
        if column not in table.columns:
            raise DataError(f"there is no column {column!r}", where=file, hint=HINT)
    numbers = {**dict.fromkeys(FINDINGS, pl.Int8), "Age": pl.Int32}
    for column, kind in numbers.items():
        parsed = table[column].cast(pl.Float64, strict=False)
        bad = parsed.is_null() & table[column].is_not_null()
        if kind == pl.Int8:
            bad |= parsed.is_not_null() & ~parsed.is_in([-1.0, 0.0, 1.0])
        _refuse(table, bad, column, file)
        table = table.with_columns(parsed.cast(kind).alias(column))
    table = table.with_columns(patient=pl.col("Path").str.extract(r"/(patient\d+)/"))
    _refuse(table, table["patient"].is_null(), "Path", file)
    _refuse(table, ~table["Frontal/Lateral"].is_in(["Frontal", "Lateral"]).fill_null(False), "Frontal/Lateral", file)
    return table.select("patient", *COLUMNS[1:], inside("Path"), file=pl.lit(file.name))


def inside(column: str) -> pl.Expr:
    """Paths without their first folder, which is the set's name: ``CheXpert-v1.0-small/train/…`` -> ``train/…``."""
    return pl.col(column).str.replace(r"^CheXpert[^/]*/", "")


def _refuse(table: pl.DataFrame, bad: pl.Series, column: str, file: Path) -> None:
    if bad.any():
        row = first_true(bad)
        raise DataError(f"{column} is {table[column][row]!r}", where=f"{file}, row {row + 1}", hint=HINT)


def read_features(file: Path, paths: pl.Series) -> np.ndarray:
    """Features of images, in the order of ``paths``: float32 (n, width).

    Args:
        file: Parquet; ``Path`` as in ``train.csv`` or without its first folder, and either a column ``features`` of
            lists of one length or any number of columns of numbers.
        paths: without the first folder.

    Raises:
        DataError: it cannot be read, has an image twice or lacks one, or a feature is missing or not finite.
    """
    hint = "a Parquet file with Path, and `features` (lists of numbers of one length) or columns of numbers"
    try:
        table = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read: {str(error).splitlines()[0]}", where=file, hint=hint) from error
    if table.schema.get("Path") != pl.String:
        raise DataError("there is no column Path of texts", where=file, hint=hint)
    table = table.with_columns(inside("Path"))
    twice = table.filter(pl.col("Path").is_duplicated())
    if twice.height:
        raise DataError(f"image {twice['Path'][0]!r} stands there twice", where=file, hint=hint)
    at = paths.to_frame("Path").join(table.with_row_index("at"), on="Path", how="left", maintain_order="left")["at"]
    if at.null_count():
        raise DataError(
            f"image {paths[first_true(at.is_null())]!r} has no features ({at.null_count()} such images)",
            where=file,
            hint="compute them for every image, or leave such images out of train.csv",
        )
    chosen = table[at].drop("Path")
    try:
        if "features" in chosen.columns:
            lengths = chosen["features"].list.len().unique().to_list()
            if len(lengths) != 1 or not lengths[0]:
                raise DataError(f"features have lengths {lengths}", where=file, hint=hint)
            numbers = chosen["features"].cast(pl.Array(pl.Float32, lengths[0])).to_numpy()
        else:
            numbers = chosen.cast(pl.Float32).to_numpy()
    except (pl.exceptions.PolarsError, AttributeError) as error:
        raise DataError(f"features are not numbers: {str(error).splitlines()[0]}", where=file, hint=hint) from error
    numbers = np.array(numbers, dtype=np.float32).reshape(len(chosen), -1)  # a copy: torch wants memory to write to
    if not numbers.size or not np.isfinite(numbers).all():
        row = int(np.argmax(~np.isfinite(numbers).all(axis=1))) if numbers.size else 0
        raise DataError(f"image {paths[row]!r} has a feature that is not finite", where=file, hint=hint)
    return numbers
