# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's requests as bytes, answered from a view: no kernel here, and no bytes that could do harm."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cernvm.cvmfs.inodes import ROOT
from cernvm.cvmfs.publish import create_repository, publish_tree
from cernvm.cvmfs.view import Attributes, Policy
from cernvm.cvmfsd import fuse_wire as wire
from cernvm.cvmfsd.fuse_answers import KEEP, Answers, Reply
from cernvm.cvmfsd.fuse_wire import Feature, Opcode
from tests.support.storage import StorageView

FQRN = "fuse.test.org"
ALL = Feature.NO_OPEN_SUPPORT | Feature.NO_OPENDIR_SUPPORT
MANY = 700
ENTRY = struct.Struct("=QQQQIIQQQQQQIIIIIIIIII")
"""Of linux/fuse.h, once more by hand: nodeid generation valid valid nsec nsec, then the attributes."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published tree with files, a link and a directory of many names."""
    top = tmp_path_factory.mktemp("fuse")
    (top / "tree" / "many").mkdir(parents=True)
    (top / "tree" / "file").write_bytes(bytes(range(256)) * 40)
    (top / "tree" / "link").symlink_to("file")
    (top / "tree" / ("n" * 255)).write_text("long name")
    for number in range(MANY):
        (top / "tree" / "many" / f"name{number:05d}").touch()
    create_repository(FQRN, top / "storage", top / "keys")
    publish(top)
    return top


def publish(top: Path) -> None:
    publish_tree(FQRN, top / "tree", top / "storage", top / "keys", jobs=1)


@pytest.fixture
def shown(directory: Path, tmp_path: Path) -> StorageView:
    return StorageView(directory / "storage", tmp_path / "cache")


@pytest.fixture
def answers(shown: StorageView) -> Answers:
    return Answers(shown.view, lambda _: None, ALL)


def request(opcode: int, node: int, body: bytes = b"", unique: int = 7) -> wire.Request:
    head = struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, node, 0, 0, 1234, 0)
    taken = wire.decode(memoryview(head + body))
    assert taken is not None
    return taken


def only(reply: Reply) -> bytes:
    assert reply.error == 0
    return b"".join(reply.parts)


def lookup(answers: Answers, name: bytes, node: int = ROOT) -> tuple[int, ...]:
    return ENTRY.unpack(only(answers.answer(request(Opcode.LOOKUP, node, name + b"\0"))))


