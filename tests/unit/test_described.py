"""What a worker says of its connections, page by page."""

from wscluster.workers.described import MAX_CHARS, MAX_ROOMS, Described, make_page

ALL = [
    Described(f"id{number}", ("192.0.2.1" if number % 2 else "192.0.2.2", number), "/", frozenset({f"r{number % 3}"}))
    for number in range(10)
]


def ids(page: dict[str, object]) -> list[str]:
    found = page["connections"]
    assert isinstance(found, list)
    return [one["id"] for one in found]


def test_every_connection_comes_once_over_the_pages() -> None:
    seen, begin = [], 0
    for _ in range(4):
        page = make_page(ALL, begin, 3, None, None)
        seen += ids(page)
        begin += page["seen"]
        if not page["more"]:
            break
    assert seen == [one.id for one in ALL]
    assert make_page([], 0, 3, None, None) == {"connections": [], "seen": 0, "more": False}


def test_a_room_and_an_address_choose() -> None:
    assert ids(make_page(ALL, 0, 9, "r0", None)) == ["id0", "id3", "id6", "id9"]
    assert ids(make_page(ALL, 0, 9, None, "192.0.2.1")) == ["id1", "id3", "id5", "id7", "id9"]
    assert ids(make_page(ALL, 0, 9, "r0", "192.0.2.1")) == ["id3", "id9"]
    assert ids(make_page([Described("x", None)], 0, 9, None, "192.0.2.1")) == []
    assert ids(make_page([Described("x", None)], 0, 9, "r0", None)) == []


def test_one_is_bounded_in_size() -> None:
    rooms = frozenset(f"room{number:03}" for number in range(100))
    shown = Described("x", ("192.0.2.1", 1), "/" + "p" * 10_000, rooms, 7).as_json()
    assert len(shown["path"]) == MAX_CHARS
    assert shown["rooms"] == sorted(rooms)[:MAX_ROOMS]
    assert (shown["rooms_count"], shown["unsent_bytes"]) == (100, 7)


def test_what_is_not_known_is_none() -> None:
    assert Described("3-7", None).as_json() == {
        "id": "3-7", "client": None, "path": None, "rooms": None, "rooms_count": None, "unsent_bytes": None,
    }  # fmt: skip
