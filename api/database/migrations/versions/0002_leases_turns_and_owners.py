"""Leases by a clock that only goes forward, places in the queue apart from the order of arrival, owners of files."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    _requests()
    op.create_table(
        "media_needs",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("until", sa.Float),
    )
    op.create_index("media_needs_of_request", "media_needs", ["request_id"])
    op.create_index("media_needs_until", "media_needs", ["until"], sqlite_where=sa.text("until IS NOT NULL"))
    op.add_column("webhook_deliveries", sa.Column("host", sa.String, nullable=False, server_default=""))
    op.drop_index("ix_webhook_deliveries_state", "webhook_deliveries")
    op.create_index("webhook_deliveries_due", "webhook_deliveries", ["state", "due"])
    _own_media()


def _requests() -> None:
    op.add_column("requests", sa.Column("turn", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE requests SET turn = number")
    op.add_column("requests", sa.Column("origin", sa.Text))
    op.add_column("requests", sa.Column("boot", sa.String, nullable=False, server_default=""))
    op.add_column("requests", sa.Column("start_before", sa.Float))
    op.add_column("requests", sa.Column("lease_boot", sa.String))
    op.add_column("requests", sa.Column("lease_from", sa.Float))  # a lease without one is over
    op.drop_index("requests_in_order", "requests")
    op.create_index("requests_in_order", "requests", ["status", "priority", "turn", "number"])
    for name, which in (
        ("requests_with_files", "gone = 0"),
        ("requests_without_files", "gone = 1"),
        ("requests_sent_once", "gone = 0 AND sync_mode = 1"),
    ):
        where = sa.text(f"ended IS NOT NULL AND {which}")
        op.create_index(name, "requests", ["ended"], sqlite_where=where)


def _own_media() -> None:
    """Writes down which requests need which files, as their rows name them."""
    connection = op.get_bind()
    found = connection.execute(sa.text("SELECT id, media FROM requests WHERE gone = 0")).fetchall()
    needs = [{"request": id, "name": name} for id, media in found for name in set(json.loads(media).values())]
    if needs:
        connection.execute(sa.text("INSERT INTO media_needs (name, request_id) VALUES (:name, :request)"), needs)
