"""Weights of torch modules: files of tensors and nothing else, and those that torchvision publishes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from l2d.data.errors import DataError, UsageError

NESTED = ("model", "state_dict", "model_state_dict")  # where training scripts put the weights inside their file


def published_weights(architecture: str, weights: Path | str, where: str) -> WeightsEnum | None:
    """The weights that torchvision publishes under this name, or under the name of this file; None for another file.

    Raises:
        UsageError: there are none of that name.
    """
    published = list(get_model_weights(architecture))
    if isinstance(weights, Path):
        return next((one for one in published if Path(one.url).name == weights.name), None)
    found = next((one for one in published if one.name == weights), None)
    if found is None:
        raise UsageError(
            f"torchvision publishes no weights {weights!r} of {architecture}",
            where=where,
            hint=f"there are {', '.join(one.name for one in published)}; a file is named with its suffix, .pth say",
        )
    return found


def published_file(weights: Path | str, known: WeightsEnum | None) -> Path:
    """Where weights have to be: the file, or for a published name torch.hub's copy. Nothing is ever downloaded."""
    if isinstance(weights, Path) or known is None:
        return Path(weights)
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(known.url).name


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file. Nothing but tensors is ever unpickled.

    Raises:
        DataError: it cannot be read, or holds no tensors; names the file.
    """
    hint = "save it with torch.save(model.state_dict(), FILE), or as .safetensors"
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the part that is damaged leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"weights cannot be read: {reason}", where=file, hint=hint) from error
    while isinstance(content, Mapping) and not all(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in NESTED if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"holds no weights, by itself or under {', '.join(NESTED)}", where=file, hint=hint)
    return {name.removeprefix("module."): value for name, value in content.items()}  # DataParallel's prefix


def load_weights(model: nn.Module, weights: dict[str, Tensor], file: Path, architecture: str) -> None:
    """Put weights into a model.

    ``num_batches_tracked`` is left as it is: batch normalisation that was frozen in training has none, and none is
    needed to answer.

    Raises:
        DataError: they do not fit, or are not finite; names the file and the first key at fault.
    """
    tracked = ".num_batches_tracked"
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(tracked)}
    given = {name: value for name, value in weights.items() if not name.endswith(tracked)}
    hint = f"are these weights of {architecture}?"
    for name, value in wanted.items():
        if name not in given:
            raise DataError(f"has no weights {name!r}", where=file, hint=hint)
        shapes = [tuple(tensor.shape) for tensor in (given[name], value)]
        if shapes[0] != shapes[1]:
            hint += " They may be for another number of classes: `labels` names them, without the background"
            raise DataError(f"{name!r} is of shape {shapes[0]}, expected {shapes[1]}", where=file, hint=hint)
        if not torch.isfinite(given[name]).all():
            raise DataError(f"{name!r} has values that are not finite", where=file, hint="training diverged: retrain")
    for name in given:
        if name not in wanted:
            raise DataError(f"has weights {name!r}, for which there is no place", where=file, hint=hint)
    model.load_state_dict(given, strict=False)
