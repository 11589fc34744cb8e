"""The default method: each agent's raw costs are predicted; query costs and weights are applied after."""
