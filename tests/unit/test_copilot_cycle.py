# SPDX-License-Identifier: BSD-3-Clause
"""Agents and a broker over a network that loses, repeats and reorders, with agents and brokers that are killed.

Time is simulated and the seed is fixed, so a failure can be played again.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from uuid import UUID

import pytest

from cernvm.copilot import agent as agent_side
from cernvm.copilot import broker as broker_side
from cernvm.copilot.agent import Agent, Drop, Habits, Keep, Start, Upload
from cernvm.copilot.assignment import Assignment, Key
from cernvm.copilot.broker import Broker, Changed, Rules
from cernvm.copilot.delivery import Delivery, Posted
from cernvm.copilot.job import ENDED, LOGS, Job, JobId, State
from cernvm.copilot.messages import Address, Command, Envelope, Message, bare, decode, encode
from cernvm.copilot.queue import SqliteQueue
from cernvm.copilot.record import Output, Record, Report

MANAGER = Address("jm@copilot.test/main")
STORAGE = Address("storage@copilot.test/main")
RULES = Rules(
    storage=bare(STORAGE),
    storage_url="http://storage",
    agents=frozenset({"copilot.test"}),
    lease_seconds=30.0,
    max_attempts=50,
)
HASH = "0" * 64


@dataclass(frozen=True)
class Faults:
    """Probabilities per envelope, and the longest time under way in seconds."""

    lost: float = 0.0
    twice: float = 0.0
    slow: float = 0.05


@dataclass
class World:
    """The clock, the network, and everybody on it."""

    seed: int
    faults: Faults = field(default_factory=Faults)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.order = count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.peers: dict[Address, Callable[[Address, Envelope], None]] = {}
        self.queue = SqliteQueue(":memory:")
        self.ends: list[tuple[JobId, State]] = []
        self.uploaded: set[Key] = set()

    def at(self, when: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), deed))

    def post(self, sender: Address, posted: Posted) -> None:
        """Put an envelope on the wire, in its real XML form."""
        wire = encode(posted.envelope)
        copies = 0 if self.random.random() < self.faults.lost else 1
        copies += 1 if self.random.random() < self.faults.twice else 0
        for _ in range(copies):
            delay = self.random.random() * self.faults.slow
            self.at(self.now + delay, lambda: self.arrive(sender, posted.to, decode(wire)))

    def arrive(self, sender: Address, to: Address, envelope: Envelope) -> None:
        for address, receive in list(self.peers.items()):
            if to == address or (to == bare(to) and bare(address) == to):
                receive(sender, envelope)

    def run(self, done: Callable[[], bool], *, seconds: float) -> None:
        deadline = self.now + seconds
        while not done():
            assert self.events
            self.now, _, deed = heapq.heappop(self.events)
            assert self.now < deadline, f"not done after {seconds} simulated seconds: {self.queue.counts()}"
            deed()

    def submit(self, number: int) -> JobId:
        job = JobId(str(UUID(int=number + 1)))
        self.queue.add(Record(Job(job, "true"), owner=0, state=State.QUEUED, submitted=self.now))
        return job


class Peer:
    """A mailbox of the simulated network: the real Delivery, resending every second."""

    def __init__(self, world: World, address: Address) -> None:
        self.world, self.address, self.alive = world, address, True
        ids = count()
        self.prefix = world.random.getrandbits(64)
        self.delivery = Delivery(world.random, lambda: f"{self.prefix:x}-{next(ids)}")
        world.peers[address] = self.receive
        self.beat()

    def beat(self) -> None:
        if self.alive:
            for posted in self.delivery.due(self.world.now):
                self.world.post(self.address, posted)
            self.tick()
            self.world.at(self.world.now + 1.0, self.beat)

    def receive(self, sender: Address, envelope: Envelope) -> None:
        receipt, message = self.delivery.receive(sender, envelope, self.world.now)
        if receipt is not None:
            self.world.post(self.address, receipt)
        if message is not None:
            self.handle(sender, message)

    def send(self, to: Address, message: Message, once: bool = False) -> None:
        self.world.post(self.address, self.delivery.send(to, message, self.world.now, once=once))

    def kill(self) -> None:
        self.alive = False
        if self.world.peers.get(self.address) == self.receive:
            del self.world.peers[self.address]

    def tick(self) -> None:
        """What the peer does every second."""

    def handle(self, sender: Address, message: Message) -> None:
        """What the peer does with a message."""


class BrokerPeer(Peer):
    def __init__(self, world: World) -> None:
        self.broker = Broker(world.queue, RULES, lambda grant: "token")
        news = self.broker.started(world.now)
        super().__init__(world, MANAGER)
        self.publish(news)

    def tick(self) -> None:
        self.publish(self.broker.tick(self.world.now))

    def handle(self, sender: Address, message: Message) -> None:
        self.publish(self.broker.received(sender, message, self.world.now))

    def publish(self, news: list[broker_side.News]) -> None:
        for item in news:
            if isinstance(item, Changed):
                if item.record.state in ENDED:
                    self.world.ends.append((item.record.job.id, item.record.state))
            else:
                self.send(item.to, item.message, item.once)


class StoragePeer(Peer):
    """Accepts one attempt per job, if it was uploaded, and the same one again."""

    def __init__(self, world: World) -> None:
        self.accepted: dict[str, int] = {}
        self.refusals = 0
        super().__init__(world, STORAGE)

    def handle(self, sender: Address, message: Message) -> None:
        if message.command != Command.ACCEPT_OUTPUT:
            return
        job, attempt = message.text("jobID"), message.number("attempt")
        there = (job, attempt) in self.world.uploaded and self.accepted.setdefault(job, attempt) == attempt
        answer = Command.OUTPUT_ACCEPTED if there else Command.OUTPUT_REFUSED
        self.refusals += not there
        self.send(sender, Message(answer, {"jobID": job, "attempt": attempt, "reason": "not the one"}))


class AgentPeer(Peer):
    """An agent whose work takes a random time; its `disk` survives a kill."""

    def __init__(self, world: World, name: str, disk: dict[Key, Keep], slots: int = 1) -> None:
        self.disk = disk
        habits = Habits(manager=bare(MANAGER), name=name, slots=slots)
        self.agent = Agent(habits, world.random.random, {})
        self.running: set[Key] = set()
        super().__init__(world, Address(f"{name}@copilot.test/{name}"))
        for keep in list(disk.values()):
            self.do(self.agent.restore(keep.assignment, keep.report, keep.stored, world.now))
        self.do(self.agent.connected(world.now))

    def tick(self) -> None:
        self.do(self.agent.tick(self.world.now))

    def handle(self, sender: Address, message: Message) -> None:
        self.do(self.agent.received(sender, message, self.world.now))

    def do(self, deeds: list[agent_side.Deed]) -> None:
        for deed in deeds:
            if isinstance(deed, Start):
                self.running.add(deed.assignment.key)
                self.later(self.world.random.uniform(1, 60), deed.assignment, self.end)
            elif isinstance(deed, Upload):
                self.later(self.world.random.uniform(0.1, 5), deed.assignment, self.stored)
            elif isinstance(deed, Keep):
                self.disk[deed.assignment.key] = deed
            elif isinstance(deed, Drop):
                self.running.discard(deed.key)
                self.disk.pop(deed.key, None)
            else:
                self.send(deed.to, deed.message, deed.once)

    def later(self, seconds: float, assignment: Assignment, deed: Callable[[Assignment], None]) -> None:
        self.world.at(self.world.now + seconds, lambda: deed(assignment) if self.alive else None)

    def end(self, assignment: Assignment) -> None:
        if assignment.key in self.running:
            self.running.discard(assignment.key)
            self.do(self.agent.finished(assignment.key, Report(State.DONE, 0, ""), self.world.now))

    def stored(self, assignment: Assignment) -> None:
        outputs = tuple(Output(name, 0, HASH) for name in LOGS)
        self.world.uploaded.add(assignment.key)
        self.do(self.agent.stored(assignment.key, outputs, self.world.now))


def all_ended(world: World, jobs: list[JobId]) -> Callable[[], bool]:
    return lambda: sum(world.queue.counts()[state] for state in ENDED) == len(jobs)


def check(world: World, storage: StoragePeer, jobs: list[JobId]) -> None:
    """Every job ended once, DONE, with the one attempt that the storage has."""
    assert Counter(world.ends) == {(job, State.DONE): 1 for job in jobs}
    for job in jobs:
        assert world.queue.get(job).attempt == storage.accepted[job]
    assert storage.refusals == 0, "the broker asked only for what an agent had stored"


def test_on_a_good_network_jobs_run_once_each() -> None:
    world = World(seed=1)
    jobs = [world.submit(number) for number in range(20)]
    BrokerPeer(world)
    storage = StoragePeer(world)
    for number in range(4):
        AgentPeer(world, f"agent{number}", {})
    world.run(all_ended(world, jobs), seconds=600)
    check(world, storage, jobs)
    assert all(world.queue.get(job).attempt == 1 for job in jobs)


@pytest.mark.parametrize("seed", range(8))
def test_on_a_bad_network_every_job_ends_exactly_once(seed: int) -> None:
    world = World(seed=seed, faults=Faults(lost=0.25, twice=0.25, slow=8.0))
    jobs = [world.submit(number) for number in range(25)]
    BrokerPeer(world)
    storage = StoragePeer(world)
    agents = [AgentPeer(world, f"agent{number}", {}, slots=1 + number % 2) for number in range(4)]
    world.run(all_ended(world, jobs), seconds=7200)
    check(world, storage, jobs)
    world.run(lambda: not any(agent.disk for agent in agents), seconds=7200)


@pytest.mark.parametrize("seed", range(4))
def test_restarted_brokers_have_nothing_run_twice(seed: int) -> None:
    world = World(seed=200 + seed)
    jobs = [world.submit(number) for number in range(20)]
    brokers = [BrokerPeer(world)]
    storage = StoragePeer(world)
    for number in range(4):
        AgentPeer(world, f"agent{number}", {})

    def kill_broker() -> None:
        brokers[-1].kill()
        world.at(world.now + world.random.uniform(1, 100), lambda: brokers.append(BrokerPeer(world)))
        world.at(world.now + 150, kill_broker)

    world.at(world.now + 20, kill_broker)
    world.run(all_ended(world, jobs), seconds=10_000)
    check(world, storage, jobs)
    assert all(world.queue.get(job).attempt == 1 for job in jobs)


@pytest.mark.parametrize("seed", range(8))
def test_killed_agents_and_restarted_brokers_lose_and_double_nothing(seed: int) -> None:
    world = World(seed=100 + seed, faults=Faults(lost=0.1, twice=0.1, slow=3.0))
    jobs = [world.submit(number) for number in range(25)]
    brokers = [BrokerPeer(world)]
    storage = StoragePeer(world)
    disks: list[dict[Key, Keep]] = [{} for _ in range(4)]
    agents = [AgentPeer(world, f"agent{number}", disks[number]) for number in range(4)]

    def kill_agent() -> None:
        number = world.random.randrange(4)
        agents[number].kill()
        world.at(world.now + 5, lambda: agents.__setitem__(number, AgentPeer(world, f"agent{number}", disks[number])))
        world.at(world.now + 40, kill_agent)

    def kill_broker() -> None:
        brokers[-1].kill()
        world.at(world.now + world.random.uniform(1, 60), lambda: brokers.append(BrokerPeer(world)))
        world.at(world.now + 120, kill_broker)

    world.at(world.now + 20, kill_agent)
    world.at(world.now + 50, kill_broker)
    world.run(all_ended(world, jobs), seconds=20_000)
    check(world, storage, jobs)
