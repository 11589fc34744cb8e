"""The default method: each agent's raw costs predicted by cross-fitted models, query costs and weights applied after."""
