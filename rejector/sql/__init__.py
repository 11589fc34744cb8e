"""SQL over caches and runs: views, the guard around the engine, the prompt."""
