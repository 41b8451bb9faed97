"""The search spec: its schema, its YAML source with line numbers, and its dimensions."""
