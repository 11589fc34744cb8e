"""Text as features: against scikit-learn, row by row, in odd scripts and sizes, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from l2d.data.errors import CorruptPart, DataError
from l2d.data.samples import text as text_module
from l2d.data.samples.columns import column_lines, no_text
from l2d.data.samples.features import FeatureEncoder
from l2d.data.samples.text import COUNTS, WORD, TextSettings

SUBJECTS = {
    "sums": ["add", "the", "numbers", "seven", "eight", "nine", "total", "sum", "plus", "equals", "how", "much"],
    "code": ["write", "a", "python", "function", "that", "returns", "list", "string", "loop", "def", "test"],
    "law": ["the", "court", "held", "that", "plaintiff", "defendant", "contract", "breach", "damages", "statute"],
}


def prompts(rows: int = 90, seed: int = 0) -> list[str]:
    """Texts on three subjects, each of its own words and a few that are everywhere."""
    generator = np.random.default_rng(seed)
    names = list(SUBJECTS)
    return [
        " ".join(generator.choice([*SUBJECTS[names[row % 3]], "Please", "tell"], size=generator.integers(4, 20)))
        for row in range(rows)
    ]


def fitted(texts: list, **settings) -> FeatureEncoder:
    return FeatureEncoder.fit(frame(texts), [], text={"prompt": TextSettings(expression="prompt", **settings)})


def frame(texts: list) -> pl.DataFrame:
    return pl.DataFrame({"prompt": pl.Series(texts, dtype=pl.String)})


@pytest.mark.parametrize("phrases", [1, 2, 3])
def test_components_are_scikit_learns_tfidf_and_its_truncated_svd(phrases):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, new = prompts(), [*prompts(40, seed=1), "Zürich ÄRGER add", "nothing known here 東京"]
    encoder = fitted(texts, components=3, phrases=phrases)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=WORD, ngram_range=(1, phrases))
    svd = TruncatedSVD(3, algorithm="arpack", random_state=1).fit(vectorizer.fit_transform(texts))
    feature = encoder.features[0]
    assert list(feature.vocabulary) == sorted(vectorizer.vocabulary_)
    theirs = svd.transform(vectorizer.transform(new))
    ours = encoder.transform(frame(new))[:, -3:]
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=5e-4)  # directions are multiples of 2 ** -16
    whole = vectorizer.transform(texts)
    kept = (svd.singular_values_**2).sum() / whole.multiply(whole).sum()
    assert feature.explained == pytest.approx(kept, abs=1e-4)


def test_the_most_frequent_terms_are_kept():
    from sklearn.feature_extraction.text import CountVectorizer

    texts = prompts()
    counts = CountVectorizer(token_pattern=WORD, binary=True).fit(texts)
    frequency = np.asarray(counts.transform(texts).sum(axis=0)).ravel()
    found = fitted(texts, terms=5).features[0].vocabulary
    assert len(found) == 5
    assert min(frequency[counts.vocabulary_[term]] for term in found) >= np.sort(frequency)[-5]


def test_counts_are_pythons():
    texts = ["Add 7 + 8!\nNow", "", "école 東京\n\n  ok", "A" * 10]
    found = fitted(prompts()).transform(frame(texts))[:, : len(COUNTS)]
    for text, row in zip(texts, found, strict=True):
        length = max(1, len(text))
        expected = [
            len(text),
            len(re.findall(WORD, text.lower())),
            len(text.split("\n")) if text else 0,
            sum(c.isdigit() for c in text) / length,
            sum(c.isupper() for c in text) / length,
            sum(not c.isalnum() and not c.isspace() for c in text) / length,
            sum(ord(c) > 127 for c in text) / length,
        ]
        np.testing.assert_allclose(row, np.float32(expected))


@given(st.lists(st.one_of(st.none(), st.text(max_size=60), st.sampled_from(prompts(30))), min_size=1, max_size=30))
def test_a_row_has_the_same_bits_alone_and_in_a_batch(texts):
    encoder = ENCODER
    together = encoder.transform(frame(texts))
    alone = np.concatenate([encoder.transform(frame([one])) for one in texts])
    assert together.tobytes() == alone.tobytes()
    assert np.isfinite(together).all()


ENCODER = fitted(prompts())


def test_batches_of_any_size_give_the_same_bits(monkeypatch):
    texts = prompts(100, seed=2)
    expected = ENCODER.transform(frame(texts))
    monkeypatch.setattr(text_module, "ROWS_AT_ONCE", 7)
    assert ENCODER.transform(frame(texts)).tobytes() == expected.tobytes()
    assert fitted(prompts()).frozen() == ENCODER.frozen()


def test_the_number_of_threads_changes_no_bit():
    texts = prompts(600, seed=3)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(fitted(texts, components=8).frozen())
    assert found[0] == found[1]


def test_an_encoder_comes_back_from_json_and_arrays():
    value, frozen = json.loads(json.dumps(ENCODER.to_json())), ENCODER.frozen()
    again = FeatureEncoder.from_json(value, frozen)
    assert again.names == ENCODER.names == value["names"]
    assert again.columns == {"prompt": "String"}
    texts = frame([*prompts(20, seed=4), None])
    assert again.transform(texts).tobytes() == ENCODER.transform(texts).tobytes()
    assert again.to_json() == value
    for wrong in (None, b"", frozen[:-1], frozen[:-1] + bytes([frozen[-1] ^ 1])):
        with pytest.raises(CorruptPart, match="vocabulary"):
            FeatureEncoder.from_json(value, wrong)


def test_directions_are_called_by_their_words():
    names = fitted(prompts(), components=3).names
    assert names[: len(COUNTS)] == [f"prompt: {name}" for name in COUNTS]
    for name, number in zip(names[-3:], (1, 2, 3), strict=True):
        assert name.startswith(f"prompt component {number} (")
    assert len(set(names)) == len(names)


def test_no_text_is_zero_everywhere_and_is_told():
    texts = [*prompts(20), None, "", "   \n"]
    encoder = fitted(texts)
    found = encoder.transform(frame(texts))
    assert (found[-3:] == 0).all()
    assert (found[:-3] != 0).any(axis=1).all()
    ids = [f"s{row}" for row in range(len(texts))]
    assert no_text(frame(texts), encoder, ids) == ["no prompt: 3 of 23 samples: s20, s21, s22"]
    (line,) = column_lines(frame(texts), encoder, [])
    assert line.startswith(f"features: text: prompt ({len(encoder.features[0].vocabulary)} words, ")
    assert f"{encoder.features[0].components} components keep" in line
    assert no_text(frame(prompts()), ENCODER, ids) == []


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["請問今天天氣如何", "今天如何", "天氣好"], {"今", "天", "氣", "如", "何"}),
        (["как дела сегодня", "Дела идут", "сегодня НЕТ"], {"дела", "сегодня"}),
        (["مرحبا بالعالم", "مرحبا بك", "العالم"], {"مرحبا"}),
        (["สวัสดี", "สวัสดีครับ"], set("สวัสดี")),
        (["🙂 ok", "🙂 ok then"], {"ok"}),
        (["x = 1", "x = 2", "y"], {"x"}),
        (["the", "of the", "the of"], {"the", "of"}),
    ],
)
def test_other_scripts_single_letters_and_stop_words(texts, words):
    encoder = fitted(texts)
    assert set(encoder.features[0].vocabulary) == words
    assert np.isfinite(encoder.transform(frame(texts))).all()


def test_a_very_long_text_is_read_whole():
    texts = [*prompts(30), "court " * 200_000 + "python"]
    found = fitted(texts).transform(frame(texts))
    assert found[-1, 0] == len(texts[-1])
    assert found[-1, 1] == 200_001


def test_fewer_texts_than_components_give_fewer_components():
    for texts in (["add seven", "add eight"], prompts(9), ["same words", "same words", "words"]):
        feature = fitted(texts, components=32).features[0]
        assert 1 <= feature.components <= min(len(texts), len(feature.vocabulary))
    twice = prompts(12)
    assert fitted(twice + twice).features[0].components <= 12  # texts that stand twice are no directions of their own


def test_a_list_of_texts_is_put_together_in_lines():
    lists = pl.DataFrame({"prompt": [["add seven", "and eight"], ["add nine"], [None, "eight"], None, []]})
    encoder = FeatureEncoder.fit(lists, [], text={"prompt": TextSettings(expression="prompt")})
    joined = frame(["add seven\nand eight", "add nine", "eight", None, ""])
    assert encoder.transform(lists).tobytes() == encoder.transform(joined).tobytes()


def test_categories_stay_beside_text_and_an_expression_may_make_it():
    table = frame(prompts()).with_columns(
        pl.Series("kind", ["a", "b", "c"] * 30), pl.Series("more", ["tail tail"] * 90)
    )
    settings = TextSettings(expression="prompt || ' ' || more", components=2)
    encoder = FeatureEncoder.fit(table, ["kind"], text={"both": settings})
    assert encoder.names[:3] == ["kind = a", "kind = b", "kind = c"]
    assert encoder.columns == {"prompt": "String", "kind": "String", "more": "String"}
    assert "tail" in encoder.features[1].vocabulary


def test_more_texts_than_are_fitted_on_are_taken_evenly(monkeypatch):
    monkeypatch.setattr(text_module, "MOST_TEXTS", 30)
    texts = prompts(90)
    encoder = fitted(texts)
    feature = encoder.features[0]
    assert (feature.rows, feature.fitted) == (90, 30)
    chosen = [texts[int(place)] for place in np.linspace(0, 89, 30)]
    assert fitted(chosen).frozen() == encoder.frozen()
    (line,) = column_lines(frame(texts), encoder, [])
    assert "words of 30 texts" in line


def test_test_texts_teach_nothing(tmp_path):
    from conftest import load_patients as load
    from conftest import patients

    table = patients().with_columns(pl.Series("note", prompts(120)))
    before = load(tmp_path, table, text=["note"])
    held = pl.Series(before.split != "train")
    changed = table.with_columns(pl.when(held).then(pl.lit("brand new words words")).otherwise("note").alias("note"))
    after = load(tmp_path, changed, text=["note"])
    assert after.frozen == before.frozen
    assert after.inputs["features"] == before.inputs["features"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["always this"] * 20, "is the same in all 20 training rows"),
        ([None, "", " "], "has no value in the training split"),
        ([f"id{row}" for row in range(20)], "no word is in 2 of the 20 training texts"),
        (["!!!", "???", "..."], "no word is in 2"),
    ],
)
def test_what_says_nothing_is_refused(texts, message):
    with pytest.raises(DataError, match=message) as refusal:
        fitted(texts)
    assert "leave it out" in refusal.value.hint


def test_numbers_are_no_text():
    with pytest.raises(DataError, match="of type Int64") as refusal:
        FeatureEncoder.fit(pl.DataFrame({"n": [1, 2]}), [], text={"n": TextSettings(expression="n")})
    assert "CAST(n AS VARCHAR)" in refusal.value.hint


def test_free_text_as_a_feature_is_refused_and_the_way_named():
    texts = [f"{one} {row}" for row, one in enumerate(prompts(150))]
    with pytest.raises(DataError, match="text with 150 values") as refusal:
        FeatureEncoder.fit(frame(texts), ["prompt"])
    assert 'text = ["prompt"]' in refusal.value.hint
    assert "--text prompt" in refusal.value.hint


def test_the_transformer_of_pipelines_gives_the_same_bits():
    from sklearn.base import clone
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    from l2d import DeferralRejector, TextFeatures

    texts, new = prompts(), [*prompts(20, seed=5), None, ""]
    transformer = clone(TextFeatures(name="prompt")).fit(texts)
    expected = ENCODER.transform(frame(new)).tobytes()
    forms = [new, np.array(new, dtype=object), np.array(new, dtype=object)[:, None], frame(new), frame(new)["prompt"]]
    for form in [*forms, frame(new).to_pandas()["prompt"]]:
        assert transformer.transform(form).tobytes() == expected
    assert transformer.get_feature_names_out().tolist() == ENCODER.names
    assert transformer.transform([]).shape == (0, len(ENCODER.names))
    with pytest.raises(ValueError, match="give one column"):
        transformer.transform(np.array([["a", "b"]], dtype=object))
    table = frame(texts).with_columns(pl.Series("kind", ["a", "b", "c"] * 30)).to_pandas()
    costs = np.array([[row % 3 != 0, row % 3 == 0] for row in range(90)], dtype=float)
    columns = ColumnTransformer([("prompt", TextFeatures(), "prompt"), ("kind", OneHotEncoder(), ["kind"])])
    model = make_pipeline(columns, DeferralRejector(guard=0)).fit(table, costs)
    assert (model.predict(table) == costs.argmin(axis=1)).mean() > 0.95


def test_the_page_makes_components_without_us(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import numpy.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/text.md", "exec"), names)
    (tmp_path / "text.safetensors").write_bytes(ENCODER.frozen())
    texts = [*prompts(30, seed=6), "", "請問 add SEVEN Ärger", "  python \n"]
    theirs = names["components"](tmp_path / "text.safetensors", texts)
    ours = ENCODER.transform(frame(texts))[:, len(COUNTS) :]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)  # logarithms are multiples of 2 ** -16
