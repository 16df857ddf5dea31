"""Jobs on Starlette: start one by HTTP, ask for it by HTTP, watch it over a WebSocket.

A job lives in the memory of the worker that started it. Nothing is shared between the workers, and nothing has to be:
all that one client sends reaches one worker.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

STEPS = 20
STEP_SECONDS = 0.05
MOST_JOBS = 1000


class Job:
    """Work that takes a second."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.done = 0
        self.progress = asyncio.Condition()
        self.task = asyncio.create_task(self.work())

    async def work(self) -> None:
        while self.done < STEPS:
            await asyncio.sleep(STEP_SECONDS)
            async with self.progress:
                self.done += 1
                self.progress.notify_all()

    def report(self) -> dict[str, object]:
        return {"job": self.id, "done": self.done, "of": STEPS, "worker": os.getpid()}


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, dict[str, Job]]]:
    """Once in each worker, around its life: what is yielded is the state of every request."""
    jobs: dict[str, Job] = {}
    yield {"jobs": jobs}
    for job in jobs.values():
        job.task.cancel()


async def start(request: Request) -> JSONResponse:
    jobs: dict[str, Job] = request.state.jobs
    if len(jobs) >= MOST_JOBS:
        del jobs[next(iter(jobs))]
    job = Job()
    jobs[job.id] = job
    return JSONResponse(job.report(), status_code=201)


async def look(request: Request) -> JSONResponse:
    job: Job | None = request.state.jobs.get(request.path_params["job"])
    if job is None:
        return JSONResponse({"error": "this worker has no such job", "worker": os.getpid()}, status_code=404)
    return JSONResponse(job.report())


async def watch(ws: WebSocket) -> None:
    await ws.accept()
    job: Job | None = ws.state.jobs.get(ws.path_params["job"])
    if job is None:
        await ws.close(4404, "this worker has no such job")
        return
    with suppress(WebSocketDisconnect):
        await ws.send_json(job.report())
        while job.done < STEPS:
            async with job.progress:
                await job.progress.wait()
            await ws.send_json(job.report())
        await ws.close()


app = Starlette(
    routes=[
        Route("/jobs", start, methods=["POST"]),
        Route("/jobs/{job}", look),
        WebSocketRoute("/jobs/{job}/progress", watch),
    ],
    lifespan=lifespan,
)
