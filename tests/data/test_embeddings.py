"""Sentence embeddings as features, from a folder: made-up encoders in the forms of model2vec and of ONNX exports."""

from __future__ import annotations

import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused

import l2d
from l2d.data.errors import DataError, UsageError
from l2d.data.samples import embedders
from l2d.data.samples.embedded_text import EmbeddedText, fit_embedding
from l2d.data.samples.embedders import embedder_in, folder_of
from l2d.data.samples.features import FeatureEncoder
from l2d.data.samples.text import COUNTS, TextSettings

tokenizers = pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
pytest.importorskip("model2vec", reason="the extra `text` is not installed")

WORDS = ["[UNK]", "sum", "of", "two", "numbers", "court", "law", "judge", "a", "the"]
WIDTH = 6
VECTORS = np.random.default_rng(0).normal(size=(len(WORDS), WIDTH)).astype(np.float32)


def texts(rows: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS[1:], generator.integers(2, 9))) for _ in range(rows)]


def by_hand(text: str, *, normalized: bool = True) -> np.ndarray:
    """The mean of a text's vectors, of length 1."""
    found = np.mean([VECTORS[WORDS.index(word)] for word in text.split()], axis=0)
    return found / np.linalg.norm(found) if normalized else found


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    found = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    found.pre_tokenizer = Whitespace()
    return found


def static(folder: Path) -> Path:
    from model2vec import StaticModel

    StaticModel(VECTORS, tokenizer(), normalize=True, config={"normalize": True}).save_pretrained(folder)
    return folder


