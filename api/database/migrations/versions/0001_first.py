"""The tables of version 0.1.0."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("app", sa.String, nullable=False),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("media", sa.JSON, nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.String),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("base_url", sa.String, nullable=False),
        sa.Column("webhook_url", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("start_timeout", sa.Float),
        sa.Column("cancel", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease_server", sa.String),
        sa.Column("lease_until", sa.Float),
        sa.Column("token", sa.String),
        sa.Column("prompt_id", sa.String),
        sa.Column("workflow", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("sync_mode", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("error_type", sa.String),
        sa.Column("error_status", sa.Integer),
        sa.Column("error_detail", sa.JSON),
        sa.Column("safety", sa.String),
        sa.Column("read", sa.Float),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.UniqueConstraint("app", "idempotency_key"),
        sa.UniqueConstraint("id"),
    )
    op.create_index("requests_in_order", "requests", ["status", "priority", "number"])
    op.create_table(
        "logs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("request_id", sa.String, sa.ForeignKey("requests.id", ondelete="CASCADE"), nullable=False),
        sa.Column("timestamp", sa.Float, nullable=False),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_index("ix_logs_request_id", "logs", ["request_id"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("content_type", sa.String, nullable=False),
        sa.Column("multipart", sa.String),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.Column("keep_seconds", sa.Float),
        sa.Column("digest", sa.String),
        sa.Column("size", sa.Integer),
    )
    op.create_table(
        "upload_parts",
        sa.Column("upload", sa.String, sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("etag", sa.String, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
    )
    op.create_table(
        "upload_bearers",
        sa.Column("token", sa.String, primary_key=True),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("last_error", sa.Text),
    )
    op.create_index("ix_webhook_deliveries_state", "webhook_deliveries", ["state"])
