# SPDX-License-Identifier: BSD-3-Clause
"""The store: files are there whole or not at all, and a job gets one result."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cernvm.copilot import store as store_module
from cernvm.copilot.disk import (
    BadName,
    Conflict,
    Mismatch,
    NoSpace,
    NoSuchFile,
    Refused,
    Stored,
    StoreFailed,
    TooLarge,
    disk_name,
)
from cernvm.copilot.job import JobId
from cernvm.copilot.store import Shelf, Store
from cernvm.kit.errors import UserMistake

JOB = JobId("7f3c9a52-5d0e-4a6b-9c3d-0b6f6f1f2a10")
FIRST, SECOND, INPUT = Shelf(JOB, 1), Shelf(JOB, 2), Shelf(JOB, 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def of(name: str, data: bytes) -> Stored:
    return Stored(name, len(data), hashlib.sha256(data).hexdigest())


def put(store: Store, shelf: Shelf, name: str, data: bytes, *, sha256: str = "", most: int = 10_000) -> bool:
    with store.receive(shelf, name, size=None, max_bytes=most) as incoming:
        incoming.write(data)
        return store.keep(incoming, sha256 or of(name, data).sha256, max_bytes=most)


def result(store: Store, name: str) -> bytes:
    with store.open_result(JOB, name) as file:
        return file.read()


def everything(root: Path) -> dict[str, bytes]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_an_accepted_attempt_becomes_the_result(store: Store) -> None:
    assert put(store, FIRST, "out/hist.json", b"{}")
    assert put(store, FIRST, "_stdout", b"")
    store.accept(FIRST, [of("out/hist.json", b"{}"), of("_stdout", b"")])
    assert result(store, "out/hist.json") == b"{}"
    assert result(store, "_stdout") == b""
    totals = store.totals()
    assert (totals.results, totals.bytes_stored) == (1, 2)


def test_nothing_of_an_attempt_can_be_read_before_it_is_accepted(store: Store) -> None:
    put(store, FIRST, "a", b"x")
    with pytest.raises(NoSuchFile, match="'a'"):
        store.open_result(JOB, "a")


def test_accepting_again_changes_nothing_and_another_attempt_is_refused(store: Store) -> None:
    put(store, FIRST, "a", b"first")
    put(store, SECOND, "a", b"second")
    store.accept(FIRST, [of("a", b"first")])
    store.accept(FIRST, [of("a", b"first")])
    with pytest.raises(Conflict, match="another result"):
        store.accept(SECOND, [of("a", b"second")])
    with pytest.raises(Conflict, match="another result"):
        store.accept(FIRST, [of("a", b"other")])
    assert result(store, "a") == b"first"
    assert store.totals().results == 1


def test_a_result_takes_no_further_file(store: Store) -> None:
    put(store, FIRST, "a", b"x")
    store.accept(FIRST, [of("a", b"x")])
    for shelf in (FIRST, SECOND, INPUT):
        with pytest.raises(Conflict, match="result already"):
            put(store, shelf, "late", b"y")


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        ([of("a", b"x"), of("b", b"y")], "'b' was not uploaded"),
        ([], "'a' was uploaded but is not named"),
        ([of("a", b"y")], "'a' is not the one"),
        ([Stored("a", 2, of("a", b"x").sha256)], "'a' is not the one"),
    ],
)
def test_files_that_are_not_exactly_those_named_are_refused(
    store: Store, outputs: list[Stored], complaint: str
) -> None:
    put(store, FIRST, "a", b"x")
    with pytest.raises(Mismatch, match=complaint):
        store.accept(FIRST, outputs)
    store.accept(FIRST, [of("a", b"x")])


def test_a_wrong_checksum_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match="SHA-256"):
        put(store, FIRST, "a", b"x", sha256="0" * 64)
    assert everything(tmp_path) == {}


def test_an_upload_that_breaks_off_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with store.receive(FIRST, "a", size=10, max_bytes=10) as incoming:
        incoming.write(b"half")
    assert everything(tmp_path) == {}


def test_content_once_stored_stays(store: Store) -> None:
    assert put(store, INPUT, "a", b"x")
    assert not put(store, INPUT, "a", b"x")
    with pytest.raises(Conflict, match="another content"):
        put(store, INPUT, "a", b"y")
    with store.open_input(JOB, "a") as file:
        assert file.read() == b"x"


def test_the_grant_bounds_all_files_together(store: Store) -> None:
    put(store, FIRST, "a", b"1234", most=6)
    with pytest.raises(TooLarge), store.receive(FIRST, "b", size=3, max_bytes=6):
        pass
    with pytest.raises(TooLarge):
        put(store, FIRST, "b", b"123", most=6)
    assert put(store, FIRST, "b", b"12", most=6)
    assert not put(store, FIRST, "b", b"12", most=6)


def test_two_uploads_at_once_cannot_outgrow_the_grant_together(store: Store) -> None:
    with store.receive(FIRST, "a", size=4, max_bytes=6) as one, store.receive(FIRST, "b", size=4, max_bytes=6) as two:
        one.write(b"1234")
        two.write(b"1234")
        digest = of("", b"1234").sha256
        assert store.keep(one, digest, max_bytes=6)
        with pytest.raises(TooLarge):
            store.keep(two, digest, max_bytes=6)


def test_the_number_of_files_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_FILES", 2)
    put(store, FIRST, "a", b"")
    put(store, FIRST, "b", b"")
    with pytest.raises(TooLarge):
        put(store, FIRST, "c", b"")


def test_the_reserve_of_the_disk_is_kept(tmp_path: Path) -> None:
    reserve = shutil.disk_usage(tmp_path).total + 1
    with Store(tmp_path, reserve=reserve) as store, pytest.raises(NoSpace, match="reserve"):
        put(store, FIRST, "a", b"x")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\0b", "a\nb", "a\\b", "x" * 300]
)
def test_names_that_lead_out_are_refused(store: Store, name: str) -> None:
    with pytest.raises(BadName):
        put(store, FIRST, name, b"x")
    with pytest.raises(BadName):
        store.open_result(JOB, name)


@pytest.mark.parametrize("job", ["", "..", "x", "../../etc", JOB.upper(), "7f3c9a525d0e4a6b9c3d0b6f6f1f2a10"])
def test_only_the_usual_form_of_an_id_is_a_job(job: str) -> None:
    with pytest.raises(BadName):
        Shelf.checked(job, 1)
    with pytest.raises(BadName):
        Shelf.checked(JOB, -1)
    assert Shelf.checked(JOB, 1) == FIRST


def test_disk_names_are_flat_different_and_never_hidden() -> None:
    names = ["a/b", "a%2Fb", ".accepted", "%2Eaccepted", "a", "_stdout", "ä/ö"]
    flat = [disk_name(name) for name in names]
    assert len(set(flat)) == len(names)
    assert not any("/" in name or name.startswith(".") for name in flat)


def test_a_stored_file_called_like_the_record_is_an_ordinary_file(store: Store) -> None:
    put(store, FIRST, ".accepted", b"mine")
    store.accept(FIRST, [of(".accepted", b"mine")])
    assert result(store, ".accepted") == b"mine"


def test_symlinks_are_never_followed(store: Store, tmp_path: Path) -> None:
    put(store, FIRST, "a", b"x")
    store.accept(FIRST, [of("a", b"x")])
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    job = tmp_path / "store/jobs" / JOB
    (job / "result/b").symlink_to(secret)
    with pytest.raises(NoSuchFile):
        store.open_result(JOB, "b")
    (job / "elsewhere").mkdir()
    (job / "elsewhere/secret").write_bytes(b"secret")
    (job / "input").symlink_to(job / "elsewhere")
    with pytest.raises(NoSuchFile):
        store.open_input(JOB, "secret")
    os.mkfifo(job / "result/c")
    with pytest.raises(NoSuchFile):
        store.open_result(JOB, "c")


def test_an_attempt_directory_that_is_a_symlink_is_not_written_through(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "store/jobs" / JOB).mkdir()
    (tmp_path / "store/jobs" / JOB / "attempt-1").symlink_to(outside)
    with pytest.raises(StoreFailed):
        put(store, FIRST, "a", b"x")
    assert list(outside.iterdir()) == []


def test_a_closed_job_keeps_its_result_and_drops_the_rest(store: Store, tmp_path: Path) -> None:
    put(store, INPUT, "in", b"i")
    put(store, FIRST, "a", b"x")
    put(store, SECOND, "a", b"y")
    store.accept(SECOND, [of("a", b"y")])
    store.close_job(JOB)
    store.close_job(JOB)
    assert result(store, "a") == b"y"
    assert sorted(p.name for p in (tmp_path / "store/jobs" / JOB).iterdir()) == ["closed", "result"]


def test_a_job_closed_without_a_result_takes_none(store: Store) -> None:
    put(store, FIRST, "a", b"x")
    store.close_job(JOB)
    with pytest.raises(Conflict, match="ended"):
        store.accept(FIRST, [of("a", b"x")])
    with pytest.raises(Conflict, match="ended"):
        put(store, SECOND, "a", b"x")


def test_leftovers_of_uploads_go_at_the_next_start(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store/incoming/left").write_bytes(b"half")
    put(store, FIRST, "a", b"x")
    store.accept(FIRST, [of("a", b"x")])
    store.close()
    with Store(tmp_path / "store") as again:
        assert list((tmp_path / "store/incoming").iterdir()) == []
        assert again.totals().results == 1
        assert again.totals().bytes_stored == 1


def test_a_store_has_one_owner(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store/incoming/under-way").write_bytes(b"half")
    with pytest.raises(UserMistake, match="belongs to another"):
        Store(tmp_path / "store")
    assert (tmp_path / "store/incoming/under-way").exists()


def test_a_store_that_cannot_be_written_is_a_mistake_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserMistake, match=str(tmp_path / "file")):
        Store(tmp_path / "file")


class Crash(BaseException):
    """The machine stops here."""


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the process stop at the `step`-th directory sync, rename or file sync; answers how many there were."""
    done = 0

    def stopping(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal done
            done += 1
            if done == step:
                raise Crash
            return real(*args, **kwargs)

        return call

    for place, name in (
        ("os.fsync", os.fsync),
        ("pathlib.Path.rename", Path.rename),
        ("pathlib.Path.replace", Path.replace),
        ("pathlib.Path.mkdir", Path.mkdir),
    ):
        monkeypatch.setattr(place, stopping(name))
    return lambda: done


def test_after_a_crash_at_any_step_the_job_can_still_be_finished_once(tmp_path: Path) -> None:
    steps, step = 1, 0
    while step < steps:
        step += 1
        root = tmp_path / str(step)
        with Store(root) as store, pytest.MonkeyPatch.context() as patch:
            count = crash_at(step, patch)
            try:
                put(store, FIRST, "a", b"x")
                store.accept(FIRST, [of("a", b"x")])
            except Crash:
                steps = step + 1
            else:
                assert count() < step
        with Store(root) as store:
            try:
                put(store, FIRST, "a", b"x")
            except Conflict:
                assert result(store, "a") == b"x"
            store.accept(FIRST, [of("a", b"x")])
            assert result(store, "a") == b"x"
            assert store.totals().results == 1
            with pytest.raises(Refused):
                put(store, SECOND, "a", b"z")
    assert step > 8


def test_of_attempts_accepted_at_the_same_time_one_wins(store: Store) -> None:
    shelves = [Shelf(JOB, n) for n in range(1, 9)]
    for shelf in shelves:
        put(store, shelf, "a", bytes([shelf.attempt]))

    def accept(shelf: Shelf) -> bool:
        try:
            store.accept(shelf, [of("a", bytes([shelf.attempt]))])
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [shelf for shelf, yes in zip(shelves, pool.map(accept, shelves), strict=True) if yes]
    assert len(won) == 1
    assert result(store, "a") == bytes([won[0].attempt])