def read_in(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def listing(
    answers: Answers, node: int, size: int, *, plus: bool = False, offset: int = 0
) -> Iterator[tuple[bytes, int, int, int]]:
    """(name, inode, offset of what follows, looked-up inode) over as many requests as it takes."""
    while True:
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        data = only(answers.answer(request(opcode, node, read_in(offset, size))))
        assert len(data) <= size
        if not data:
            return
        at = 0
        while at < len(data):
            node_found = 0
            if plus:
                node_found = ENTRY.unpack_from(data, at)[0]
                at += ENTRY.size
            inode, offset, length, _ = struct.unpack_from("=QQII", data, at)
            yield data[at + 24 : at + 24 + length], inode, offset, node_found
            at += 24 + (length + 7) // 8 * 8


# --- layouts


def test_the_layouts_have_the_sizes_of_the_kernel_s_header() -> None:
    sizes = {
        wire.IN_HEADER: 40, wire.OUT_HEADER: 16, wire.INIT_OUT: 64, wire.READ_IN: 40, wire.OPEN_OUT: 16,
        wire.ENTRY_OUT: 128, wire.ATTR_OUT: 104, wire.STATFS_OUT: 80, wire.DIRENT: 24, wire.GETXATTR_IN: 8,
        wire.FORGET_ONE: 16, wire.BATCH_FORGET_IN: 8, wire.INVAL_INODE_OUT: 24, wire.INVAL_ENTRY_OUT: 16,
    }  # fmt: skip
    assert {layout.size for layout in sizes} == set(sizes.values())
    assert all(layout.size == size for layout, size in sizes.items())


@pytest.mark.parametrize("minor", [28, 31, 45])
def test_no_more_is_agreed_on_than_the_kernel_offers(minor: int) -> None:
    body = struct.pack("=IIII", 7, minor, 131072, Feature.ASYNC_READ | Feature.MAX_PAGES | 1 << 3)
    offer = wire.offer_of(request(Opcode.INIT, 0, body))
    agreed = wire.agreement(offer, wire.Wish(Feature(sum(Feature)), 256, 64))
    major, spoken, ahead, features, *_ = struct.unpack_from("=IIIIHHIIHH", agreed)
    assert (major, spoken, ahead) == (7, min(minor, 31), 131072)
    assert features == Feature.ASYNC_READ | Feature.MAX_PAGES


def test_times_before_1970_and_wide_device_numbers_fit() -> None:
    shown = Attributes(ROOT, 0o20644, 1, 0, 0, 0, -1, device=(1 << 40) | 0x103)
    fields = ENTRY.unpack(wire.entry(shown, KEEP))
    assert fields[9:12] == ((1 << 64) - 1,) * 3
    assert fields[12:15] == (999_999_999,) * 3
    assert fields[19] == 0x103


# --- any bytes


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    opcode=st.one_of(st.sampled_from(list(Opcode)), st.integers(0, 2**32 - 1)),
    node=st.one_of(st.just(1), st.integers(0, 2**64 - 1)),
    body=st.one_of(st.binary(max_size=200), st.integers(0, 2**63).map(lambda n: read_in(n, n & 0xFFFFF))),
    cut=st.integers(0, 300),
)
@example(opcode=Opcode.READDIR, node=1, body=read_in(2**63, 4096), cut=300)
def test_no_request_raises(answers: Answers, opcode: int, node: int, body: bytes, cut: int) -> None:
    head = struct.pack("=IIQQIIII", 40 + len(body), opcode, 9, node, 0, 0, 1, 0)
    taken = wire.decode(memoryview((head + body)[:cut]))
    if taken is None:
        assert cut < 40 + len(body)
        return
    reply = answers.answer(taken)
    assert reply.error in errno.errorcode or reply.error == 0
    assert len(wire.answer(9, reply.parts)[0]) == 16


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_decoding_random_bytes_never_raises(data: bytes) -> None:
    taken = wire.decode(memoryview(data))
    assert taken is None or len(taken.body) <= len(data) - 40


def test_a_batch_that_promises_more_than_it_brings_is_taken_as_far_as_it_goes() -> None:
    body = struct.pack("=II", 1000, 0) + struct.pack("=QQ", 5, 2) + b"cut"
    assert list(wire.forgotten(request(Opcode.BATCH_FORGET, 0, body))) == [(5, 2)]


# --- answers


def test_what_would_change_something_is_refused_as_read_only(answers: Answers) -> None:
    for opcode in wire.WRITING:
        assert answers.answer(request(opcode, ROOT, b"x\0")).error == errno.EROFS
    assert answers.answer(request(9999, ROOT)).error == errno.ENOSYS


def test_opens_are_refused_for_ever_only_where_the_kernel_understands_it(shown: StorageView) -> None:
    new, old = (Answers(shown.view, lambda _: None, features) for features in (ALL, Feature(0)))
    for opcode in (Opcode.OPEN, Opcode.OPENDIR):
        assert new.answer(request(opcode, ROOT)).error == errno.ENOSYS
        assert struct.unpack("=QII", only(old.answer(request(opcode, ROOT))))[1] & wire.KEEP_CACHE
    assert new.answer(request(Opcode.FLUSH, ROOT)).error == errno.ENOSYS


def test_a_missing_name_is_an_answer_that_the_kernel_keeps(answers: Answers) -> None:
    node, _, seconds, *_ = lookup(answers, b"absent")
    assert (node, seconds) == (0, KEEP)


def test_reading_goes_by_the_inode_alone(answers: Answers) -> None:
    node = lookup(answers, b"file")[0]
    data = only(answers.answer(request(Opcode.READ, node, read_in(10_000, 4096))))
    assert data == (bytes(range(256)) * 40)[10_000:]
    assert answers.answer(request(Opcode.READ, ROOT, read_in(0, 10))).error == errno.EISDIR


