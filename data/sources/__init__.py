"""The kinds of datasets a recipe can name. A new kind is a new module here and a line in the table below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from l2d.data.samples.dataset import Dataset
    from l2d.data.sources.table import Strict


class Kind(NamedTuple):
    """Where a kind of dataset is, and what its samples are. ``load(config, name)`` returns a :class:`Dataset`."""

    module: str
    config: str
    load: str
    #: Agents answer with boxes.
    boxes: bool = False
    #: Its samples are images, so that they are asked about in smaller chunks.
    images: bool = False


#: Modules load when a recipe names them.
KINDS = {
    "table": Kind("table", "TableConfig", "load_table"),
    "voc": Kind("voc", "VocConfig", "load_voc", boxes=True, images=True),
    "coco": Kind("coco", "CocoConfig", "load_coco", boxes=True, images=True),
    "cifar10": Kind("cifar10", "Cifar10Config", "load_cifar10", images=True),
    "chexpert": Kind("chexpert", "ChexpertConfig", "load_chexpert", images=True),
    "mimic4": Kind("mimic4.reader", "Mimic4Config", "load_mimic4"),
}


def dataset_config_class(kind: str) -> type[Strict]:
    """The configuration class of a kind of dataset."""
    found = KINDS[kind]
    return getattr(import_module(f".{found.module}", __package__), found.config)


def load_dataset(config: Strict, name: str) -> Dataset:
    """Read the dataset that a recipe's ``[dataset]`` describes.

    Args:
        name: the recipe's name, for messages.

    Raises:
        DataError: a file cannot be read, or does not hold what the recipe says; the message names it.
    """
    found = KINDS[config.kind]
    return getattr(import_module(f".{found.module}", __package__), found.load)(config, name)
