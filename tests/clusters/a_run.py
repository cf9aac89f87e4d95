"""A run for the tests of `launch/pods`: counts steps in a file that outlives it, says its place, and fails where it is told to.

    tests/clusters/a_run.py --checkpoint=FILE [--steps=N] [--until=FILE] [--fail=PLACE:CODE] [--pause_s=S]

It ends after N steps, or as soon as the second file is there.

PLACE is what JAX takes at its start (`parallel/hosts.py`), read here from the same variables. As `launch/train.py` does, it saves and ends
with code 75 on SIGTERM, and says its error in its last lines.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    flags = {"steps": "3", "checkpoint": "", "until": "", "fail": "-1:0", "pause_s": "0.05"}
    flags |= dict(word[2:].partition("=")[::2] for word in argv)
    asked = os.environ.get("OFA_DISTRIBUTED") == "1"
    place = int(os.environ.get("OFA_PROCESS_ID") or os.environ.get("SLURM_PROCID") or 0) if asked else 0
    count = int(os.environ.get("OFA_NUM_PROCESSES") or os.environ.get("SLURM_NTASKS") or 1) if asked else 1
    failing, code = map(int, flags["fail"].split(":"))
    path = Path(f"{flags['checkpoint']}.{place}")
    step = int(path.read_text()) if path.exists() else 0
    written = path.with_name(f"{path.name}.new")
    asked_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop.append(number))
    print(f"process {place} of {count} begins at step {step}", flush=True)
    while step < int(flags["steps"]) and not (flags["until"] and Path(flags["until"]).exists()):
        time.sleep(float(flags["pause_s"]))
        step += 1
        written.write_text(str(step))
        written.replace(path)  # it can be killed at any moment, and the file is whole then
        print(f"step {step}", flush=True)
        if asked_to_stop:
            print(f"stopped by a signal at step {step} and saved; the same command goes on", flush=True)
            return 75
        if place == failing and step == 2:
            print("Traceback (most recent call last):\n  ...", file=sys.stderr)
            print(f"RuntimeError: the disk of place {place} is gone", file=sys.stderr)
            print(f"ended: bug ({code}) at step {step}: an error that nobody foresaw", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
