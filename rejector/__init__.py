"""Stage two: train, evaluate and query rejectors on cached costs. No agent is ever asked here."""
