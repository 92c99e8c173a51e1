# SPDX-License-Identifier: BSD-3-Clause
"""What is tried next after what: every choice of servers and proxies, and that each pursuit ends."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cernvm.cvmfs.routes import DIRECT, Fault, Groups, Proxies, Pursuit, Routes, Servers, Try, plain


def groups(text: str) -> Groups:
    return [[plain(name) for name in group.split("|")] for group in text.split(";")]


def routes(servers: str, proxies: str = DIRECT, seed: int = 1) -> Routes:
    return Routes(Servers(servers.split(), 1800.0), Proxies(groups(proxies), 300.0, Random(seed)))


def walk(known: Routes, *faults: Fault, now: float = 0.0, delays: tuple[float, ...] = ()) -> list[str]:
    """The attempts as server/proxy while the faults come in turn; `~` past caches, `+` after a pause."""
    pursuit = Pursuit(known, "key", delays)
    told: list[str] = []
    for fault in (*faults, None):
        attempt = pursuit.next(now)
        if attempt is None:
            return [*told, "end"]
        told.append(spelled(attempt))
        if fault is None:
            return told
        pursuit.failed(fault, now)
    return told


def spelled(attempt: Try) -> str:
    return f"{attempt.server}/{attempt.proxy.name}{'~' * attempt.refresh}{'+' * (attempt.wait > 0)}"


T, P, S, B, C = Fault.TRANSFER, Fault.PROXY, Fault.SERVER, Fault.BUSY, Fault.CORRUPT


@pytest.mark.parametrize(
    ("faults", "attempts"),
    [
        ((), "a/p"),
        ((T,), "a/p a/p+"),
        ((T, T), "a/p a/p+ a/q"),
        ((T, T, T, T), "a/p a/p+ a/q a/q+ b/p"),
        ((T,) * 8, "a/p a/p+ a/q a/q+ b/p b/p+ b/q b/q+ end"),
        ((P,), "a/p a/q"),
        ((P, P), "a/p a/q b/p"),
        ((P, P, P, P), "a/p a/q b/p b/q end"),
        ((S,), "a/p b/p"),
        ((S, S), "a/p b/p a/q"),
        ((S, S, S, S), "a/p b/p a/q b/q end"),
        ((S, T, T, T, T, S), "a/p b/p b/p+ b/q b/q+ a/q end"),
        ((P, S), "a/p a/q b/q"),
        ((P, S, S), "a/p a/q b/q b/p"),
        ((P, S, S, S), "a/p a/q b/q b/p end"),
        ((B,), "a/p a/p+"),
        ((B, B), "a/p a/p+ b/p"),
        ((C,), "a/p a/p~"),
        ((C, C), "a/p a/p~ b/p"),
        ((C, T), "a/p a/p~ a/p~+"),
        ((C, T, C), "a/p a/p~ a/p~+ b/p"),
        ((C, P, C), "a/p a/p~ a/q a/q~"),
        ((C, C, C, C, C, C), "a/p a/p~ b/p b/p~ a/q a/q~ b/q"),
        ((C,) * 8, "a/p a/p~ b/p b/p~ a/q a/q~ b/q b/q~ end"),
        ((T, S), "a/p a/p+ b/p"),
    ],
)
def test_what_is_tried_after_what(faults: tuple[Fault, ...], attempts: str) -> None:
    assert walk(routes("a b", "p;q"), *faults, delays=(1.0,)) == attempts.split()


def test_every_sequence_of_faults_ends_soon_and_asks_nothing_twice_without_need() -> None:
    for faults in product(Fault, repeat=5):
        pursuit = Pursuit(routes("a b", "p|q;r"), "key", (1.0,))
        seen: list[Try] = []
        for number in range(100):
            attempt = pursuit.next(0.0)
            if attempt is None:
                break
            assert attempt not in seen, (faults, seen)
            seen.append(attempt)
            pursuit.failed(faults[number % 5], 0.0)
        else:
            pytest.fail(f"no end with {faults}")
        assert len(seen) <= 2 * 3 * 3


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(Fault), st.integers(0, 400)), max_size=80))
def test_pursuits_that_cross_one_another_all_end(steps: list[tuple[int, Fault, int]]) -> None:
    known = routes("a b c", "p|q;r;DIRECT")
    open_ones = {number: Pursuit(known, str(number), (1.0,)) for number in range(4)}
    now, asked = 0.0, dict.fromkeys(range(4), 0)
    for number, fault, seconds in steps:
        now += seconds
        if open_ones[number].next(now) is None:
            continue
        asked[number] += 1
        open_ones[number].failed(fault, now)
        assert asked[number] <= 3 * 4 * 3
    for number, pursuit in open_ones.items():
        while pursuit.next(now) is not None:
            pursuit.failed(T, now)
            asked[number] += 1
        assert asked[number] <= 3 * 4 * 3


def test_a_proxy_through_which_everybody_says_no_is_doubted_and_left_if_another_does_better() -> None:
    for fault in (S, C, B):
        known = routes("a b", "p;q;r")
        pursuit = Pursuit(known, "key", ())
        seen = []
        while (attempt := pursuit.next(0.0)) is not None and attempt.proxy.name == "p":
            seen.append(attempt)
            pursuit.failed(fault, 0.0)
        assert attempt is not None
        assert (len(seen), attempt.proxy.name, known.proxies.order(0.0)[0].name) == (4 if fault is C else 2, "q", "p")
        pursuit.succeeded(0.0)
        assert known.proxies.order(0.0)[0].name == "q"


def test_two_proxies_are_believed() -> None:
    assert walk(routes("a b", "p;q;r;s"), S, S, S, S) == ["a/p", "b/p", "a/q", "b/q", "end"]


def test_the_server_that_works_stays_and_the_first_one_gets_another_chance() -> None:
    known = routes("a b c")
    walk(known, S)
    assert known.servers.order(1.0) == ("b", "c", "a")
    known.servers.failed("b", 1000.0)
    assert known.servers.order(1800.0) == ("c", "a", "b")
    assert known.servers.order(1800.1) == ("a", "b", "c"), "counted from when the first one was left"


def test_a_late_failure_of_a_server_that_was_left_moves_nothing() -> None:
    servers = Servers(["a", "b", "c"], 1800.0)
    servers.failed("a", 0.0)
    servers.failed("a", 0.0)
    assert servers.order(0.0)[0] == "b"


def test_the_ring_of_servers_closes() -> None:
    servers = Servers(["a", "b"], 1800.0)
    servers.failed("a", 0.0)
    servers.failed("b", 1000.0)
    servers.failed("a", 1700.0)
    assert servers.order(1801.0)[0] == "b", "the first one was back in use meanwhile"
    alone = Servers(["a"], 1800.0)
    alone.failed("a", 0.0)
    assert alone.order(0.0) == ("a",)


def test_a_member_of_a_group_is_drawn_and_kept() -> None:
    drawn = [routes("a", "p|q|r;s", seed).proxies for seed in range(40)]
    assert {one.order(0.0)[0].name for one in drawn} == {"p", "q", "r"}
    for one in drawn:
        assert {one.order(float(now))[0] for now in range(0, 5000, 100)} == {one.order(0.0)[0]}
        assert one.order(0.0)[3].name == "s"


def test_without_a_reset_time_nothing_goes_home() -> None:
    servers = Servers(["a", "b"], 0.0)
    servers.failed("a", 0.0)
    proxies = Proxies(groups("p;q"), 0.0, Random(1))
    proxies.failed(plain("p"), 0.0)
    assert (servers.order(1e9)[0], proxies.order(1e9)[0].name) == ("b", "q")


def test_burned_members_are_last_until_the_reset() -> None:
    proxies = routes("a", "p|q;r;s").proxies
    first, second, *_ = proxies.order(0.0)
    proxies.failed(first, 10.0)
    assert [one.name for one in proxies.order(10.0)] == [second.name, "r", "s", first.name]
    proxies.failed(first, 200.0)
    assert proxies.order(310.0)[0] == second
    assert proxies.order(310.1)[0] == first


def test_a_burned_group_is_left_for_the_next_and_after_the_last_comes_the_first() -> None:
    proxies = routes("a", "p|q;r").proxies
    for proxy in proxies.order(0.0)[:2]:
        proxies.failed(proxy, 0.0)
    assert proxies.order(1.0)[0].name == "r"
    proxies.failed(proxies.order(1.0)[0], 1.0)
    assert {one.name for one in proxies.order(1.0)[:2]} == {"p", "q"}
    proxies.failed(plain("r"), 1.0)
    assert {one.name for one in proxies.order(1.0)[:2]} == {"p", "q"}, "it is not in the group in use"


def test_a_second_group_is_left_for_the_first_after_the_reset() -> None:
    proxies = routes("a", "p;q").proxies
    proxies.failed(plain("p"), 0.0)
    assert (proxies.order(300.0)[0].name, proxies.order(300.1)[0].name) == ("q", "p")


def test_another_list_of_proxies_keeps_what_is_known() -> None:
    proxies = routes("a", "p|q|r;s").proxies
    first, second, third, _ = proxies.order(0.0)
    proxies.failed(first, 0.0)
    proxies.replace([[third, first, plain("new"), second], [plain("s")]])
    assert proxies.order(0.0)[:2] == (second, third)
    proxies.next_group(0.0)
    proxies.replace([[plain("x")]])
    assert proxies.order(0.0) == (plain("x"),)


def test_rebalancing_draws_again() -> None:
    proxies = routes("a", "p|q|r;s").proxies
    proxies.next_group(0.0)
    drawn = set()
    for _ in range(40):
        proxies.rebalance()
        drawn.add(proxies.order(0.0)[0].name)
    assert drawn == {"p", "q", "r"}


def test_sharding_moves_only_the_share_of_the_proxy_that_failed() -> None:
    proxies = Proxies(groups("p|q|r;s"), 300.0, Random(1), shard=True)
    before = {key: proxies.order(0.0, key)[0].name for key in map(str, range(300))}
    proxies.failed(plain("q"), 0.0)
    after = {key: proxies.order(0.0, key)[0].name for key in before}
    assert {key for key in before if before[key] != after[key]} == {key for key in before if before[key] == "q"}
    assert {after[key] for key in before if before[key] == "q"} == {"p", "r"}
