"""The page: figures, examples and tables in one file."""
