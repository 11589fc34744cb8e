"""A run at work on one input at a time: decisions, their log, and a server of both."""
