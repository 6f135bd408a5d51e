"""What most tests of the API start from: settings in a folder of the test's own, and the database there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from a2v.api.database.store import Store
from a2v.api.settings import Settings
from a2v.tests.api.edges import make_settings, opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A module may have settings of its own under this name; `database` and `store` lie where they say."""
    return make_settings(tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Store]:
    with opened(settings) as made:
        yield made