@pytest.mark.parametrize("size", [512, 4096, 1 << 20])
@pytest.mark.parametrize("plus", [False, True], ids=["readdir", "readdirplus"])
def test_a_listing_read_in_pieces_is_whole(answers: Answers, size: int, plus: bool) -> None:
    many = lookup(answers, b"many")[0]
    found = list(listing(answers, many, size, plus=plus))
    assert [name for name, *_ in found] == [b".", b"..", *(f"name{n:05d}".encode() for n in range(MANY))]
    if plus:
        assert [node for *_, node in found] == [0, 0, *(inode for _, inode, *_ in found[2:])]
    middle = found[350]
    rest = list(listing(answers, many, size, plus=plus, offset=middle[2]))
    assert [name for name, *_ in rest] == [name for name, *_ in found[351:]]
    assert all(offset < 1 << 31 for _, _, offset, _ in found), "32-bit programs take it"


def test_who_is_in_the_middle_of_a_listing_goes_on_in_it_after_a_switch(directory: Path, tmp_path: Path) -> None:
    shown = StorageView(directory / "storage", tmp_path / "cache")
    answers = Answers(shown.view, lambda _: None, ALL)
    many = lookup(answers, b"many")[0]
    reading = listing(answers, many, 512)
    begun = [next(reading)[0] for _ in range(10)]
    (directory / "tree" / "many" / "before-all-others").touch()
    publish(directory)
    try:
        shown.view.switch(shown.newest())
        answers.listings.new_era()
        assert len(begun) + len(list(reading)) == MANY + 2
        assert len(list(listing(answers, many, 512))) == MANY + 3
    finally:
        (directory / "tree" / "many" / "before-all-others").unlink()
        publish(directory)


def test_what_the_kernel_did_not_take_is_not_counted_as_known(shown: StorageView, answers: Answers) -> None:
    reply = answers.answer(request(Opcode.LOOKUP, ROOT, b"file\0"))
    node = reply.granted[0]
    assert shown.view.attributes(node).inode == node
    answers.take_back(reply)
    assert answers.answer(request(Opcode.GETATTR, node)).error == errno.ENOENT


def test_forgetting_gives_back_what_listings_and_lookups_granted(answers: Answers) -> None:
    node = lookup(answers, b"file")[0]
    assert len(list(listing(answers, ROOT, 4096, plus=True))) > 2
    answers.answer(request(Opcode.FORGET, node, struct.pack("=Q", 1)))
    assert answers.answer(request(Opcode.GETATTR, node)).error == 0
    batch = struct.pack("=II", 1, 0) + struct.pack("=QQ", node, 1)
    answers.answer(request(Opcode.BATCH_FORGET, 0, batch))
    assert answers.answer(request(Opcode.GETATTR, node)).error == errno.ENOENT


def test_an_attribute_says_its_size_first_and_needs_room(directory: Path, tmp_path: Path) -> None:
    shown = StorageView(directory / "storage", tmp_path / "cache", Policy())
    answers = Answers(shown.view, lambda _: None, ALL)

    def ask(room: int, name: bytes = b"user.fqrn") -> Reply:
        return answers.answer(request(Opcode.GETXATTR, ROOT, struct.pack("=II", room, 0) + name + b"\0"))

    assert struct.unpack("=II", only(ask(0)))[0] == len(FQRN)
    assert only(ask(len(FQRN))) == FQRN.encode()
    assert ask(len(FQRN) - 1).error == errno.ERANGE
    assert ask(0, b"user.none").error == errno.ENODATA
    names = only(answers.answer(request(Opcode.LISTXATTR, ROOT, struct.pack("=II", 4096, 0))))
    assert b"user.fqrn\0" in names


def test_names_up_to_the_limit_are_looked_up_and_longer_ones_refused(answers: Answers) -> None:
    assert lookup(answers, b"n" * 255)[0]
    assert answers.answer(request(Opcode.LOOKUP, ROOT, b"n" * 256 + b"\0")).error == errno.ENAMETOOLONG


def test_an_error_of_ours_is_an_io_error_and_tells_its_sentence(shown: StorageView) -> None:
    told: list[str] = []
    answers = Answers(shown.view, told.append, ALL)
    node = lookup(answers, b"file")[0]
    shown.storage.directory = Path("/nonexistent")
    assert answers.answer(request(Opcode.READ, node, read_in(0, 10))).error == errno.EIO
    assert answers.answer(request(Opcode.READ, node, read_in(0, 10))).error == errno.EIO
    assert len(told) == 1, "the kernel's second question has the same answer, at once"
    assert answers.answer(request(Opcode.READ, node, read_in(0, 10))).error == errno.EIO
    assert len(told) == 2, "a third is a new one"
    assert told[0].startswith(f"{FQRN}/file: no server has data/")
