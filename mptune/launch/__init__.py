"""Where a search runs: one class per kind of launcher."""
