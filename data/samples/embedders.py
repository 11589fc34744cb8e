"""Frozen encoders of sentences, from a folder or an installed package: model2vec's static ones, and ONNX.

Nothing is downloaded. A static one (model2vec) is the mean of its tokens' vectors. An ONNX one (MiniLM and the like,
as sentence-transformers exports them) is a network; where it gives a vector for each token, their mean counts, brought
to length 1. Each text is encoded by itself, on one thread, so that it has the same bits alone and in a batch; several
texts are encoded side by side.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from l2d.data.errors import DataError, UsageError

PACKAGE = "package:"  # before the name of an installed package, which may be followed by a folder in it
INSTALL = 'pip install "l2d[text]"'
MOST_TOKENS = 256  # of a text that a network looks at, unless its tokenizer says otherwise


class Embedder(Protocol):
    """What encodes texts."""

    @property
    def kind(self) -> str:
        """``static`` or ``onnx``."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it is made of, so that a cache needs no other file."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, width)."""


def needed(module: str) -> Any:
    """A module of the extra ``text``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"sentence embeddings need {module}, which is not installed", hint=INSTALL) from error


def folder_of(embed: str) -> Path:
    """The folder that ``embed`` names: a path, or ``package:NAME`` with a folder of it, ``package:lunar_router/_onnx``.

    The package is not imported.

    Raises:
        UsageError: there is no such package or folder.
    """
    if not embed.startswith(PACKAGE):
        folder = Path(embed)
    else:
        name, _, rest = embed.removeprefix(PACKAGE).partition("/")
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise UsageError(
                f"embed = {embed!r}: there is no such package", hint=f"pip install {name.replace('_', '-')}"
            )
        folder = Path(next(iter(found.submodule_search_locations))) / rest
    if not folder.is_dir():
        raise UsageError(f"embed = {embed!r}: there is no such folder", where=folder, hint="name the model's folder")
    return folder


def embedder_in(folder: Path) -> Embedder:
    """The encoder that a folder holds: model2vec's ``model.safetensors``, or ``model.onnx``, with its tokenizer.

    Raises:
        UsageError: it holds neither, or the extra ``text`` is not installed.
    """
    networks = [folder / "model.onnx", folder / "onnx" / "model.onnx"]
    network = next((file for file in networks if file.is_file()), None)
    if network is not None:
        return Onnx(network.read_bytes(), _tokenizer_in(folder))
    if (folder / "model.safetensors").is_file():
        return Static.in_folder(folder)
    what = "holds neither model.safetensors of model2vec nor model.onnx"
    raise UsageError(what, where=folder, hint="name a folder as model2vec or sentence-transformers save it")


def embedder_of(kind: str, arrays: dict[str, np.ndarray]) -> Embedder:
    """Inverse of :meth:`Embedder.arrays`."""
    tokenizer = arrays["tokenizer"].tobytes().decode()
    if kind == "onnx":
        return Onnx(arrays["network"].tobytes(), tokenizer)
    weights, mapping = arrays.get("token_weights"), arrays.get("token_mapping")
    return Static(arrays["vectors"], tokenizer, weights, mapping, json.loads(arrays["settings"].tobytes()))


def _tokenizer_in(folder: Path) -> str:
    """A tokenizer as JSON: ``tokenizer.json``, or BERT's made of ``vocab.txt``."""
    tokenizers = needed("tokenizers")
    file, words = folder / "tokenizer.json", folder / "vocab.txt"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if not words.is_file():
        raise UsageError("has no tokenizer.json and no vocab.txt", where=folder, hint="put the model's tokenizer there")
    config = folder / "tokenizer_config.json"
    lower = json.loads(config.read_text(encoding="utf-8")).get("do_lower_case", True) if config.is_file() else True
    made = tokenizers.BertWordPieceTokenizer(str(words), lowercase=bool(lower))
    made.enable_truncation(MOST_TOKENS)
    return made.to_str()


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


@dataclass(frozen=True)
class Static:
    """A static encoder of model2vec (Tulkens and van Dongen 2024).

    Attributes:
        vectors: of the tokens, (tokens, width).
        tokenizer: as JSON.
        weights, mapping: of the tokens, where the model has them.
        settings: ``normalize`` and ``max_length``.
    """

    vectors: np.ndarray
    tokenizer: str
    weights: np.ndarray | None = None
    mapping: np.ndarray | None = None
    settings: dict[str, Any] | None = None

    kind = "static"

    @classmethod
    def in_folder(cls, folder: Path) -> Static:
        """As model2vec reads it."""
        try:
            model = needed("model2vec").StaticModel.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"is no model of model2vec: {reason}", where=folder, hint="save it with model2vec"
            ) from error
        settings = {"normalize": bool(model.normalize), "max_length": getattr(model, "max_length", 512)}
        vectors = np.asarray(model.embedding, np.float32)
        return cls(vectors, model.tokenizer.to_str(), model.weights, model.token_mapping, settings)

    @cached_property
    def _model(self) -> Any:
        found = needed("tokenizers").Tokenizer.from_str(self.tokenizer)
        settings = self.settings or {}
        return needed("model2vec").StaticModel(
            self.vectors, found, normalize=settings.get("normalize", False), weights=self.weights,
            token_mapping=self.mapping, max_length=settings.get("max_length", 512),
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"vectors": self.vectors, "tokenizer": _as_bytes(self.tokenizer)}
        found |= {"settings": _as_bytes(json.dumps(self.settings or {}))}
        optional = {"token_weights": self.weights, "token_mapping": self.mapping}
        return found | {name: np.asarray(array) for name, array in optional.items() if array is not None}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if not len(texts):
            return np.empty((0, self.vectors.shape[1]), np.float32)
        found = self._model.encode(list(texts), show_progress_bar=False, use_multiprocessing=False)
        return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Onnx:
    """A network that takes a tokenizer's ids.

    Attributes:
        network: the file's bytes.
        tokenizer: as JSON; it says how many tokens are looked at, else :data:`MOST_TOKENS` are.
    """

    network: bytes
    tokenizer: str

    kind = "onnx"

    @cached_property
    def _tokenizer(self) -> Any:
        found = needed("tokenizers").Tokenizer.from_str(self.tokenizer)
        found.no_padding()
        if found.truncation is None:
            found.enable_truncation(MOST_TOKENS)
        return found

    @cached_property
    def _session(self) -> Any:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return runtime.InferenceSession(self.network, options, providers=["CPUExecutionProvider"])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"network": np.frombuffer(self.network, np.uint8), "tokenizer": _as_bytes(self.tokenizer)}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        session, names = self._session, [one.name for one in self._session.get_inputs()]
        unknown = set(names) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise UsageError(f"the network wants {', '.join(sorted(unknown))}", hint="an encoder takes ids and a mask")

        def one(encoding: Any) -> np.ndarray:
            ids = np.array([encoding.ids], np.int64)
            given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            outputs = session.run(None, {name: given[name] for name in names})
            whole = next((found for found in outputs if found.ndim == 2), None)  # a vector of the text itself
            found = outputs[0][0].mean(axis=0) if whole is None else whole[0]
            return found / max(float(np.linalg.norm(found)), 1e-12)

        encodings = self._tokenizer.encode_batch(list(texts))
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            rows = list(pool.map(one, encodings))
        width = session.get_outputs()[0].shape[-1]
        return np.stack(rows).astype(np.float32) if rows else np.empty((0, width if isinstance(width, int) else 0))
