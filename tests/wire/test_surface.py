"""What can be found on a connection, beside that of `websockets`."""

import asyncio
import contextlib
import re
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection

from tests.support import ROOT
from tests.wire.harness import ours, run, theirs
from wscluster import api
from wscluster.workers.connection import Connection


def test_the_surface_is_that_of_the_library() -> None:
    found: dict[str, set[str]] = {}

    async def main() -> None:
        async def handler(ws: Any) -> None:
            names = {name for name in dir(ws) if not name.startswith("_")}
            found["theirs" if isinstance(ws, ServerConnection) else "ours"] = names
            special = ("__aenter__", "__aexit__", "__aiter__", "__dict__")
            assert not [name for name in special if not hasattr(ws, name)]
            for name in names:  # whatever is there can be asked for
                with contextlib.suppress(AttributeError):
                    getattr(ws, name)

        async with theirs(handler) as port, connect(f"ws://127.0.0.1:{port}/", proxy=None) as client:
            await client.wait_closed()
        async with ours(handler) as served, served.connect() as client:
            await client.wait_closed()

    run(main())
    text = (ROOT / "docs/compatibility.md").read_text()
    there, absent = text.split("Not there, and not documented by the library:")
    assert found["theirs"] - found["ours"] == set(re.findall(r"`(\w+)`", absent))
    contract = {name for name in vars(api.Connection) | api.Connection.__annotations__ if not name.startswith("_")}
    assert contract <= found["ours"]
    shared = contract - {"slot", "session", "client", "rooms", "positions", "join", "leave", "publish"}
    assert not [name for name in shared if f"`{name}`" not in there]


def test_the_server_of_a_connection_is_not_the_librarys() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            assert not isinstance(ws.server, Server)
            await ws.send(str(ws.loop is asyncio.get_running_loop()))

        async with ours(handler) as served, served.connect() as client:
            assert await client.recv() == "True"

    run(main())


def test_lines_of_the_logger_name_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            ws.logger.warning("moved by %s", "me", extra={"how": "far"})
            await ws.send(str(ws.id))

        async with ours(handler) as served, served.connect() as client:
            told = await client.recv(decode=True)
            (record,) = [record for record in caplog.records if "moved" in record.getMessage()]
            assert record.name == "wscluster.connection"
            assert record.getMessage() == f"moved by me (connection {told})"
            assert record.how == "far"  # type: ignore[attr-defined]
            assert str(record.websocket.id) == told  # type: ignore[attr-defined]

    run(main())


def test_the_loop_over_messages_may_be_left_and_entered_again() -> None:
    async def main() -> None:
        got: list[object] = []

        async def handler(ws: Connection) -> None:
            assert aiter(ws) is ws
            for _ in range(3):
                async for message in ws:
                    got.append(message)
                    break

        async with ours(handler) as served, served.connect() as client:
            for text in "abc":
                await client.send(text)
            await client.wait_closed()
        assert got == ["a", "b", "c"]

    run(main())


def test_attributes_of_the_programs_own_are_kept() -> None:
    async def main() -> None:
        async def handler(ws: Any) -> None:
            assert not vars(ws)
            ws.user = "alice"
            assert vars(ws) == {"user": "alice"}
            del ws.user
            with pytest.raises(AttributeError):
                ws.user  # noqa: B018
            await ws.send("kept")

        async with ours(handler) as served, served.connect() as client:
            assert await client.recv() == "kept"

    run(main())
