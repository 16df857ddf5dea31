"""The ledger of what programs listen on: one address has one listener, whoever asks and however often."""

import errno
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wscluster.gateway.asked import MAX_LISTENERS, Address, Asked, Open
from wscluster.gateway.carried import decode, encode
from wscluster.gateway.state import AskedState
from wscluster.packets import Bind, BoundAt

V4, V6, UNIX = 2, 10, 1


def request(host: str = "127.0.0.1", port: int = 8000, path: str = "", family: int = 0, nth: int = 0) -> Bind:
    return Bind(7, host, port, path, family, 100, nth)


@dataclass
class Machine:
    """A kernel with two addresses, ``localhost`` for both, and ports that it chooses from 40000 on."""

    asked: Asked = field(default_factory=Asked)
    taken: set[Address] = field(default_factory=set)
    bound: list[Address] = field(default_factory=list)

    def meant(self, bind: Bind) -> list[Address]:
        if bind.path:
            return [(UNIX, (bind.path,))]
        hosts: dict[str, list[Address]] = {
            "127.0.0.1": [(V4, ("127.0.0.1", bind.port))],
            "localhost": [(V4, ("127.0.0.1", bind.port)), (V6, ("::1", bind.port, 0, 0))],
            "": [(V4, ("0.0.0.0", bind.port)), (V6, ("::", bind.port, 0, 0))],
        }
        return [address for address in hosts[bind.host] if bind.family in (0, address[0])]

    def used_ports(self) -> set[int]:
        return {parts[1] for family, parts in self.bound if family != UNIX}

    def ask(self, bind: Bind) -> BoundAt:
        if (known := self.asked.ask(bind)) is not None:
            return known
        meant = self.meant(bind)
        step = self.asked.found(bind, meant)
        if isinstance(step, BoundAt):
            return step
        assert isinstance(step, Open)
        if self.taken & set(step.addresses):
            return self.asked.failed(bind, errno.EADDRINUSE, "taken")
        port, made = bind.port, []
        if not bind.path and not port:
            port = next(port for port in range(40000, 41000) if port not in self.used_ports())
        for family, parts in step.addresses:
            address = (family, parts if bind.path else (parts[0], port, *parts[2:]))
            made.append((address, bind.path or list(address[1])))
        self.bound += [address for address, _ in made]
        return self.asked.opened(bind, meant, made)


def test_the_first_request_is_bound_and_the_second_worker_gets_the_same() -> None:
    machine = Machine()
    first = machine.ask(request())
    assert first == BoundAt(7, [0], [["127.0.0.1", 8000]], [0], known_addresses=[["127.0.0.1", 8000]])
    assert machine.ask(request()) == first
    assert len(machine.bound) == 1


def test_a_host_of_both_families_is_two_listeners() -> None:
    machine = Machine()
    assert machine.ask(request("localhost")).listeners == [0, 1]
    assert machine.ask(request("localhost", family=V6)).listeners == [1]


def test_an_address_under_another_name_is_the_same_listener() -> None:
    machine = Machine()
    assert machine.ask(request("127.0.0.1")).listeners == [0]
    answer = machine.ask(request("localhost"))
    assert answer.listeners == [0, 1]
    assert answer.addresses == [["127.0.0.1", 8000], ["::1", 8000, 0, 0]]


def test_a_fixed_port_is_the_same_listener_each_time_a_worker_asks() -> None:
    machine = Machine()
    assert machine.ask(request(nth=0)).listeners == machine.ask(request(nth=1)).listeners == [0]


def test_each_port_that_the_kernel_chooses_is_another_one_and_the_same_in_every_worker() -> None:
    machine = Machine()
    first, second = machine.ask(request(port=0)), machine.ask(request(port=0, nth=1))
    assert (first.addresses, second.addresses) == ([["127.0.0.1", 40000]], [["127.0.0.1", 40001]])
    assert machine.ask(request(port=0)).listeners == first.listeners
    assert machine.ask(request(port=0, nth=1)).listeners == second.listeners


def test_a_port_that_the_kernel_chose_may_be_asked_for_by_its_number() -> None:
    machine = Machine()
    machine.ask(request(port=0))
    assert machine.ask(request(port=40000)).listeners == [0]


