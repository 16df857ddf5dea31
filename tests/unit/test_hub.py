"""Who is in which room: random lives against a set of pairs."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wscluster.workers.hub import Hub

MEMBERS = st.integers(0, 4)
ROOMS = st.sampled_from(["", "a", "b", "c"])


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hub: Hub[int] = Hub()
        self.pairs: list[tuple[int, str]] = []  # in the order of the joins

    def members(self, room: str) -> list[int]:
        return [member for member, joined in self.pairs if joined == room]

    def rooms(self, member: int) -> set[str]:
        return {joined for one, joined in self.pairs if one == member}

    @rule(member=MEMBERS, room=ROOMS)
    def join(self, member: int, room: str) -> None:
        first = not self.members(room)
        assert self.hub.join(member, room) is first
        if (member, room) not in self.pairs:
            self.pairs.append((member, room))

    @rule(member=MEMBERS, room=ROOMS)
    def leave(self, member: int, room: str) -> None:
        last = self.members(room) == [member]
        assert self.hub.leave(member, room) is last
        if (member, room) in self.pairs:
            self.pairs.remove((member, room))

    @rule(member=MEMBERS)
    def forget(self, member: int) -> None:
        emptied = {room for room in self.rooms(member) if self.members(room) == [member]}
        told = self.hub.forget(member)
        assert len(told) == len(set(told))
        assert set(told) == emptied
        self.pairs = [pair for pair in self.pairs if pair[0] != member]

    @invariant()
    def both_sides_say_the_same(self) -> None:
        assert len(self.hub) == len({room for _, room in self.pairs})
        for room in ("", "a", "b", "c", "never"):
            assert list(self.hub.members(room)) == self.members(room)
        for member in range(6):
            assert self.hub.rooms_of(member) == self.rooms(member)
            for room in ("", "a", "b", "c", "never"):
                assert self.hub.is_member(member, room) == ((member, room) in self.pairs)

    def teardown(self) -> None:
        """When all have left, nothing is kept of them."""
        for member in range(5):
            self.hub.forget(member)
        assert not self.hub._members
        assert not self.hub._rooms


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_who_joins_again_keeps_its_place_and_is_not_the_first() -> None:
    hub: Hub[str] = Hub()
    assert hub.join("x", "room") is True
    assert hub.join("y", "room") is False
    assert hub.join("x", "room") is False
    assert list(hub.members("room")) == ["x", "y"]


def test_what_a_member_is_told_of_its_rooms_does_not_change_later() -> None:
    hub: Hub[str] = Hub()
    hub.join("x", "a")
    rooms = hub.rooms_of("x")
    hub.join("x", "b")
    assert rooms == {"a"}


def test_whoever_was_in_no_room_is_forgotten_without_a_word() -> None:
    hub: Hub[str] = Hub()
    assert hub.forget("x") == []
    assert hub.leave("x", "a") is False
