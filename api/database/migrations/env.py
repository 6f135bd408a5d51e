"""Alembic runs this to upgrade the database. `schema.prepare` passes the connection, within a transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
