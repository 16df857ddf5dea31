"""An echo server of picows on uvloop."""

import asyncio
import os
from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, f"{os.getpid()} {frame.get_payload_as_utf8_text()}".encode())


async def main() -> None:
    def make(_request: Any) -> Echo:
        return Echo()

    server = await ws_create_server(make, "127.0.0.1", 0)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main())
