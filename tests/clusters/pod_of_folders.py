"""A stand-in for gcloud: queued resources whose workers are folders of this machine, where commands really run.

Called as a program by the executable that `write_gcloud` makes. `POD_OF_FOLDERS` names its folder: `state.json` is the request, `homes/`
has a folder a worker, `calls.jsonl` every command line. A test takes the machines away by `preempt`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

_ATTRIBUTES = "computeMetadata/v1/instance/attributes"


def write_gcloud(folder: Path, *, slices: int, workers: int) -> dict[str, str]:
    """Writes the executable and returns the environment in which it is found."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "gcloud"
    program.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "pod.json").write_text(json.dumps({"slices": slices, "workers": workers}))
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "POD_OF_FOLDERS": str(folder)}


def answers(*, slices: int, workers: int) -> dict[str, str]:
    """What a metadata server says to every worker; each has a path of its own in the place of the server's name."""
    told = {}
    for number in range(slices):
        for worker in range(workers):
            below = f"/{number}-{worker}/{_ATTRIBUTES}"
            told[f"{below}/agent-worker-number"] = str(worker)
            told[f"{below}/worker-network-endpoints"] = ",".join(f"host{one}:{one}:10.0.{number}.{one}" for one in range(workers))
            told[f"{below}/tpu-env"] = f"TYPE: 'V5P'\nMEGASCALE_NUM_SLICES: '{slices}'\nMEGASCALE_SLICE_ID: '{number}'\n"
    return told


def calls(folder: Path) -> list[list[str]]:
    """The command lines so far, as (verb, name, flags ...)."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def preempt(folder: Path) -> None:
    """Takes the machines away: their processes are killed, their folders gone, and the request stays behind."""
    (folder / "state.json").write_text(json.dumps("SUSPENDING"))
    remove_machines(folder)


def remove_machines(folder: Path) -> None:
    """Kills what runs on the workers, each by its number, and removes their folders."""
    for started in folder.glob("homes/*/ofa_jax/runs/pods/*/worker.json"):
        try:
            os.killpg(json.loads(started.read_text())["pid"], signal.SIGKILL)
        except ProcessLookupError:  # it has ended
            continue
    shutil.rmtree(folder / "homes", ignore_errors=True)


def _main(argv: list[str]) -> int:
    folder = Path(os.environ["POD_OF_FOLDERS"])
    assert argv[:3] == ["compute", "tpus", "queued-resources"], argv
    verb, words = argv[3], argv[4:]
    names = [word for word in words if not word.startswith("--")]
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps([verb, *names, *sorted(flags)]) + "\n")
    assert flags.pop("project") == "grant" and flags.pop("zone") == "us-east5-a", words
    pod, path = json.loads((folder / "pod.json").read_text()), folder / "state.json"
    state = json.loads(path.read_text()) if path.exists() else None
    places = [f"{number}-{worker}" for number in range(pod["slices"]) for worker in range(pod["workers"])]
    if verb == "create":
        assert state is None, "a request of this name is there already"
        path.write_text(json.dumps("WAITING_FOR_RESOURCES"))
        return 0
    if state is None:
        print(f"ERROR: (gcloud) NOT_FOUND: Resource '{names[0]}' was not found", file=sys.stderr)
        return 1
    if verb == "delete":
        remove_machines(folder)
        path.unlink()
        return 0
    if verb == "describe":
        print(f"state={state}" if flags["format"] != "value(state.state)" else state)
        following = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE", "SUSPENDING": "SUSPENDED"}
        path.write_text(json.dumps(following.get(state, state)))
        if following.get(state) == "ACTIVE":
            for place in places:
                (folder / "homes" / place).mkdir(parents=True)
        return 0
    if state != "ACTIVE":
        print(f"ERROR: (gcloud) the state of {names[0]} is {state}", file=sys.stderr)
        return 1
    chosen = [
        place for place in places if flags["node"] in ("all", place.split("-")[0]) and flags["worker"] in ("all", place.split("-")[1])
    ]
    if verb == "scp":
        source, _, target = names[0], *names[1].partition(":")[1:]
        for place in chosen:
            shutil.copy(source, folder / "homes" / place / target)
        return 0
    assert verb == "ssh", verb
    running = []
    for place in chosen:
        home = folder / "homes" / place
        env = {**os.environ, "HOME": str(home), "GCE_METADATA_HOST": f"{os.environ['METADATA']}/{place}"}
        running.append(subprocess.Popen(["bash", "-c", flags["command"]], cwd=home, env=env, stdin=subprocess.DEVNULL))
    codes = [process.wait() for process in running]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