def test_a_unix_path_is_a_listener() -> None:
    machine = Machine()
    answer = machine.ask(request("", 0, "/run/a.sock"))
    assert (answer.listeners, answer.addresses) == ([0], ["/run/a.sock"])
    assert machine.ask(request("", 0, "/run/a.sock", nth=1)).listeners == [0]
    assert machine.ask(request("", 0, "/run/b.sock")).listeners == [1]


def test_what_has_failed_may_succeed_later() -> None:
    machine = Machine(taken={(V4, ("127.0.0.1", 8000))})
    answer = machine.ask(request())
    assert (answer.errno, answer.reason, answer.listeners) == (errno.EADDRINUSE, "taken", [])
    machine.taken.clear()
    assert machine.ask(request()).errno == 0


def test_an_address_and_every_interface_do_not_go_together() -> None:
    """The kernel lets both be bound until one listens: the program is told at once, as it would be without us."""
    for first, second in (("", "127.0.0.1"), ("127.0.0.1", "")):
        machine = Machine()
        machine.ask(request(first))
        assert machine.ask(request(second)).errno == errno.EADDRINUSE
        assert machine.ask(request(second, port=8001)).errno == 0


def test_listeners_are_bounded_and_the_next_is_told_why() -> None:
    machine = Machine()
    for port in range(8000, 8000 + MAX_LISTENERS):
        assert machine.ask(request(port=port)).errno == 0
    refused = machine.ask(request(port=9999))
    assert refused.errno == errno.EMFILE
    assert str(MAX_LISTENERS) in refused.reason
    assert refused.known == list(range(MAX_LISTENERS))
    assert machine.ask(request(port=8003)).listeners == [3], "what is there is still found"


BINDS = st.builds(
    request,
    host=st.sampled_from(["127.0.0.1", "localhost", ""]),
    port=st.sampled_from([0, 8000, 8001, 40000]),
    path=st.sampled_from(["", "", "", "/a", "/b"]),
    family=st.sampled_from([0, V4, V6]),
    nth=st.integers(0, 2),
)


class Workers(RuleBasedStateMachine):
    """Workers come, ask for anything in any order while ports are taken and freed, and go."""

    @initialize()
    def begin(self) -> None:
        self.machine = Machine()
        self.known: list[int] = []
        self.answers: dict[tuple[Any, ...], list[int]] = {}

    @rule()
    def upgrade(self) -> None:
        """Another process knows what this one was asked."""
        state = decode(AskedState, json.loads(json.dumps(encode(self.machine.asked.carry()))))
        self.machine.asked = Asked()
        self.machine.asked.resume(state)

    @rule(bind=BINDS)
    def ask(self, bind: Bind) -> None:
        if not self.machine.meant(bind):
            return
        answer = self.machine.ask(bind)
        assert answer.serial == bind.serial
        assert answer.known[: len(self.known)] == self.known, "known grows only"
        self.known = answer.known
        if answer.errno:
            assert answer.reason
            assert not answer.listeners
            return
        assert set(answer.listeners) <= set(answer.known)
        assert answer.known_addresses == list(self.machine.asked.names)
        assert answer.addresses == [self.machine.asked.names[number] for number in answer.listeners]
        chosen = bind.nth if not bind.port and not bind.path else 0
        key = (bind.host, bind.port, bind.path, bind.family, chosen)
        assert self.answers.setdefault(key, answer.listeners) == answer.listeners, "the same for whoever asks"

    @rule(port=st.sampled_from([8000, 8001]))
    def take(self, port: int) -> None:
        self.machine.taken.add((V4, ("127.0.0.1", port)))

    @rule()
    def free(self) -> None:
        self.machine.taken.clear()

    @invariant()
    def one_listener_for_each_address(self) -> None:
        assert len(set(self.machine.bound)) == len(self.machine.bound) == len(self.machine.asked.names)


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(BINDS, max_size=20))
def test_a_worker_that_takes_the_place_of_another_finds_the_same_listeners(binds: list[Bind]) -> None:
    machine = Machine()
    asked = [bind for bind in binds if machine.meant(bind)]
    first = [machine.ask(bind) for bind in asked]
    bound = list(machine.bound)
    again = [machine.ask(bind) for bind, answer in zip(asked, first, strict=True) if not answer.errno]
    assert [answer.listeners for answer in again] == [answer.listeners for answer in first if not answer.errno]
    assert machine.bound == bound
