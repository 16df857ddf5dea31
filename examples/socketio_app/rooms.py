"""How the Socket.IO servers of all workers tell each other what to emit: through a room of wscluster.

It stands where `socketio.AsyncRedisManager` would, and needs no Redis of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from socketio.async_pubsub_manager import AsyncPubSubManager

import wscluster


class RoomManager(AsyncPubSubManager):
    """Set ``client_manager=RoomManager()``, and an emit reaches clients on every worker.

    Attributes:
        live: Set once this worker hears the others.
    """

    name = "wscluster"

    def __init__(self, channel: str = "socketio") -> None:
        super().__init__(channel)
        self.live = asyncio.Event()

    async def _publish(self, data: dict[str, Any]) -> None:
        await wscluster.publish(self.channel, json.dumps(data))

    async def _listen(self) -> AsyncIterator[str]:
        async with wscluster.subscribe(self.channel) as messages:
            self.live.set()
            async for message in messages:
                if isinstance(message, wscluster.Message):
                    yield str(message.data)
        raise asyncio.CancelledError  # the worker drains: the manager ends its listening, and logs no error
