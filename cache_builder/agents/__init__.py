"""The kinds of agents a recipe can name. A new kind is a new module here and a line in the table below."""

from __future__ import annotations

from importlib import import_module

from l2d.cache_builder.agents._base import Agent, AgentConfig

#: kind -> (module, configuration class, agent class). Modules load when a recipe names them: torch is heavy.
KINDS = {
    "two_head": ("two_head", "TwoHeadConfig", "TwoHeadAgent"),
    "two_transformers": ("two_transformers", "TwoTransformersConfig", "TwoTransformersAgent"),
    "cluster_expert": ("cluster_expert", "ClusterExpertConfig", "ClusterExpertAgent"),
    "simulated": ("simulated", "SimulatedConfig", "SimulatedAgent"),
    "column": ("column", "ColumnConfig", "ColumnAgent"),
    "table": ("table", "TableAnswersConfig", "TableAnswersAgent"),
    "torch": ("torch_module", "TorchConfig", "TorchAgent"),
    "torchvision_classifier": ("torchvision_classifier", "TorchvisionClassifierConfig", "TorchvisionClassifierAgent"),
    "onnx": ("onnx", "OnnxConfig", "OnnxAgent"),
    "average": ("average", "AverageConfig", "AverageAgent"),
    "small_faster_rcnn": ("small_faster_rcnn", "SmallFasterRCNNConfig", "SmallFasterRCNNAgent"),
    "torchvision_detector": ("torchvision_detector", "TorchvisionDetectorConfig", "TorchvisionDetectorAgent"),
    "onnx_detector": ("onnx_detector", "OnnxDetectorConfig", "OnnxDetectorAgent"),
    "detections": ("detections", "DetectionsConfig", "DetectionsAgent"),
    "python": ("python", "PythonConfig", "PythonAgent"),
}


def config_class(kind: str) -> type[AgentConfig]:
    """The configuration class of a kind of agent."""
    module, name, _ = KINDS[kind]
    return getattr(import_module(f".{module}", __name__), name)


def make_agent(config: AgentConfig) -> Agent:
    """The agent that a recipe entry describes."""
    module, _, name = KINDS[config.kind]
    return getattr(import_module(f".{module}", __name__), name)(config)


__all__ = ["KINDS", "Agent", "AgentConfig", "config_class", "make_agent"]
