"""Torch models: a module of the user's own with its weights, or a program that torch.export has written."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l2d.cache_builder.agents._base import file_digest
from l2d.cache_builder.agents._model import ModelAgent, ModelConfig
from l2d.cache_builder.agents._options import option_files, require_files, resolved
from l2d.cache_builder.agents._user_modules import FACTORY, find_factory, make, own_files
from l2d.data.errors import DataError, UsageError
from l2d.data.networks.weights import read_weights
from l2d.data.samples.dataset import Dataset
from l2d.data.sources._annotated import is_file

#: What may stand in the symbolic sizes of an exported program, which torch gives to sympy to evaluate: symbols,
#: numbers, ``Symbol('s77', positive=True, integer=True)`` and arithmetic.
SIZES = re.compile(
    r"(?>[suz]\d+|'[suz]\d+'|Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv"
    r"|positive|nonnegative|integer|True|False|\d+|[-+*/()=,\s])*+"
)


class TorchConfig(ModelConfig):
    """``kind = "torch"``: a module that ``factory`` makes, or a program, ``file`` (``.pt2``).

    ``factory = "package.module:name"`` is a function or class; ``name(**options)`` is an ``nn.Module``. Its ``weights``
    are safetensors or a state dict as ``torch.save`` writes it. A program needs no code at all; one with anything
    pickled or compiled inside is refused.
    """

    kind: Literal["torch"]
    factory: Annotated[str, Field(pattern=FACTORY)] | None = None
    """`"module:name"`: a function or class that gives the module when called with the options."""
    path: Path = Path(".")
    """Folder in which the factory's module is looked for first; the recipe's by default."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    weights: Path | None = None
    """Safetensors, or a state dict of `torch.save`."""
    file: Path | None = None
    """Or a program, `.pt2` of `torch.export.save`, which needs no code."""
    version: str = ""
    """If given, a new version means new answers, whatever the code says. Otherwise the content of the files does."""

    @model_validator(mode="after")
    def _one_source(self):
        if (self.file is None) == (self.factory is None):
            raise ValueError("give `factory`, or `file`")
        if self.file is not None and (self.weights or self.options):
            raise ValueError("a program, `file`, has its weights inside: `weights` and `options` belong to a factory")
        return self


class TorchAgent(ModelAgent):
    config: TorchConfig
    unfingerprinted = ModelAgent.unfingerprinted | {"path"}

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        config = self.config
        for path in (config.file, config.weights):
            if path is not None and not is_file(path):
                raise UsageError(
                    f"agent {config.name!r}: there is no such file",
                    where=path,
                    hint="relative paths are relative to the recipe",
                )
        require_files(config.options, config._folder, config.name)
        if config.factory is not None:
            find_factory(config.factory, config.path, config.name)
        super().check(dataset, tasks)

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        super().load(frozen, dataset, device)
        self.batch = None  # samples that it takes at once, where that is fixed
        if self.config.file is not None:
            self.model, self.batch = load_program(self.config.file, device)
            return
        assert self.config.factory is not None  # it is one or the other
        options = resolved(self.config.options, self.config._folder)
        model = make(self.config.factory, self.config.path, options, self.config.name)
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"agent {self.config.name!r}: the factory made {type(model).__name__}, not an nn.Module",
                where=f"factory = {self.config.factory!r}",
                hint='a function that answers batches is kind = "python"',
            )
        if self.config.weights is not None:
            try:
                model.load_state_dict(read_weights(self.config.weights))
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise DataError(
                    f"agent {self.config.name!r}: the weights do not fit: {reason}",
                    where=self.config.weights,
                    hint="are they of the module that the factory makes with these options?",
                ) from error
        self.model = model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def run(self, inputs: Tensor) -> Any:
        if self.batch is None or self.batch == len(inputs):
            return self.model(inputs.to(self.device))
        parts = [self._padded(part, self.batch) for part in inputs.split(self.batch)]
        if isinstance(parts[0], dict):
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if isinstance(parts[0], tuple | list):
            return tuple(torch.cat(found) for found in zip(*parts, strict=True))
        return torch.cat(parts)

    def _padded(self, rows: Tensor, batch: int) -> Any:
        """Answers about at most ``batch`` rows of a program that takes exactly that number."""
        count = len(rows)
        whole = torch.cat([rows, rows[-1:].expand(batch - count, *rows.shape[1:])]).to(self.device)
        found = self.model(whole)
        if isinstance(found, dict):
            return {name: value[:count] for name, value in found.items()}
        return tuple(value[:count] for value in found) if isinstance(found, tuple | list) else found[:count]

    def gflops(self, dataset: Dataset) -> float | None:
        """Measured on inputs of zeros, as torch counts operations, halved: multiply-adds."""
        shape = (3, *self.size) if self.matrix is None else self.matrix.shape[1:]
        try:
            with FlopCounterMode(display=False) as counter:
                self.run(torch.zeros((1, *shape)))
        except Exception:  # it will be reported when it is asked about a sample
            return None
        return counter.get_total_flops() / 2e9 / (self.batch or 1)

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        config = self.config
        fields = super().fingerprint(dataset)
        if config.columns:
            fields |= dataset.column_digests()
        for name in ("file", "weights"):
            path = getattr(config, name)
            fields[name] = file_digest(path) if path is not None and is_file(path) else None
        if config.factory is not None and not config.version:
            fields["code"] = own_files(config.factory, config.path)
            named = option_files(config.options, config._folder)
            if named:
                fields["option_files"] = named
        return fields


