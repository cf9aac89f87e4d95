from __future__ import annotations

from pathlib import Path

import pytest

from ofa_jax.prepare import fixtures


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures' data directory; read only."""
    return fixtures.write(tmp_path_factory.mktemp("fixtures") / "data")
