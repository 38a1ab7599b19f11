"""Run by alembic: migrates over the connection that database.py hands in, in one transaction."""

from alembic import context

from deadiff.service.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
)
with context.begin_transaction():
    context.run_migrations()
