"""Run by alembic on the connection of Database.migrate; there is no configuration file and no offline mode."""

from alembic import context

from orchestrator.catalog.model import Schema

context.configure(connection=context.config.attributes["connection"], target_metadata=Schema.metadata, render_as_batch=True)
context.run_migrations()
