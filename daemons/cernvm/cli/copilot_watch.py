# SPDX-License-Identifier: BSD-3-Clause
"""How copilotctl shows jobs: a live table on a terminal, plain lines elsewhere.  A part of copilotctl, no command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

Record = dict[str, Any]

ENDED: Final = ("done", "failed", "cancelled")
LOOK_EVERY: Final = 0.5
COLOURS: Final = {"done": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def follow(look: Callable[[], list[Record]]) -> list[Record]:
    """Show the records that `look` gives until all have ended; return them."""
    console = Console()
    return _live(console, look) if console.is_terminal else _plain(look)


def lines(records: Sequence[Record]) -> Iterator[str]:
    """One line per job."""
    for record in records:
        reason = f"  {_plainly(record['reason'])}" if record["reason"] else ""
        yield f"{record['id']}  {record['state']:<9}  {_seconds(record):>8}  {record['name'] or '-'}{reason}"


def details(record: Record) -> Iterator[str]:
    """All of one job, a line per fact."""
    job = record["job"]
    yield f"id         {record['id']}"
    yield f"name       {record['name'] or '-'}"
    yield f"command    {_plainly(' '.join([job['command'], *job['arguments']]))}"
    yield f"state      {record['state']}" + (f": {_plainly(record['reason'])}" if record["reason"] else "")
    yield f"attempt    {record['attempt']}" + (f" by {record['agent']}" if record["agent"] else "")
    for field in ("submitted", "started", "finished"):
        if record[field]:
            when = datetime.fromtimestamp(record[field]).astimezone().isoformat(" ", "seconds")
            yield f"{field:<10} {when}"
    if record["exit_code"] is not None:
        yield f"exit code  {record['exit_code']}"
    for name, value in record["usage"].items():
        yield f"usage      {_plainly(name)}: {_plainly(str(value))}"
    for output in record["outputs"]:
        yield f"output     {output['name']}  {output['size']} bytes  sha256 {output['sha256']}"
    for attempt in record["history"]:
        yield f"earlier    attempt {attempt['attempt']} by {attempt['agent']}: {_plainly(attempt['reason'])}"


def _plain(look: Callable[[], list[Record]]) -> list[Record]:
    told: dict[str, tuple[str, int]] = {}
    while True:
        records = look()
        for record in records:
            news = (record["state"], record["attempt"])
            if told.get(record["id"]) != news:
                told[record["id"]] = news
                print(next(lines([record])), flush=True)
        if _all_ended(records):
            return records
        time.sleep(LOOK_EVERY)


def _live(console: Console, look: Callable[[], list[Record]]) -> list[Record]:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            records = look()
            live.update(_table(records), refresh=True)
            if _all_ended(records):
                return records
            time.sleep(LOOK_EVERY)


def _table(records: Sequence[Record]) -> Table:
    ended = sum(record["state"] in ENDED for record in records)
    table = Table(title=f"{ended} of {len(records)} jobs ended")
    for heading in ("job", "name", "state", "attempt", "agent", "seconds", ""):
        table.add_column(heading, justify="right" if heading in ("attempt", "seconds") else "left")
    for record in records:
        colour = COLOURS.get(record["state"], "")
        state = f"[{colour}]{record['state']}[/]" if colour else record["state"]
        agent = record["agent"].partition("/")[2]
        name, reason = escape(record["name"]), escape(_plainly(record["reason"]))
        table.add_row(record["id"][:8], name, state, str(record["attempt"]), escape(agent), _seconds(record), reason)
    return table


def _all_ended(records: Sequence[Record]) -> bool:
    return all(record["state"] in ENDED for record in records)


def _plainly(text: str) -> str:
    """`text` of others without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _seconds(record: Record) -> str:
    if not record["started"]:
        return ""
    return f"{(record['finished'] or time.time()) - record['started']:.1f}"
