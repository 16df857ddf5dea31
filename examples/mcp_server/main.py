"""A notebook for each MCP session, over streamable HTTP.

The session, and with it the notebook, lives in the memory of one process: every request that carries the session's id
has to reach that process.
"""

import os
from collections import OrderedDict
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

MOST_SESSIONS = 1000
MOST_NOTES = 100

mcp = MCPServer("Notebook", instructions="Keeps notes for as long as the session lives.", log_level="WARNING")
notebooks: OrderedDict[str, list[str]] = OrderedDict()


@mcp.tool()
def add_note(text: str, ctx: Context[Any, Any]) -> int:
    """Write a note; returns how many there are."""
    notes = notebook(ctx)
    if len(notes) >= MOST_NOTES:
        raise ToolError(f"the notebook is full: it has {MOST_NOTES} notes")
    notes.append(text)
    return len(notes)


@mcp.tool()
def list_notes(ctx: Context[Any, Any]) -> list[str]:
    """Read all notes of this session."""
    return notebook(ctx)


@mcp.tool()
def which_worker() -> int:
    """Tell the process that keeps this session."""
    return os.getpid()


def notebook(ctx: Context[Any, Any]) -> list[str]:
    session = (ctx.headers or {}).get("mcp-session-id")
    if session is None:
        raise ToolError("a notebook belongs to a session: connect with `initialize`")
    notes = notebooks.setdefault(session, [])
    notebooks.move_to_end(session)
    if len(notebooks) > MOST_SESSIONS:
        notebooks.popitem(last=False)
    return notes


app = mcp.streamable_http_app()
