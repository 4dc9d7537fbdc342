"""Run by alembic on the connection of Database.migrate; there is no configuration file and no offline mode."""

from alembic import context

from orchestrator.catalog.model import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
