"""Corrections of predicted costs from the outcomes of a decision log, with the evidence for them."""
