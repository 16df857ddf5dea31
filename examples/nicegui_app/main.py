"""A page for each visitor with NiceGUI: Python state in one process, which its WebSocket and its uploads reach."""

import os
from collections import Counter

from fastapi import FastAPI
from nicegui import events, ui

app = FastAPI()
MAX_BYTES = 1_000_000


@ui.page("/")
def words() -> None:
    counted: Counter[str] = Counter()
    files: list[str] = []

    async def add(upload: events.UploadEventArguments) -> None:
        text = (await upload.file.read()).decode(errors="replace")
        counted.update(word.strip(".,;:!?\"'()").lower() for word in text.split())
        files.append(upload.file.name)
        result.refresh()

    @ui.refreshable
    def result() -> None:
        if not files:
            ui.label("Nothing yet: choose a text file.").classes("text-grey-7")
            return
        ui.label(f"{counted.total()} words of {', '.join(files)}")
        rows = [{"word": word, "count": count} for word, count in counted.most_common(10)]
        ui.table(rows=rows, column_defaults={"align": "left"}).classes("w-full").props("flat bordered dense")

    with ui.column().classes("w-full max-w-xl mx-auto q-pa-md gap-4"):
        with ui.row().classes("w-full items-center justify-between"):
            ui.label("Word count").classes("text-h5")
            ui.badge(f"process {os.getpid()}").props("outline")
        chooser = ui.upload(label="Text files", multiple=True, auto_upload=True, max_file_size=MAX_BYTES, on_upload=add)
        chooser.classes("w-full")
        result()


ui.run_with(app, title="Word count", show_welcome_message=False)
