"""What has moved since a run was trained, from the log of its decisions."""
