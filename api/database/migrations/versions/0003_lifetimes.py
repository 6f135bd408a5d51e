"""How long a client wishes to keep the files of its request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    op.add_column("requests", sa.Column("keep_seconds", sa.Float))
    where = sa.text("ended IS NOT NULL AND gone = 0 AND keep_seconds IS NOT NULL")
    op.create_index("requests_short_lived", "requests", ["ended"], sqlite_where=where)
