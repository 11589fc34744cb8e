"""Costs of answers that both stages need: of boxes, which stage one is told and stage two computes for fused ones."""
