"""Placement: what rendezvous hashing promises, values that must never change, the balances without stickiness."""

import ipaddress
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wscluster.gateway.placement import (
    ByAddress,
    LeastConnections,
    Random,
    RoundRobin,
    make_chooser,
    rank,
    sticky_key,
)

KEYS = 10_000
keys = [sticky_key(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") for number in range(KEYS)]


def chi_square(counts: Counter[int], slots: int) -> float:
    expected = counts.total() / slots
    return sum((counts[slot] - expected) ** 2 / expected for slot in range(slots))


# Keys


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "c0000201"),
        ("0.0.0.0", "00000000"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002"),
        ("::1", "0000000000000000"),
        ("::ffff:192.0.2.1", "c0000201"),
        ("::FFFF:c000:201", "c0000201"),
        ("::fffe:192.0.2.1", "0000000000000000"),
        ("fe80::1", "fe80000000000000"),
        ("fe80::1%eth0", "fe80000000000000"),
        ("::ffff:192.0.2.1%eth0", "c0000201"),
    ],
)
def test_the_key_of_an_address(host: str, key: str) -> None:
    assert sticky_key(host).hex() == key


@pytest.mark.parametrize(
    "host", ["", "unix", "192.0.2.1:80", "192.0.2", "010.0.0.1", "192.0.2.1%eth0", "::g", "%", "ä"]
)
def test_the_key_of_what_is_no_address_is_its_text(host: str) -> None:
    assert sticky_key(host) == host.encode()


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_and_the_same_mapped_into_ipv6_have_one_key(address: ipaddress.IPv4Address) -> None:
    assert sticky_key(str(address)) == address.packed == sticky_key(f"::ffff:{address}")


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(0, 1, 2)
def test_all_addresses_of_an_ipv6_64_have_one_key(network: int, one: int, other: int) -> None:
    first, second = (ipaddress.IPv6Address(network << 64 | host) for host in (one, other))
    if not (first.ipv4_mapped or second.ipv4_mapped):
        assert sticky_key(str(first)) == sticky_key(str(second)) == network.to_bytes(8, "big")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_no_text_makes_the_key_fail(host: str) -> None:
    assert isinstance(sticky_key(host), bytes)


# Rendezvous


@pytest.mark.parametrize(
    ("host", "order"),
    [
        ("192.0.2.1", (2, 7, 1, 4, 0, 6, 3, 5)),
        ("192.0.2.2", (2, 7, 6, 5, 0, 3, 1, 4)),
        ("127.0.0.1", (4, 2, 7, 0, 5, 1, 6, 3)),
        ("2001:db8::1", (0, 7, 5, 2, 1, 4, 3, 6)),
        ("fe80::1%eth0", (1, 3, 6, 7, 2, 4, 0, 5)),
        ("", (2, 3, 4, 7, 6, 1, 5, 0)),
    ],
)
def test_the_order_of_slots_is_the_same_in_every_release(host: str, order: tuple[int, ...]) -> None:
    """Another order would move every client of every cluster at its next upgrade."""
    assert ByAddress(8)(1, host, ()) == order


@given(st.binary(max_size=40), st.integers(1, 64))
def test_the_order_holds_every_slot_once_and_a_new_slot_only_steps_in_between(key: bytes, slots: int) -> None:
    order, grown = rank(key, slots), rank(key, slots + 1)
    assert sorted(order) == list(range(slots))
    assert tuple(slot for slot in grown if slot != slots) == order


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7, 8, 15, 16, 31])
def test_growth_by_one_slot_moves_its_share_of_the_keys_and_only_to_the_new_slot(slots: int) -> None:
    before, after = ([rank(key, count)[0] for key in keys] for count in (slots, slots + 1))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {slots}
    share = KEYS / (slots + 1)
    noise = 4 * (share * (1 - 1 / (slots + 1))) ** 0.5
    assert share - noise <= len(moved) <= share + noise


@pytest.mark.parametrize("slots", [2, 4, 16])
def test_a_dead_slot_moves_its_own_keys_only_and_spreads_them_over_all_others(slots: int) -> None:
    dead = 1
    fallen: Counter[int] = Counter()
    for key in keys[:4000]:
        order = rank(key, slots)
        alive = [slot for slot in order if slot != dead]
        if order[0] == dead:
            fallen[alive[0]] += 1
        else:
            assert alive[0] == order[0]
    assert fallen.keys() == set(range(slots)) - {dead}
    assert max(fallen.values()) <= 1.5 * fallen.total() / (slots - 1)


