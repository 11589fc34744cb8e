"""The examples of docs/agents.md, run as they stand there."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from recipes import ONE_TASK, Values

DOC = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")


def example(name: str) -> tuple[str, str]:
    """Code and recipe entry of an example, by the name of its file."""
    blocks = re.findall(r"```(python|toml)\n(.*?)```", DOC, re.S)
    at = next(k for k, (_, text) in enumerate(blocks) if text.startswith(f"# {name}"))
    return blocks[at][1], blocks[at + 1][1]


def entry(text: str, **options) -> Values:
    """A recipe entry with other options."""
    (values,) = tomllib.loads(text)["agents"]
    return {**values, "options": {**values["options"], **options}}


@pytest.mark.slow
def test_scikit_learn(workshop):
    from sklearn.ensemble import GradientBoostingClassifier

    code, text = example("sklearn_agent.py")
    (workshop.folder / "sklearn_agent.py").write_text(code)
    earlier = workshop.table.select("x1", "stay", "died")[:60]
    earlier.write_csv(workshop.folder / "earlier.csv")
    options = {"table": str(workshop.folder / "earlier.csv"), "columns": ["x1", "stay"], "target": "died"}
    workshop.build(ONE_TASK.plus(entry(text, **options)))
    model = GradientBoostingClassifier(random_state=0)
    model.fit(earlier.select("x1", "stay").to_numpy(), earlier["died"].to_numpy())
    expected = model.predict_proba(workshop.table.select("x1", "stay").to_numpy())
    np.testing.assert_allclose(workshop.predictions("boosting")["pred_prob"], expected, atol=1e-6)


def test_transformers(workshop):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    code, text = example("transformers_agent.py")
    (workshop.folder / "transformers_agent.py").write_text(code)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    folder = workshop.folder / "text_model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), vocab_file=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        initializer_range=1.0,
    )
    network = transformers.BertForSequenceClassification(config).eval()
    network.save_pretrained(folder)
    workshop.build(ONE_TASK.plus(entry(text, model=str(folder), column="ward")))
    found = workshop.predictions("reader")["pred_prob"]
    tokens = torch.tensor([[2, words.index(ward), 3] for ward in workshop.table["ward"]])  # [CLS] word [SEP]
    with torch.inference_mode():
        expected = network(tokens).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(found.round(4), axis=0)) == 3


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    import torch
    from PIL import Image
    from test_model_agents import ask, photos

    code, text = example("timm_agent.py")
    (tmp_path / "timm_agent.py").write_text(code)
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert tomllib.loads(text)["agents"][0]["factory"] == "timm_agent:make"
    options = {"model": "resnet10t", "classes": 3, "weights": str(tmp_path / "weights.pth")}
    made = photos(tmp_path, count=3)
    _, found = ask(made, kind="python", factory="timm_agent:make", path=tmp_path, options=options)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in made.images])
    with torch.inference_mode():
        np.testing.assert_allclose(found.prob, network(images).softmax(1).numpy(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def api():
    """A server that is overloaded now and then, and does not know about ward c."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(row)
            if len(asked) % 5 == 0:
                self.send_error(503)
                return
            answer = None if row["ward"] == "c" else {"prob": [0.25, 0.75], "paid": 0.5 if row["ward"] == "a" else 1.5}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/answer", asked
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def test_an_http_api(workshop, api):
    url, asked = api
    code, text = example("http_agent.py")
    (workshop.folder / "http_agent.py").write_text(code)
    report = workshop.build(ONE_TASK.plus(entry(text, url=url, columns=["ward"], wait=0.0)))
    ward = workshop.table["ward"].to_numpy()
    assert len(asked) > len(ward)  # what was refused was asked again
    assert (report.failed["api"], report.unavailable["api"]) == (0, (ward == "c").sum())
    parts = sorted((workshop.folder / "cache/agents/api/predictions").glob("*.parquet"))
    found = pl.concat([pl.read_parquet(part) for part in parts])
    assert found["pred_prob"].is_null().to_list() == (ward == "c").tolist()
    record = workshop.cache().agent("api")
    paid = np.where(ward == "a", 0.5, 1.5)[ward != "c"]
    assert record.price == record.paid == pytest.approx(paid.mean())
    assert record.seconds == pytest.approx(found["seconds"].mean())
    assert record.partial


def test_every_toml_block_is_read_as_a_recipe_would_be():
    for kind, text in re.findall(r"```(toml)\n(.*?)```", DOC, re.S):
        assert tomllib.loads(text)["agents"], kind
