"""Who may come in: how many are open, how many begin in a second, and that nothing is remembered for ever."""

import json
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wscluster.config import Listen
from wscluster.gateway.admission import Admission, make_admission
from wscluster.gateway.carried import decode, encode
from wscluster.gateway.state import AdmissionState

HOSTS = ["192.0.2.1", "192.0.2.2", "2001:db8::1", ""]


def test_without_a_limit_nobody_counts() -> None:
    assert make_admission(Listen()) is None


@pytest.mark.parametrize("name", ["limit_connections", "limit_connections_per_ip", "limit_connect_rate_per_ip"])
def test_each_limit_alone_is_kept_and_named(name: str) -> None:
    admission = make_admission(replace(Listen(), **{name: 2}))  # type: ignore[arg-type]
    assert admission is not None
    assert [admission.admit(number, "192.0.2.1", 0.0) for number in range(4)] == [None, None, name, name]
    assert admission.admit(9, "192.0.2.2", 0.0) == (name if name == "limit_connections" else None)


def test_an_end_makes_room_for_one() -> None:
    admission = Admission(Listen(limit_connections_per_ip=1))
    assert admission.admit(1, "192.0.2.1", 0.0) is None
    admission.adopt(7, [1])
    assert admission.admit(2, "192.0.2.1", 0.0) == "limit_connections_per_ip"
    admission.end(7, [1])
    assert admission.admit(3, "192.0.2.1", 0.0) is None
    assert admission.open == 1


def test_one_that_comes_back_under_another_number_counts_whatever_the_limits_say_until_it_ends() -> None:
    admission = Admission(Listen(limit_connections=1, limit_connections_per_ip=1))
    assert admission.admit(1, "192.0.2.1", 0.0) is None
    admission.adopt(7, [1])
    admission.readmit(2, "192.0.2.1")
    admission.readmit(3, "")
    admission.end(7, [1])
    assert admission.open == 2
    assert admission.admit(4, "192.0.2.1", 0.0) == "limit_connections"
    admission.adopt(8, [2, 3])
    admission.end(8, [2, 3])
    assert (admission.open, admission.addresses) == (0, 0)


def test_an_end_told_twice_or_by_another_worker_changes_nothing() -> None:
    admission = Admission(Listen(limit_connections=2))
    for number in (1, 2):
        assert admission.admit(number, "192.0.2.1", 0.0) is None
    admission.adopt(7, [1])
    admission.end(8, [1, 2])
    admission.end(7, [2])
    assert admission.open == 2
    admission.end(7, [1])
    admission.end(7, [1])
    assert admission.open == 1


def test_a_worker_that_is_gone_takes_its_connections_with_it_and_no_others() -> None:
    admission = Admission(Listen(limit_connections=4))
    for number in range(4):
        admission.admit(number, "192.0.2.1", 0.0)
    admission.adopt(7, [0, 1])
    admission.adopt(8, [2])
    admission.lose(7)
    admission.lose(7)
    assert admission.open == 2
    admission.end(7, [2, 3])
    assert admission.open == 2


def test_one_that_nobody_could_serve_is_open_no_more() -> None:
    admission = Admission(Listen(limit_connections=1))
    admission.admit(1, "192.0.2.1", 0.0)
    admission.reject([1, 2])
    assert admission.open == 0


def test_ipv6_is_counted_by_its_64_and_mapped_ipv4_as_ipv4() -> None:
    admission = Admission(Listen(limit_connections_per_ip=1))
    assert admission.admit(1, "2001:db8::1", 0.0) is None
    assert admission.admit(2, "2001:db8::2", 0.0) is not None
    assert admission.admit(3, "2001:db8:0:1::1", 0.0) is None
    assert admission.admit(4, "192.0.2.1", 0.0) is None
    assert admission.admit(5, "::ffff:192.0.2.1", 0.0) is not None


def test_clients_on_a_unix_socket_count_together_and_have_no_address() -> None:
    admission = Admission(Listen(limit_connections=3, limit_connections_per_ip=1, limit_connect_rate_per_ip=1))
    assert [admission.admit(number, "", 0.0) for number in range(4)] == [None, None, None, "limit_connections"]
    assert admission.addresses == 0


def test_a_rate_fills_up_again_and_no_further_than_a_second() -> None:
    admission = Admission(Listen(limit_connect_rate_per_ip=4))

    def admitted(now: float) -> int:
        return sum(admission.admit(0, "192.0.2.1", now) is None for _ in range(10))

    assert admitted(100.0) == 4
    assert admitted(100.0) == 0
    assert admitted(100.25) == 1
    assert admitted(100.75) == 2
    assert admitted(500.0) == 4
    assert admission.open == 0  # only a rate: nobody tells the ends


def test_refused_ones_do_not_keep_an_address_out() -> None:
    admission = Admission(Listen(limit_connect_rate_per_ip=1))
    found = [admission.admit(0, "192.0.2.1", step / 10) is None for step in range(41)]
    assert sum(found) == 5


def test_addresses_are_forgotten_a_second_after_they_last_came() -> None:
    admission = Admission(Listen(limit_connect_rate_per_ip=1))
    for number in range(1000):
        admission.admit(number, f"10.0.{number // 250}.{number % 250}", number / 100)
        assert admission.addresses <= 101


class Model(RuleBasedStateMachine):
    """Every history of admissions and ends, beside a plain list of what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(Listen(limit_connections=6, limit_connections_per_ip=3))
        self.number = 0
        self.open: dict[int, tuple[str, int | None]] = {}

    @rule()
    def upgrade(self) -> None:
        """Another process counts on."""
        state = decode(AdmissionState, json.loads(json.dumps(encode(self.admission.carry()))))
        self.admission = Admission(Listen(limit_connections=6, limit_connections_per_ip=3))
        self.admission.resume(state)

    @rule(host=st.sampled_from(HOSTS))
    def admit(self, host: str) -> None:
        self.number += 1
        same = sum(found == host for found, _ in self.open.values())
        expected = len(self.open) < 6 and (not host or same < 3)
        assert (self.admission.admit(self.number, host, 0.0) is None) is expected
        if expected:
            self.open[self.number] = host, None

    @rule(data=st.data(), worker=st.sampled_from([1, 2]))
    def adopt(self, data: st.DataObject, worker: int) -> None:
        if waiting := [number for number, (_, owner) in self.open.items() if owner is None]:
            number = data.draw(st.sampled_from(waiting))
            self.open[number] = self.open[number][0], worker
            self.admission.adopt(worker, [number])

    @rule(number=st.integers(0, 40), worker=st.sampled_from([1, 2]))
    def end(self, number: int, worker: int) -> None:
        self.admission.end(worker, [number])
        if number in self.open and self.open[number][1] == worker:
            del self.open[number]

    @rule(worker=st.sampled_from([1, 2]))
    def lose(self, worker: int) -> None:
        self.admission.lose(worker)
        self.open = {number: found for number, found in self.open.items() if found[1] != worker}

    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        if waiting := [number for number, (_, owner) in self.open.items() if owner is None]:
            number = data.draw(st.sampled_from(waiting))
            del self.open[number]
            self.admission.reject([number])

    @invariant()
    def counts_agree(self) -> None:
        assert self.admission.open == len(self.open)
        assert self.admission.addresses == len({host for host, _ in self.open.values() if host})


TestModel = Model.TestCase
