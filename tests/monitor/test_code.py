"""Which program a result is of: the digest of its files, and its commit."""

from __future__ import annotations

import subprocess

from ofa_jax.monitor import code


def _git(folder, *words):
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *person, *words], check=True, capture_output=True)


def test_a_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    package = tmp_path / "clone" / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(code, "_PACKAGE", package)
    assert code.commit() == ""  # no clone
    first = code.code_digest()
    _git(package.parent, "init", "-q")
    assert code.commit() == ""  # nothing is committed
    _git(package.parent, "add", "-A")
    _git(package.parent, "commit", "-qm", "one")
    of = code.commit()
    assert len(of) == 40 and code.code_digest() == first
    (package / "a.py").write_text("a = 2\n")
    assert code.commit() == f"{of}+changes" and code.code_digest() != first
