"""The real environment fits the real pins; other pins are told one by one."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.doctor.versions import ROOT, check_versions, read_pins


def test_this_environment_is_as_pinned():
    [finding] = check_versions(ROOT / "requirements.txt")
    assert finding.status == "ok" and f"jax {metadata.version('jax')}" in finding.found


def test_wrong_pins_are_named(tmp_path: Path):
    (tmp_path / "more.txt").write_text("no_such_package_of_ours==1.0\n")
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(
        "# a comment\n-r more.txt\nnumpy==1.0  # decides numbers\npillow==1.0\n"
        f"jax=={metadata.version('jax')}; python_version >= '3.11'\njax==0.1; python_version < '3'\n"
    )
    found = {(one.status, one.text.split(",")[0]) for one in check_versions(wanted)}
    assert found == {
        ("FAIL", "no_such_package_of_ours: found none"),
        ("FAIL", f"numpy: found {metadata.version('numpy')}"),
        ("WARN", f"pillow: found {metadata.version('pillow')}"),
    }


def test_a_file_that_is_no_list_of_requirements_is_a_mistake(tmp_path: Path):
    with pytest.raises(ConfigError, match="none.txt: found no such file"):
        read_pins(tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_text("numpy\nnumpy = = 3\n")
    with pytest.raises(ConfigError, match=r"bad.txt: line 2: found 'numpy = = 3', expected a requirement"):
        read_pins(tmp_path / "bad.txt")
