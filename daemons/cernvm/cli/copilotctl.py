# SPDX-License-Identifier: BSD-3-Clause
"""`copilotctl`: hand in jobs, look at them, fetch their results.  A leaf: talks to the job manager over D-Bus and to
the storage adapter over HTTP.

Exit status: 0 done; 1 something failed (or a watched job did not end well); 2 the arguments or files are wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from cernvm import __version__
from cernvm.copilot.errors import JobMistake
from cernvm.copilot.job import JobId, State, job_id, read_job, read_job_file
from cernvm.copilot.tokens import generate_keys
from cernvm.copilot.transfer import download, upload
from cernvm.kit.bus import BusError, SyncBus
from cernvm.kit.errors import EXIT_FAILED, EXIT_OK, Problem, UserMistake, sentence

from . import copilot_watch

SERVICE: Final = "ch.cern.cernvm.CopilotJobManager1"
PATH: Final = "/ch/cern/cernvm/CopilotJobManager1"
MISTAKES: Final = ("InvalidArgument", "NotFound", "IllegalMove", "AccessDenied")
NOBODY: Final = ("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner")
TRANSFER_SECONDS: Final = 3600.0
AT_ONCE: Final = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except BusError as error:
        print(f"copilotctl: {_bus_sentence(error)}", file=sys.stderr)
        return UserMistake.exit_status if error.name.rpartition(".")[2] in MISTAKES else EXIT_FAILED
    except Problem as problem:
        print(f"copilotctl: {problem}", file=sys.stderr)
        return problem.exit_status
    except OSError as error:
        print(f"copilotctl: {sentence(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("copilotctl: interrupted", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="copilotctl", description="Hand in Co-Pilot jobs and fetch their results.")
    parser.add_argument("--version", action="version", version=f"copilotctl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    def add_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print JSON instead of text")

    sub = add("submit", _submit, "hand in a job; prints its id")
    sub.add_argument("file", type=Path, metavar="FILE", help="the job file (TOML)")
    sub.add_argument(
        "--input", type=Path, action="append", default=[], metavar="FILE", help="another input file of the job"
    )
    add_json(sub)
    sub = add("list", _list, "list jobs, oldest first")
    sub.add_argument("--state", action="append", default=[], choices=list(State), help="only jobs in this state")
    add_json(sub)
    sub = add("show", _show, "tell all that is known of a job")
    sub.add_argument("id", metavar="ID")
    add_json(sub)
    sub = add("watch", _watch, "follow jobs until all have ended; all that have not ended when none is named")
    sub.add_argument("ids", nargs="*", metavar="ID")
    sub = add("fetch", _fetch, "fetch the files that a job has left, verified")
    sub.add_argument("id", metavar="ID")
    sub.add_argument("directory", type=Path, metavar="DIR", help="where to put them; made if need be")
    add_json(sub)
    sub = add("cancel", _cancel, "end a job whatever it does")
    sub.add_argument("id", metavar="ID")
    sub = add("make-keys", _make_keys, "make the key pair of job manager and storage adapter")
    sub.add_argument("--directory", type=Path, required=True, metavar="DIR")
    return parser


def _submit(arguments: argparse.Namespace) -> int:
    table, files = _read_submission(arguments.file, arguments.input)
    read_job(table, JobId("00000000-0000-0000-0000-000000000000"), str(arguments.file))
    with SyncBus.system() as bus:
        answer = _call(bus, "Submit", "s", json.dumps(table))
        job = str(answer["id"])
        try:
            asyncio.run(_upload_all(files, answer["url"], answer["token"]))
            _call(bus, "Release", "s", job)
        except (Problem, KeyboardInterrupt):
            _call(bus, "Cancel", "s", job)
            raise
    print(json.dumps({"id": job}) if arguments.json else job)
    return EXIT_OK


def _list(arguments: argparse.Namespace) -> int:
    with SyncBus.system() as bus:
        text = _call(bus, "List", "a{sv}", {"states": list(arguments.state)} if arguments.state else {})
    print(text if arguments.json else "\n".join(copilot_watch.lines(json.loads(text))))
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    with SyncBus.system() as bus:
        text = _call(bus, "Get", "s", job_id(arguments.id))
    print(text if arguments.json else "\n".join(copilot_watch.details(json.loads(text))))
    return EXIT_OK


def _watch(arguments: argparse.Namespace) -> int:
    with SyncBus.system() as bus:
        wanted = [job_id(text) for text in arguments.ids]
        if not wanted:
            active = [state for state in State if state.value not in copilot_watch.ENDED]
            wanted = [record["id"] for record in json.loads(_call(bus, "List", "a{sv}", {"states": active}))]
        last = copilot_watch.follow(lambda: [json.loads(_call(bus, "Get", "s", job)) for job in wanted])
    return EXIT_OK if all(record["state"] == State.DONE for record in last) else EXIT_FAILED


def _fetch(arguments: argparse.Namespace) -> int:
    with SyncBus.system() as bus:
        record = json.loads(_call(bus, "Get", "s", job_id(arguments.id)))
        access = _call(bus, "ResultGrant", "s", record["id"])
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(_download_all(record["outputs"], access["url"], access["token"], directory))
    if arguments.json:
        print(json.dumps({"id": record["id"], "directory": str(directory), "files": record["outputs"]}))
    else:
        for output in record["outputs"]:
            print(f"{directory / output['name']}  {output['size']} bytes")
    return EXIT_OK


def _cancel(arguments: argparse.Namespace) -> int:
    with SyncBus.system() as bus:
        _call(bus, "Cancel", "s", job_id(arguments.id))
    return EXIT_OK


def _make_keys(arguments: argparse.Namespace) -> int:
    private, public = generate_keys(arguments.directory)
    print(f"{private}  for the job manager, which alone may read it\n{public}  for the storage adapter")
    return EXIT_OK


def _read_submission(file: Path, more: Sequence[Path]) -> tuple[dict[str, object], dict[str, Path]]:
    """The job as the job manager wants it, and its input files by name.  Raises JobMistake, UserMistake."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    table = read_job_file(text, str(file))
    written = [str(name) for name in _texts(table["input_files"])]
    files = {_job_name(name): file.parent / name for name in written}
    files.update({path.name: path for path in more})
    if len(files) < len(written) + len(more):
        raise JobMistake(f"{file}: two input files would have the same name in the job's directory")
    table["input_files"] = [_measured(file, name, path) for name, path in files.items()]
    return table, files


