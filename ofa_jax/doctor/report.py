"""Findings of checks, on one host or many, as lines for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

Status = Literal["ok", "WARN", "FAIL"]
_RANK = {"ok": 0, "WARN": 1, "FAIL": 2}
_MOST_HOSTS = 8  # whose failures of one check are printed


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found on one host."""

    check: str
    status: Status
    found: str  # a sentence without its full stop
    expected: str = ""
    advice: str = ""  # what to do next
    numbers: dict[str, float | int | str | None] = dataclasses.field(default_factory=dict)  # for whoever reads the JSON; units in the names
    measure: float = 0.0  # what hosts are ranked by where they differ: the host with the least is shown
    host: int = 0

    @property
    def text(self) -> str:
        """The finding in words."""
        expected = f", expected {self.expected}" if self.expected else ""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.found}{expected}{advice}"


def failure(check: str, error: Exception) -> Finding:
    """Returns the finding of a check that an error ended; `error` is a `UserError`, whose text is a sentence, or an OSError."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return Finding(check, "FAIL", f"{where}{error.strerror}")
    return Finding(check, "FAIL", str(error) or type(error).__name__)


def to_bytes(findings: Iterable[Finding]) -> bytes:
    """Returns findings as hosts send them to each other."""
    return json.dumps([dataclasses.asdict(finding) for finding in findings]).encode()


def from_bytes(data: bytes) -> list[Finding]:
    """Returns the findings that `to_bytes` made."""
    return [Finding(**fields) for fields in json.loads(data)]


def lines(findings: Sequence[Finding], *, num_hosts: int) -> list[str]:
    """Returns the findings of one stage of all hosts as lines, `ok    check   words`.

    What all hosts found alike is said once. Where they differ, the failures are listed by host, and without a failure the host that is
    worst off stands for all.
    """
    out = []
    for check in dict.fromkeys(finding.check for finding in findings):
        of_check = [finding for finding in findings if finding.check == check]
        by_host = [tuple((f.status, f.text) for f in of_check if f.host == host) for host in range(num_hosts)]
        if len(set(by_host)) == 1:
            out += [_line(finding) for finding in of_check if finding.host == 0]
            continue
        worst = max(_RANK[finding.status] for finding in of_check)
        shown = [finding for finding in of_check if _RANK[finding.status] == worst]
        if worst == _RANK["FAIL"]:
            out += [_line(finding, f" [host {finding.host}]") for finding in shown[:_MOST_HOSTS]]
            if len(shown) > _MOST_HOSTS:
                out.append(f"{'':5} {check:9} and {len(shown) - _MOST_HOSTS} more, in the JSON report")
        else:
            least = min(shown, key=lambda finding: (finding.measure, finding.host))
            out.append(_line(least, f" [host {least.host}, the worst of {num_hosts}]"))
    return out


def _line(finding: Finding, behind: str = "") -> str:
    return f"{finding.status:5} {finding.check:9} {finding.text}{behind}"


@dataclasses.dataclass
class Report:
    """All findings of all hosts, in the order of the checks."""

    facts: dict[str, Any]  # what was looked at: config, hash, hosts, devices
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether any check failed on any host."""
        return any(finding.status == "FAIL" for finding in self.findings)

    def summary(self) -> str:
        """Returns the last line: how many checks came out how, each counted by its worst host."""
        worst: dict[str, int] = {}
        for finding in self.findings:
            worst[finding.check] = max(worst.get(finding.check, 0), _RANK[finding.status])
        counts = {status: sum(rank == found for found in worst.values()) for status, rank in _RANK.items()}
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    def to_json(self) -> str:
        """Returns everything as JSON: `facts`, and a list of `findings` with their hosts."""
        return json.dumps({**self.facts, "findings": [dataclasses.asdict(finding) for finding in self.findings]}, indent=1) + "\n"
