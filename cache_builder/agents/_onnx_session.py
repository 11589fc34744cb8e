"""Opening an ONNX file, on the GPU where there is one that onnxruntime can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from l2d.data.errors import DataError, UsageError
from l2d.data.sources._annotated import is_file


def require_onnxruntime(where: str) -> Any:
    """The package onnxruntime.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("onnxruntime is not installed", where=where, hint='pip install "l2d[onnx]"') from error
    return onnxruntime


def require_session(file: Path, where: str) -> None:
    """Refuse what :func:`open_session` cannot open, without opening it.

    Raises:
        UsageError: there is no such file, or onnxruntime is not installed.
    """
    if not is_file(file):
        raise UsageError(
            f"{where}: there is no such file", where=file, hint="relative paths are relative to the recipe"
        )
    require_onnxruntime(where)


def open_session(file: Path, device: str, where: str) -> Any:
    """An ``InferenceSession`` of a file.

    Raises:
        DataError: it cannot be run; names the file.
    """
    runtime, wanted = require_onnxruntime(where), torch.device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if wanted.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": wanted.index or 0}))
    try:
        return runtime.InferenceSession(str(file), providers=providers)
    except Exception as error:  # onnxruntime has a class of errors for each kind of damage, and no common one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot be run: {reason}", where=file, hint="is it a whole ONNX file?") from error
