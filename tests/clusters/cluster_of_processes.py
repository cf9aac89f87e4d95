"""A stand-in for Slurm: sbatch runs the script at once, on this machine, and srun starts its tasks as processes.

Called as a program by the executables that `write_slurm` makes. `CLUSTER_OF_PROCESSES` names its folder: `calls` has every command line. A
job that asks to be requeued is started again, as Slurm does it: the script is ended, and begins anew with one restart more.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

_PROGRAMS = ("sbatch", "srun", "squeue", "scontrol")
JOB = "1234"


def write_slurm(folder: Path) -> dict[str, str]:
    """Writes the executables and returns the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in _PROGRAMS:
        program = folder / "bin" / name
        there = str(Path(__file__).resolve())
        words = f"import runpy, sys\nsys.argv.insert(1, {name!r})\nrunpy.run_path({there!r}, run_name='__main__')\n"
        program.write_text(f"#!{sys.executable}\n{words}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CLUSTER_OF_PROCESSES": str(folder)}


def _sbatch(folder: Path, argv: list[str]) -> int:
    script = Path(argv[-1])
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.MULTILINE))
    tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
    print(f"Submitted batch job {JOB}", flush=True)
    restarts = 0
    while True:
        env = {**os.environ, "SLURM_JOB_ID": JOB, "SLURM_NTASKS": str(tasks), "SLURM_RESTART_COUNT": str(restarts)}
        with Path(options["output"].replace("%j", JOB)).open(options["open-mode"][0]) as out:
            job = subprocess.Popen(["bash", str(script)], env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
            (folder / "job").write_text(str(job.pid))
            code = job.wait()
        if not (folder / "requeued").exists():
            return code if "--wait" in argv else 0
        (folder / "requeued").unlink()
        restarts += 1


def _srun(argv: list[str]) -> int:
    command = argv[next(number for number, word in enumerate(argv) if not word.startswith("--")) :]
    tasks = [
        subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(number)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for number in range(int(os.environ["SLURM_NTASKS"]))
    ]

    def label(number: int) -> None:
        for line in tasks[number].stdout or ():
            sys.stdout.buffer.write(f"{number}: ".encode() + line)
            sys.stdout.buffer.flush()

    threads = [threading.Thread(target=label, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(task.wait() for task in tasks)


def _main(name: str, argv: list[str]) -> int:
    folder = Path(os.environ["CLUSTER_OF_PROCESSES"])
    with (folder / "calls").open("a") as file:
        file.write(" ".join([name, *argv]) + "\n")
    if name == "sbatch":
        return _sbatch(folder, argv)
    if name == "srun":
        return _srun(argv)
    if name == "squeue":
        print("RUNNING")
        return 0
    assert argv == ["requeue", JOB], argv
    (folder / "requeued").touch()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int((folder / "job").read_text()), signal.SIGKILL)  # this process too, as Slurm does
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
