"""Write the schema from the model: `python -m mptune.report.schema`."""

from mptune.report.document import schema, schema_path

schema_path().write_text(schema(), encoding="utf-8")
print(schema_path())
