"""One network that scores agents: the paper's rejector, trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from l2d.data.networks.tokens import TokenNetwork
from l2d.rejector.networks import make_network
from l2d.rejector.scoring import ExactLayers, layers_of
from l2d.rejector.settings import INPUT_OF
from l2d.rejector.trained import Rejector
from l2d.rejector.training.stack import TOKEN_ROWS_AT_ONCE

if TYPE_CHECKING:
    import onnx

ROWS_AT_ONCE = 65_536  # when scoring, to bound memory


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork(Rejector):
    """A rejector at its epoch of lowest validation risk.

    Attributes:
        state: parameters of the network, and ``feature_mean``, ``feature_std`` of the training split: float32, or
            float64 where the features need it, see :func:`l2d.data.samples.standardise.lost_in_32_bits`.
        history: (epochs, 2): mean surrogate loss in training, deferral risk on validation, both on training costs.
    """

    arrays: ClassVar[Literal["numpy", "torch"]] = "torch"

    state: Mapping[str, Tensor]

    def network(self) -> nn.Module:
        """The network with its parameters. It takes standardised features, or token lists."""
        width, num_agents, config = len(self.state["feature_mean"]), len(self.point.query_costs), self.config
        network = make_network(config.network, width, num_agents, config.hidden, config.layers, self.sizes)
        network.load_state_dict({name: v for name, v in self.state.items() if not name.startswith("feature_")})
        return network.requires_grad_(False)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Raw features (n, width) -> scores (n, agents), float32. Standardised in the bits of the mean.

        A row's scores do not depend on the other rows: of ``linear`` and ``mlp`` by :mod:`l2d.rejector.scoring`; other
        networks reckon in float64, and what neighbours change there is lost when a score is rounded to float32.
        """
        mean, std = self.state["feature_mean"], self.state["feature_std"]
        if self._layers is not None:
            parts = torch.from_numpy(features).split(ROWS_AT_ONCE)
            found = [self._layers(((part.to(mean.dtype) - mean) / std).float().numpy()) for part in parts]
            return np.concatenate(found)
        network = self.network().double()
        rows = torch.from_numpy(features)
        with torch.inference_mode():
            if isinstance(network, TokenNetwork):
                order = network.longest_first(rows)
                trimmed = [network.trimmed(rows[part]) for part in order.split(TOKEN_ROWS_AT_ONCE["cpu"])]
                scores = torch.cat([network(part, lengths) for part, lengths in trimmed]).float()
                return torch.empty_like(scores).index_copy_(0, order, scores).numpy()
            parts = rows.split(ROWS_AT_ONCE)
            return torch.cat([network(((part.to(mean.dtype) - mean) / std).double()).float() for part in parts]).numpy()

    @cached_property
    def _layers(self) -> ExactLayers | None:
        if self.config.network not in ("linear", "mlp"):
            return None
        self.network()  # which refuses parameters that do not fit
        return ExactLayers(
            layers_of({name: v.numpy() for name, v in self.state.items() if not name.startswith("feature_")})
        )

    @classmethod
    def from_facts(cls, facts: dict[str, Any], **fields: Any) -> Rejector:
        if fields["config"].network == "image":
            from l2d.rejector.training.images import TrainedImage

            return TrainedImage(**fields)
        return cls(**fields)

    def check(self) -> None:
        """Apply it once, which fails where the parameters do not fit the network."""
        self.scores(np.zeros((1, self.width), np.float32))

    def onnx_graph(self, example: np.ndarray, instead: np.ndarray, indicated: dict[int, int]) -> onnx.ModelProto:
        from l2d.rejector.training.graph import Deployed, deployed_graph

        mean, std = self.state["feature_mean"], self.state["feature_std"]
        return deployed_graph(
            Deployed(self.network(), mean, std, instead, indicated), INPUT_OF[self.config.network], example
        )
