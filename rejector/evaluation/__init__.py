"""What a rejector is worth: losses and metrics of its choices, baselines, intervals, curves, findings in words."""
