"""The samples table: what the cache keeps of each sample beside the agents' answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.columns import NUMBERS, dense_array, number_column
from l2d.data.samples.column_file import rows_of
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.images import png, thumbnail


def sample_columns(dataset: Dataset, rows: range) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Columns of one part: ids, splits, targets, kept columns and the rejector's inputs.

    Raises:
        DataError: an image that is to be kept small cannot be read; names the file.
    """
    batch = dataset.batch(rows)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "sample_id": dataset.id_column(slice(rows.start, rows.stop)),
        "split": dataset.split_column(slice(rows.start, rows.stop)),
    }
    for name in ("target_cla", "target_reg"):
        values = getattr(batch, name)
        if values is not None:
            columns[name] = number_column(values.astype(NUMBERS[schema.TARGET_TYPES[name]], copy=False))
    if batch.target_boxes is not None:
        columns["target_boxes"] = batch.target_boxes.to_arrow()
    if batch.target_text is not None:
        columns["target_text"] = batch.target_text.to_arrow().cast(schema.TEXTS)
    if dataset.keep:
        kept = rows_of(dataset.columns, dataset.keep, slice(rows.start, rows.stop))
        columns |= {name: kept[name].to_arrow() for name in dataset.keep}
    if batch.features is not None:
        columns["features"] = dense_array(batch.features)
    for name, lists in (batch.tokens or {}).items():
        columns[schema.token_column(name)] = lists.to_arrow()
    if dataset.image_size is not None:
        with ThreadPoolExecutor() as pool:
            if batch.images is not None:
                small = list(pool.map(partial(thumbnail, size=dataset.image_size), batch.images))
            else:
                small = list(pool.map(png, () if batch.pixels is None else batch.pixels))
        columns["image"] = pa.array(small, schema.IMAGE)
    return columns
