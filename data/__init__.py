"""What both stages share: datasets, splits, and the cost cache at rest (schema, store, reader)."""
