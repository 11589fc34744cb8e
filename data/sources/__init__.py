"""The kinds of datasets a recipe can name. A new kind is a new module here and a line in the table below."""

from __future__ import annotations

from importlib import import_module

from l2d.data.samples.dataset import Dataset
from l2d.data.sources.table import Strict

#: kind -> (module, configuration class, function that loads it). Modules load when a recipe names them.
KINDS = {
    "table": ("table", "TableConfig", "load_table"),
    "voc": ("voc", "VocConfig", "load_voc"),
    "coco": ("coco", "CocoConfig", "load_coco"),
    "cifar10": ("cifar10", "Cifar10Config", "load_cifar10"),
    "chexpert": ("chexpert", "ChexpertConfig", "load_chexpert"),
    "mimic4": ("mimic4.reader", "Mimic4Config", "load_mimic4"),
}


def dataset_config_class(kind: str) -> type[Strict]:
    """The configuration class of a kind of dataset."""
    module, name, _ = KINDS[kind]
    return getattr(import_module(f".{module}", __package__), name)


def load_dataset(config: Strict, name: str) -> Dataset:
    """Read the dataset that a recipe's ``[dataset]`` describes.

    Args:
        name: the recipe's name, for messages.

    Raises:
        DataError: a file cannot be read, or does not hold what the recipe says; the message names it.
    """
    module, _, function = KINDS[config.kind]
    return getattr(import_module(f".{module}", __package__), function)(config, name)
