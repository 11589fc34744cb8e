"""Allocation under constraints: budgets, coverage and capacities by dual prices; choosing a run for a target."""
