"""Rejector methods of the literature on the same cached costs, through the same evaluation. See docs/methods.md."""