def network(folder: Path) -> Path:
    """A network with a vector for each token, as sentence-transformers exports them."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    inputs = [helper.make_tensor_value_info(name, kind.INT64, ["b", "t"]) for name in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("last_hidden_state", kind.FLOAT, ["b", "t", WIDTH])
    vectors = onnx.numpy_helper.from_array(VECTORS, "vectors")
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=kind.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["found", "wide"], ["last_hidden_state"]),
    ]
    last = onnx.numpy_helper.from_array(np.array([2], np.int64), "last")
    graph = helper.make_graph(nodes, "encoder", inputs, [output], [vectors, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, folder / "onnx" / "model.onnx")
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


FORMS = {"static": static, "onnx": network}


@pytest.mark.parametrize("form", FORMS)
def test_an_encoder_gives_the_mean_of_its_vectors_and_survives_being_kept(tmp_path, form):
    encoder = embedder_in(FORMS[form](tmp_path / "m"))
    asked = texts(50)
    found = encoder(asked)
    assert found == pytest.approx(np.stack([by_hand(text) for text in asked]), abs=1e-6)
    again = embedders.embedder_of(encoder.kind, encoder.arrays())
    assert (again(asked) == found).all()
    assert all((encoder([text])[0] == row).all() for text, row in zip(asked, found, strict=True))
    assert encoder([]).shape == (0, WIDTH)


@pytest.mark.parametrize("form", FORMS)
def test_the_components_are_those_of_scikit_learn(tmp_path, form):
    from sklearn.decomposition import PCA

    asked = texts(200)
    column = pl.Series("prompt", [*asked, None, "  "])
    settings = TextSettings(expression="prompt", components=4, embed=str(FORMS[form](tmp_path / "m")))
    feature = fit_embedding(column, "prompt", settings)
    vectors = np.stack([by_hand(text) for text in asked])
    pca = PCA(4).fit(vectors)
    (found,) = feature.encode(column)
    components = found[:, len(COUNTS) :]
    theirs = pca.transform(vectors)
    signs = np.sign((components[:200] * theirs).sum(axis=0))
    assert components[:200] * signs == pytest.approx(theirs, abs=2e-4)  # directions are kept in steps of 2 ** -16
    assert (components[200:] == 0).all()  # no text
    assert feature.explained == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-4)
    assert (feature.rows, feature.empty, feature.fitted) == (202, 2, 200)
    assert feature.columns()[-1] == "prompt embedding 4"


def table(rows: int = 240) -> pl.DataFrame:
    """Prompts about sums or courts, with two models that know one of them."""
    generator, prompts = np.random.default_rng(1), texts(rows, 1)
    of_law = np.array([sum(word in ("court", "law", "judge") for word in text.split()) > 1 for text in prompts])
    right = {"maths": np.where(of_law, 0.2, 0.9), "lawyer": np.where(of_law, 0.9, 0.2)}
    scores = {name: (generator.random(rows) < chance).astype(float) for name, chance in right.items()}
    return pl.DataFrame({"id": [f"q{k}" for k in range(rows)], "prompt": prompts, **scores})


def test_a_cache_a_run_and_the_transformer_make_the_same_features_without_the_folder(tmp_path):
    folder, frame = static(tmp_path / "m"), table()
    told: list[str] = []
    facts = {"agents": ["maths", "lawyer"], "text": ["prompt"], "embed": str(folder), "say": told.append}
    cache = l2d.import_table(frame, out=tmp_path / "c", id="id", kind="scores", **facts)
    assert any("embeddings of 6 numbers" in line for line in cache.record.inputs["table"]["columns"])
    recipe = tomllib.loads((tmp_path / "c.toml").read_text())
    assert recipe["dataset"]["text"] == {"prompt": {"column": "prompt", "embed": "m"}}
    run = l2d.train(cache, tmp_path / "r")
    cached = np.concatenate(
        [np.stack(cache.samples(k)["features"].to_pylist()) for k in range(cache.record.num_chunks)]
    )
    for file in folder.iterdir():
        file.unlink()
    encoder = run.input.encoder
    assert [type(feature).__name__ for feature in encoder.features] == ["EmbeddedText"]
    assert (encoder.transform(frame).astype(np.float32) == cached.astype(np.float32)).all()
    frame.select("id", "prompt").write_parquet(tmp_path / "new.parquet")
    l2d.route(run, tmp_path / "new.parquet", tmp_path / "out.parquet")
    chosen = dict(pl.read_parquet(tmp_path / "out.parquet").select("sample_id", "agent").iter_rows())
    best = [("lawyer" if row["lawyer"] > row["maths"] else "maths") for row in frame.iter_rows(named=True)]
    unlike = frame.with_columns(best=pl.Series(best)).filter(pl.col("maths") != pl.col("lawyer"))
    assert np.mean([chosen[i] == b for i, b in unlike.select("id", "best").iter_rows()]) > 0.75


def test_the_transformer_of_scikit_learn_gives_the_same_bits(tmp_path):
    from sklearn.base import clone

    folder, asked = static(tmp_path / "m"), texts(120)
    made = clone(l2d.TextFeatures(components=3, embed=str(folder), name="prompt")).fit(asked)
    settings = {"prompt": TextSettings(expression="prompt", components=3, embed=str(folder))}
    frame = pl.DataFrame({"prompt": asked})
    encoder = FeatureEncoder.fit(frame, [], text=settings)
    assert (made.transform(asked) == encoder.transform(frame)).all()
    assert list(made.get_feature_names_out()) == encoder.names
    again = FeatureEncoder.from_json(encoder.to_json(), encoder.frozen())
    assert (again.transform(frame) == encoder.transform(frame)).all()
    assert isinstance(again.features[0], EmbeddedText)


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    place = tmp_path / "a_package"
    static(place / "model")
    (place / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert folder_of("package:a_package/model") == place / "model"
    refused_by = [("package:no_such_thing", "no such package"), ("package:a_package/other", "no such folder")]
    for embed, words in refused_by:
        with pytest.raises(UsageError, match=words):
            folder_of(embed)


def test_what_cannot_be_an_encoder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    refused(lambda: embedder_in(tmp_path / "empty"), UsageError, "model.safetensors", "model.onnx")
    column = pl.Series("prompt", ["the law"] * 30)
    settings = TextSettings(expression="prompt", embed=str(static(tmp_path / "m")))
    with pytest.raises(DataError, match="the same embedding"):
        fit_embedding(column, "prompt", settings)
    monkeypatch.setitem(sys.modules, "model2vec", types.ModuleType("model2vec"))
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        embedder_in(tmp_path / "m")
    assert 'pip install "l2d[text]"' in caught.value.hint