def _texts(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _job_name(written: str) -> str:
    """The name in the job's directory: the path as written when it stays inside, else its last part."""
    path = PurePosixPath(written)
    return path.name if path.is_absolute() or ".." in path.parts else str(path)


def _measured(job_file: Path, name: str, path: Path) -> dict[str, object]:
    if not path.is_file():
        raise JobMistake(f"{job_file}: field input_files: there is no file {path}")
    hasher = hashlib.sha256()
    with path.open("rb") as content:
        while data := content.read(1 << 20):
            hasher.update(data)
        size = content.tell()
    return {"name": name, "size": size, "sha256": hasher.hexdigest()}


async def _upload_all(files: dict[str, Path], url: str, token: str) -> None:
    async with aiohttp.ClientSession() as session:
        for name, path in files.items():
            to = f"{url}{quote(name)}"
            await upload(session, to, token, path.resolve(), deadline=TRANSFER_SECONDS, name=name)


async def _download_all(outputs: Sequence[dict[str, Any]], url: str, token: str, directory: Path) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(session: aiohttp.ClientSession, output: dict[str, Any]) -> None:
        to = directory / output["name"]
        to.parent.mkdir(parents=True, exist_ok=True)
        address, size, sha256 = f"{url}{quote(output['name'])}", output["size"], output["sha256"]
        async with gate:
            await download(session, address, token, to, size, sha256, deadline=TRANSFER_SECONDS)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session, output) for output in outputs))


def _call(bus: SyncBus, member: str, signature: str, *args: Any) -> Any:
    return bus.call(SERVICE, PATH, SERVICE, member, signature, *args)


def _bus_sentence(error: BusError) -> str:
    if error.name in NOBODY:
        return "the job manager is not running on this host; start copilot-jobmanagerd"
    return str(error)


if __name__ == "__main__":
    raise SystemExit(main())
