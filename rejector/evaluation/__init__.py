"""What a rejector is worth: losses and metrics of whom it chose, opponents, intervals, curves, findings in words."""
