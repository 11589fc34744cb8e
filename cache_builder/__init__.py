"""Stage one: ask every frozen agent once per sample and write the cost cache."""
