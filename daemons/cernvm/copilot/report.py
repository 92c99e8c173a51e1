# SPDX-License-Identifier: BSD-3-Clause
"""What an agent may say of an attempt that has ended, and what of it is believed.  Pure and thread-safe."""

from __future__ import annotations

from typing import Final

from . import record as step
from .errors import BadMessage
from .job import State
from .messages import Json, Message
from .record import Output, Record, Report

LONGEST_USAGE: Final = 16_384
"""Characters of the field usage."""


def read_report(message: Message, record: Record) -> Report:
    """The report in a jobDone about `record`.  Raises BadMessage; a success without an output is a failure."""
    states = {"done": State.DONE, "failed": State.FAILED, "error": State.QUEUED}
    verdict = states.get(message.text("state", longest=16))
    if verdict is None:
        raise BadMessage("jobDone: field state must be done, failed or error")
    exit_code = (
        message.number("exitCode", least=-1024, most=1024) if message.fields.get("exitCode") is not None else None
    )
    reason = message.optional_text("error", longest=step.LONGEST_REASON)
    outputs = tuple(_output(item, record) for item in message.items("outputs", most=2000))
    usage = message.table("usage")
    if len(str(usage)) > LONGEST_USAGE:
        raise BadMessage("jobDone: field usage is too long")
    stored = {output.name for output in outputs}
    if len(stored) != len(outputs):
        raise BadMessage("jobDone: an output stands there twice")
    missing = [name for name in record.job.output_files if name not in stored]
    if verdict is State.DONE and missing:
        verdict, reason = State.FAILED, f"the job left no output file {missing[0]}"
    return Report(verdict, exit_code, reason, outputs, usage)


def _output(item: dict[str, Json], record: Record) -> Output:
    name, size, sha256 = item.get("name"), item.get("size"), item.get("sha256")
    if not isinstance(name, str) or name not in record.job.stored_names:
        raise BadMessage("jobDone: an output that the job does not name")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadMessage(f"jobDone: the size of output {name} must be a whole number")
    if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise BadMessage(f"jobDone: the sha256 of output {name} must be 64 hexadecimal digits")
    return Output(name, size, sha256)
