"""What all hosts of a run must have alike: devices, versions, code, config, data, and the time."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ofa_jax.config.render import config_hash
from ofa_jax.config.schema import AnyRun
from ofa_jax.doctor.report import Finding
from ofa_jax.monitor.code import code_digest
from ofa_jax.parallel import hosts

MAX_SKEW_S = 1.0  # between two hosts' clocks: files are stamped, and hosts are called silent, by them
_ROUNDS = 7  # of comparing clocks
_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")  # as NVIDIA's, Google's and AMD's drivers show them


def check_devices(num_hosts: int) -> list[Finding]:
    """Returns what the devices of this host are, and whether each multiplies. num_hosts: processes that the environment tells of."""
    local = jax.local_devices()
    kinds = sorted({device.device_kind for device in local})
    said = f"{jax.device_count()} device(s) of kind {', '.join(kinds)}, {jax.process_count()} process(es) with {len(local)} each"
    numbers = {"devices": jax.device_count(), "local_devices": len(local), "processes": jax.process_count(), "kind": kinds[0]}
    findings = []
    if jax.process_count() != num_hosts:
        expected = f"{num_hosts}, which the environment tells of"
        findings.append(
            Finding("devices", "FAIL", f"{jax.process_count()} process(es) joined", expected, "start the same command on every host")
        )
    there = [path for path in _ACCELERATORS if os.path.exists(path)]
    if local[0].platform == "cpu" and there and os.environ.get("JAX_PLATFORMS", "") != "cpu":
        expected = f"those of {', '.join(there)}"
        advice = "install JAX's package for them, with the pinned version, or set JAX_PLATFORMS=cpu if CPUs are meant"
        findings.append(Finding("devices", "FAIL", "JAX found CPU devices alone", expected, advice))
    for device in local:
        if not _multiplies(device):
            findings.append(Finding("devices", "FAIL", f"{device}: a product of ones came out wrong", "256", "replace this machine"))
    return findings or [Finding("devices", "ok", said, numbers=numbers)]


def _multiplies(device: jax.Device) -> bool:
    ones = jax.device_put(np.ones((256, 256), np.float32), device)
    return bool(np.all(np.asarray(jnp.dot(ones, ones)) == 256.0))


def facts(config: AnyRun, packages: Mapping[str, str]) -> dict[str, Any]:
    """Returns what is to be the same on every host, by name."""
    local = jax.local_devices()
    return {
        "Python": ".".join(map(str, sys.version_info[:3])),
        "packages": dict(packages),
        "code": code_digest(),
        "config": config_hash(config)[:12],
        "devices": f"{len(local)} x {local[0].device_kind}",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
    }


def compare(all_facts: Sequence[Mapping[str, Any]], *, check: str) -> list[Finding]:
    """Returns a failure for every fact of a host that is not the first host's; one finding that all agree where none is.

    all_facts: by host, values by name; a value that is a mapping is compared name by name.
    """
    flat = [_flat(of_host) for of_host in all_facts]
    faults = []
    for host, of_host in enumerate(flat[1:], 1):
        for name in dict.fromkeys([*flat[0], *of_host]):
            here, first = of_host.get(name, "nothing"), flat[0].get(name, "nothing")
            if here != first:
                advice = "give every host the same installation, code, command and data"
                faults.append(Finding(check, "FAIL", f"{name}: found {here or 'nothing'} on host {host}", f"{first} as on host 0", advice))
    count = len(all_facts)
    return faults or [Finding(check, "ok", f"{', '.join(all_facts[0]) or 'nothing'}: the same on {count} host(s)")]


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            out |= {f"{name} {inner}": found for inner, found in value.items()}
        else:
            out[name] = value
    return out


def gather_facts(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the facts of every host, by host. All of them must call it."""
    return [json.loads(found) for found in hosts.gather(json.dumps(dict(own)).encode())]


def clock_rounds() -> np.ndarray:
    """Returns the clocks of all hosts as they left the same barrier, seconds of the Unix epoch, float64 [rounds, hosts]. All must call it.

    Hosts leave a barrier within milliseconds of each other; the median over the rounds is what is to be looked at.
    """
    rounds = []
    for _ in range(_ROUNDS):
        hosts.gather(b"here")
        rounds.append([float(text) for text in hosts.gather(repr(time.time()).encode())])
    return np.asarray(rounds)


def check_clocks(rounds: np.ndarray) -> list[Finding]:
    """Returns whether the clocks agree within `MAX_SKEW_S`, one finding. rounds: as `clock_rounds` gives them."""
    if rounds.shape[1] == 1:
        return [Finding("clocks", "ok", "one host, nothing to compare")]
    offsets = [statistics.median(rounds[:, host] - rounds[:, 0]) for host in range(rounds.shape[1])]
    ahead, behind = int(np.argmax(offsets)), int(np.argmin(offsets))
    skew = offsets[ahead] - offsets[behind]
    numbers: dict[str, float | int | str | None] = {"skew_s": round(skew, 4)}
    if skew > MAX_SKEW_S:
        found = f"the clock of host {ahead} is {skew:.1f} s ahead of that of host {behind}"
        advice = "let both follow a time server (chronyc tracking says whether they do): times of files and of heartbeats are compared"
        return [Finding("clocks", "WARN", found, f"at most {MAX_SKEW_S:g} s", advice, numbers)]
    return [Finding("clocks", "ok", f"within {max(skew, 0.001) * 1e3:.0f} ms on {rounds.shape[1]} hosts", numbers=numbers)]
