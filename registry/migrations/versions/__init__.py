"""One file for each change of the schema, read by Alembic and never imported as modules."""
