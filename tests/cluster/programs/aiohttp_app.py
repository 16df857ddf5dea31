"""An application of aiohttp that runs itself."""

import os

from aiohttp import web


async def who(request: web.Request) -> web.Response:
    return web.Response(text=f"{os.getpid()} {request.remote}")


app = web.Application()
app.add_routes([web.get("/", who)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=0)