def load_program(file: Path, device: str) -> tuple[nn.Module, int | None]:
    """A program of ``torch.export.save`` (torch 2.8 or newer), and its batch size where that is fixed.

    torch would unpickle some of what such a file may hold, run compiled code, and have sympy evaluate the sizes' names,
    so all that is looked at before torch sees the file.

    Raises:
        DataError: it cannot be read, takes other than one input, or holds what could run code.
    """
    hint = "write it with torch.export.save(torch.export.export(model, (example,), dynamic_shapes=…), FILE)"
    try:
        _refuse_code(file)
        program = torch.export.load(str(file))
    except DataError:
        raise
    except Exception as error:  # damaged files raise whatever the part that is damaged leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot be read: {reason}", where=file, hint=hint) from error
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise DataError(f"takes {len(inputs)} inputs", where=file, hint="export a module of one tensor")
    first = inputs[0].meta["val"].shape[0]
    if torch.device(device).type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module(), int(first) if isinstance(first, int) else None


def _refuse_code(file: Path) -> None:
    """Raises :class:`DataError` where loading the file could run something that stands in it."""
    hint = "export the module again with this version of torch, with tensors alone inside"
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if not any(name.endswith("archive_format") for name in names):
            raise DataError("is not an archive of torch.export.save, or one of an old version", where=file, hint=hint)
        for name in names:
            short = name.partition("/")[2]
            if short.startswith("data/aotinductor/") or short.endswith((".so", ".py")):
                raise DataError(f"holds compiled code, {short}", where=file, hint=hint)
            if short.endswith(".pt") and "sample_inputs" in short:
                with archive.open(name) as inside:
                    torch.load(inside, map_location="cpu", weights_only=True)
            elif short.endswith(".pt"):
                raise DataError(f"holds pickled values, {short}", where=file, hint=hint)
            if short.endswith(".json"):
                for key, value in _items(json.loads(archive.read(name))):
                    if key == "use_pickle" and value:
                        raise DataError(f"holds pickled values, see {short}", where=file, hint=hint)
                    if key == "path_name" and ("obj" in str(value)):
                        raise DataError(f"holds an object that is not a tensor, {value}", where=file, hint=hint)
                    if key == "expr_str" and not SIZES.fullmatch(str(value)):
                        raise DataError(f"holds a size that is {value!r:.80}", where=file, hint=hint)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a JSON document, at any depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
