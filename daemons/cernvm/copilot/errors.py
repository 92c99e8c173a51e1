# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong with jobs and the messages about them.  Values only; thread-safe."""

from __future__ import annotations

from typing import ClassVar

from cernvm.kit.errors import NotFound, Problem, UserMistake


class CopilotProblem(Problem):
    """Something about jobs or their messages failed."""


class BadMessage(CopilotProblem):
    """A peer sent something that is not a message of this protocol."""


class MessageTooLarge(CopilotProblem):
    """A message that we wanted to send is over the size that servers let through."""


class JobMistake(UserMistake):
    """The job as written cannot be: the sentence names the field."""


class IllegalMove(UserMistake):
    """The job is in a state that does not allow this."""

    bus_name: ClassVar[str] = "IllegalMove"


class NoSuchJob(NotFound):
    """No job has this id."""


class NotYours(UserMistake):
    """The job belongs to another user."""

    bus_name: ClassVar[str] = "AccessDenied"


class QueueFailed(CopilotProblem):
    """The queue's database cannot be opened, read or written."""
