"""What another policy would have cost, from decisions that were logged."""