@pytest.mark.parametrize("slots", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("prefix", ["10.0", "127.1", "192.168"])
def test_addresses_are_spread_evenly(slots: int, prefix: str) -> None:
    """Judged as dice are: within four standard deviations of what a fair spread gives, for 40 to 10,000 addresses."""
    first = [
        rank(sticky_key(f"{prefix}.{number >> 8}.{number & 255}"), slots)[0]
        for number in range(1, KEYS + 1 if prefix == "10.0" else 1001)
    ]
    for count in (40, 100, 1000, KEYS):
        counts = Counter(first[:count])
        assert chi_square(counts, slots) <= (slots - 1) + 4 * (2 * (slots - 1)) ** 0.5
    assert min(counts.values()) >= (0.9 if len(first) == KEYS else 0.7) * len(first) / slots
    assert max(counts.values()) <= (1.1 if len(first) == KEYS else 1.3) * len(first) / slots


def test_ipv6_networks_are_spread_evenly() -> None:
    counts = Counter(rank(sticky_key(f"2001:db8:0:{number:x}::1"), 8)[0] for number in range(4096))
    assert chi_square(counts, 8) <= 7 + 4 * 14**0.5


def test_by_address_asks_for_the_host_alone() -> None:
    chooser = ByAddress(4)
    assert chooser(1, "192.0.2.1", ()) == chooser(2, "192.0.2.1", (9, 9, 9, 9)) == rank(sticky_key("192.0.2.1"), 4)


# Balances


@pytest.mark.parametrize(
    ("number", "loads", "order"),
    [
        (0, [5, 3, 4], [1, 2, 0]),
        (0, [1, 1, 1], [0, 1, 2]),
        (1, [1, 1, 1], [1, 2, 0]),
        (5, [1, 1, 1], [2, 0, 1]),
        (2, [0, 7, 0, 7], [2, 0, 3, 1]),
    ],
)
def test_least_connections_orders_by_load_and_takes_equal_ones_in_turn(
    number: int, loads: list[int], order: list[int]
) -> None:
    assert LeastConnections()(number, "", loads) == order


def test_round_robin_takes_one_slot_after_the_other() -> None:
    chooser = RoundRobin()
    assert [chooser(number, "192.0.2.1", [0] * 3) for number in range(4)] == [
        [0, 1, 2],
        [1, 2, 0],
        [2, 0, 1],
        [0, 1, 2],
    ]


def test_random_spreads_evenly_and_shows_no_turn() -> None:
    chooser = Random()
    first = [chooser(number, "192.0.2.1", [0] * 4)[0] for number in range(4000)]
    assert chi_square(Counter(first), 4) <= 3 + 4 * 6**0.5
    pairs = Counter(one * 4 + other for one, other in zip(first[::2], first[1::2], strict=True))
    assert chi_square(pairs, 16) <= 15 + 4 * 30**0.5


@given(st.integers(0, 2**63), st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.text(max_size=8))
def test_every_balance_orders_all_slots(number: int, loads: list[int], host: str) -> None:
    for chooser in (LeastConnections(), RoundRobin(), Random()):
        assert sorted(chooser(number, host, loads)) == list(range(len(loads)))


@pytest.mark.parametrize(
    ("sticky", "balance", "kind"),
    [
        ("ip", None, ByAddress),
        ("none", None, LeastConnections),
        ("none", "least-connections", LeastConnections),
        ("none", "round-robin", RoundRobin),
        ("none", "random", Random),
    ],
)
def test_the_flags_name_a_chooser(sticky: str, balance: str | None, kind: type) -> None:
    chooser = make_chooser(sticky, balance, 4)
    assert type(chooser) is kind
    assert chooser.sticky == (sticky == "ip")


@pytest.mark.parametrize(("sticky", "balance"), [("none", "banana"), ("cookie", None), ("IP", "random")])
def test_an_unknown_placement_raises(sticky: str, balance: str | None) -> None:
    with pytest.raises(ValueError, match="unknown placement"):
        make_chooser(sticky, balance, 4)
