"""The same echo as a FastAPI user writes it."""

from typing import Any

from fastapi import FastAPI

app = FastAPI()


@app.post("/echo")
async def echo(event: dict[str, Any]) -> dict[str, Any]:
    return event
