"""A run within other packages: each decides as the router itself does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.errors import UsageError
from l2d.rejector.serving.adapters.router_arena import arena_router


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A run on texts, and some."""
    folder = tmp_path_factory.mktemp("prompts")
    generator, rows = np.random.default_rng(3), 80
    hard = generator.random(rows) < 0.5
    texts = [" ".join(generator.choice(["river", "poem", "why"] if h else ["sum", "prove", "add"], 5)) for h in hard]
    table = pl.DataFrame({"q": [f"q{k}" for k in range(rows)], "prompt": texts, "truth": hard.astype(int)})
    answers = pl.concat(
        table.select("q", who=pl.lit(name), answer=answer)
        for name, answer in (("small", pl.lit(0)), ("large", pl.lit(1)))
    )
    cache = l2d.import_table(
        table, answers, out=folder / "cache", id="q", target="truth", model="small", text=["prompt"], columns=[],
        annotator="who", cla="answer",
    )  # fmt: skip
    l2d.train(cache, folder / "run", guard=0.0)
    router = l2d.load_router(folder / "run")
    router.path = folder / "run"
    assert {router.route(text).agent for text in texts} == {"small", "large"}
    return router, texts[:12]


def deployments_of(router: l2d.Router) -> list[dict]:
    """A deployment of each agent, which answers without asking anything."""
    return [
        {
            "model_name": "mine",
            "litellm_params": {"model": f"openai/{name}", "api_key": "none", "mock_response": f"of {name}"},
            "model_info": {"id": name},
        }
        for name in router.agents
    ]


def test_router_arena_gets_the_names_of_its_models(prompts, tmp_path):
    router, texts = prompts

    class BaseRouter:
        """As RouterArena publishes it: the configuration's models, and a prediction that has to be one of them."""

        def __init__(self, router_name: str):
            self.router_name = router_name
            self.config = json.loads((tmp_path / f"{router_name}.json").read_text())
            self.models = self.config["pipeline_params"]["models"]

        def get_prediction(self, query: str) -> str:
            found = self._get_prediction(query)
            assert found in self.models
            return found

    config = {"pipeline_params": {"router_name": "mine", "router_cls_name": "L2DRouter", "models": ["gpt-s", "large"]}}
    (tmp_path / "mine.json").write_text(json.dumps(config))
    names = {"small": "gpt-s"}
    made = arena_router(BaseRouter, router, models=names)("mine")
    for text in texts:
        agent = router.route(text).agent
        assert made.get_prediction(text) == names.get(agent, agent)
    config["pipeline_params"]["models"] = ["gpt-s"]
    (tmp_path / "mine.json").write_text(json.dumps(config))
    assert {arena_router(BaseRouter, router, models=names)("mine").get_prediction(text) for text in texts} == {"gpt-s"}
    with pytest.raises(UsageError, match="no model"):
        arena_router(BaseRouter, router, models={"small": "s", "large": "l"})("mine")


@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("package", ["litellm", "mlflow"])
def test_what_the_page_shows_runs(prompts, tmp_path, monkeypatch, package):
    pytest.importorskip(package)
    pytest.importorskip("pandas")
    router, _ = prompts
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(router.path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if f"import {package}" in one]
    told = {"deployments": deployments_of(router)}
    exec(block, told)
    if package == "litellm":
        assert told["answer"].choices[0].message.content == f"of {router.route('why the river').agent}"
    else:
        expected = [router.route(text).agent for text in ("why the river", "prove the sum")]
        assert told["table"]["agent"].tolist() == expected


@pytest.mark.filterwarnings("ignore")  # of litellm and what it imports
def test_litellm_sends_requests_to_the_deployment_of_the_agent(prompts):
    litellm = pytest.importorskip("litellm")
    from l2d.rejector.serving.adapters.litellm_strategy import use_in

    router, texts = prompts
    deployments = deployments_of(router)
    other = {**deployments[0], "model_name": "other", "model_info": {"id": "elsewhere"}}
    asked, told = litellm.Router(model_list=[*deployments, other]), []
    use_in(asked, router, told=told.append)
    for text in texts:
        answer = asked.completion(model="mine", messages=[{"role": "user", "content": text}])
        assert answer.choices[0].message.content == f"of {router.route(text).agent}"
    assert [one.agent for one in told] == [router.route(text).agent for text in texts]
    parts = [{"type": "text", "text": texts[0]}, {"type": "image_url", "image_url": {"url": "x"}}]
    answer = asked.completion(model="mine", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == f"of {router.route(texts[0]).agent}"
    with pytest.raises(UsageError, match="no deployment"):
        use_in(litellm.Router(model_list=[other]), router)


@pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports
def test_mlflow_loads_a_run_as_a_model(patient_runs, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("pandas")
    from l2d.rejector.serving.adapters.mlflow_model import save

    save(patient_runs / "best", tmp_path / "model")
    assert not list((tmp_path / "model").rglob("*.pkl"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    table = pl.read_parquet(patient_runs / "patients.parquet").select("x1", "x2", "ward").head(30)
    found = model.predict(table.to_pandas())
    router = l2d.load_router(patient_runs / "best")
    decisions = router.route_batch(table.to_dicts())
    assert found["agent"].tolist() == [one.agent for one in decisions]
    scores = found[[f"score_{name}" for name in router.agents]].to_numpy()
    np.testing.assert_array_equal(scores.astype(np.float32), np.stack([one.scores for one in decisions]))
