"""Where a search runs: one file per kind of launcher."""
