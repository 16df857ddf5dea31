"""examples/mcp_server: sessions over streamable HTTP, with the SDK's own client, on several workers."""

import asyncio
from typing import Any

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.cluster.polling_support import source
from tests.support import run
from wscluster.testing import Cluster

APP = "examples.mcp_server.main:app"
CLIENTS = 12
NOTES = 5


def test_every_session_keeps_its_notes_on_one_worker() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=3) as cluster:

            async def client(number: int) -> int:
                # A connection for each request, as from a client that is slow: none is kept for the next.
                transport = httpx2.AsyncHTTPTransport(
                    local_address=source(number), limits=httpx2.Limits(max_keepalive_connections=0)
                )
                async with (
                    httpx2.AsyncClient(transport=transport, timeout=60) as http,
                    # `legacy` is the handshake that opens a session; later revisions of MCP have none.
                    Client(
                        streamable_http_client(f"http://127.0.0.1:{cluster.port}/mcp", http_client=http), mode="legacy"
                    ) as mcp,
                ):

                    async def call(tool: str, **arguments: Any) -> Any:
                        answer = await mcp.call_tool(tool, arguments)
                        assert not answer.is_error, answer.content
                        assert answer.structured_content is not None
                        return answer.structured_content["result"]

                    notes = [f"{number}.{note}" for note in range(NOTES)]
                    assert [await call("add_note", text=note) for note in notes] == list(range(1, NOTES + 1))
                    assert await call("list_notes") == notes
                    return int(await call("which_worker"))

            workers = await asyncio.gather(*map(client, range(CLIENTS)))
            assert set(workers) == set(cluster.worker_pids().values())

    run(main())
