"""Watches a command on the workers of a Cloud TPU pod to its end, and brings what a failed one said last to the person's terminal."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence

from ofa_jax.clusters.cloud_tpu import ABSENT, ACTIVE, LEAVING, LOST, Pod, ask_state, resume, state_argv, stop_argv, wait_until_active
from ofa_jax.clusters.ends import PREEMPTED, describe, goes_on, judge
from ofa_jax.clusters.plan import Step, ask, complaint, perform
from ofa_jax.clusters.worker import LONG_LOG, Report
from ofa_jax.config.errors import UserError

_SILENT_POLLS = 20  # in a row without every worker's answer: a network that comes back is waited for


def ask_reports(pod: Pod, *, since: int) -> tuple[list[Report], str]:
    """Returns how the command is on the workers that answered, with the first one's log from the byte `since` on, and what
    gcloud complained of."""
    found = ask(state_argv(pod, since=since))
    reports = [report for line in found.stdout.splitlines() if (report := Report.from_line(line))]
    return reports, complaint(found)


@dataclasses.dataclass
class Watch:
    """Polls until every worker has ended. After the first that failed the others have `grace_s`, then they are stopped."""

    pod: Pod
    say: Callable[[str], None]
    every_s: float = 15.0
    grace_s: float = 60.0

    def to_the_end(self) -> int:
        """Returns the run's exit code (`ends.judge`); that of a preemption where the machines are gone. Raises UserError where the
        workers do not answer, or run nothing."""
        told: dict[int, Report] = {}
        offset, silent, first_failure, stopped = 0, 0, 0.0, False
        while True:
            reports, said = ask_reports(self.pod, since=offset)
            for report in reports:
                if report.worker == 0:
                    offset = report.offset
                    for line in report.log.splitlines():
                        self.say(f"worker 0: {line}")
                if report.state == "ended" and report.worker not in told:
                    told[report.worker] = report
                    self._tell(report)
            count = max((report.workers for report in reports), default=1)
            missing = sorted(set(range(count)) - {report.worker for report in reports})
            silent = silent + 1 if missing else 0
            if missing:
                if (state := self._state(patient=silent < _SILENT_POLLS)) in (*LOST, ABSENT):
                    return self._lost(state)
                if silent >= _SILENT_POLLS and state == ACTIVE:
                    names = ", ".join(map(str, missing))
                    raise UserError(
                        f"{self.pod.name}: found no answer of worker {names}, {silent} times in a row ({said}), expected a report"
                    )
            elif all(report.state == "none" for report in reports):
                raise UserError(f"{self.pod.name}: found no command on its {count} workers, expected one; run starts it")
            elif not any(report.state == "running" or report.log for report in reports):
                for report in reports:
                    if report.worker not in told:
                        self.say(f"worker {report.worker} runs nothing and did not end: it was not started there, or its disk is new")
                        told[report.worker] = dataclasses.replace(report, code=128 + signal.SIGKILL)
                return self._end(told)
            if any(report.code for report in told.values()) and not stopped:
                first_failure = first_failure or time.monotonic()
                if time.monotonic() - first_failure > self.grace_s:
                    self.say(f"{self.grace_s:g} s after the first failure: the workers that still run are stopped")
                    ask(stop_argv(self.pod, grace_s=self.grace_s))
                    stopped = True
            behind = any(len(report.log) >= LONG_LOG for report in reports)
            time.sleep(min(1.0, self.every_s) if behind else self.every_s)

    def _state(self, *, patient: bool) -> str:
        """The state of the request; "" where gcloud does not say and that is no matter yet."""
        try:
            return ask_state(self.pod)
        except UserError:
            if not patient:
                raise
            return ""

    def _tell(self, report: Report) -> None:
        if report.code == 0:
            self.say(f"worker {report.worker} is done")
            return
        self.say(f"worker {report.worker} ended with {describe(report.code)}")
        for line in report.error:
            self.say(f"worker {report.worker}: {line}")

    def _lost(self, state: str) -> int:
        self.say(
            f"{self.pod.name}: {state}: its machines are gone; resume asks for others, and the same command goes on from its checkpoint"
        )
        return PREEMPTED

    def _end(self, told: dict[int, Report]) -> int:
        code = judge(told[worker].code for worker in sorted(told))
        if code == 0:
            self.say(f"all {len(told)} workers are done")
        else:
            failed = [worker for worker in sorted(told) if told[worker].code == code]
            self.say(f"the run ended with {describe(code)} on {'worker' if len(failed) == 1 else 'workers'} {', '.join(map(str, failed))}")
        if goes_on(code):
            self.say("the same command goes on: run it again, or resume where the machines are gone")
        return code


def _settled(watch: Watch) -> str:
    """The state of the request, once it is not on its way out any more: one that is being suspended takes no other wish."""
    while (state := ask_state(watch.pod)) in LEAVING:
        watch.say(f"{watch.pod.name}: {state}")
        time.sleep(watch.every_s)
    return state


def resume_run(watch: Watch, asking: Sequence[Step], starting: Sequence[Step], *, follow: bool, lives: int) -> int:
    """Brings a pod from whatever state its request is in to one where the command runs, and returns 0; with `follow` the exit code of the
    run, which is started again up to `lives` times where the same command goes on. asking: the steps of `create`; starting: those of
    `copy` and `run`. A command that runs already is left alone."""
    pod, code = watch.pod, 0
    for life in range(lives + 1):
        state = _settled(watch)
        perform(resume(state, pod, asking), dry_run=False, say=watch.say)
        wait_until_active(pod, every_s=watch.every_s, say=watch.say)
        if state == ACTIVE and any(report.state == "running" for report in ask_reports(pod, since=0)[0]):
            watch.say(f"{pod.name}: its workers run a command already, which is left alone; stop ends it")
        else:
            perform(starting, dry_run=False, say=watch.say)
        if not follow:
            break
        code = watch.to_the_end()
        if not goes_on(code):
            break
        if life < lives:
            watch.say(f"starting it again: {life + 1} of {lives}")
    return code
