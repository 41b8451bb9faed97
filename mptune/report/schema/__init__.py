"""The JSON schema of report.json, one file for each version of it."""
