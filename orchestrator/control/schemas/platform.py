"""Events, what runs, health, problems, the page."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class EventAnswer(BaseModel):
    """An event that `module` has not finished. `due` null: it waits for a version's conditions, or is parked."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: str
    subject: str = Field(description="A function's or private network's tenant/name, a key's digest, a tenant or a node.")
    module: str
    tries: int
    reason: str = Field(description="Of the last try that failed.")
    created: float = Field(description="Seconds since the Unix epoch, as all times here.")
    due: float | None = Field(description="When it is sent (again).")
    parked: float | None = Field(description="When it was given up; null while it is open.")


class EventsAnswer(BaseModel):
    events: list[EventAnswer]


class RetriedAnswer(BaseModel):
    retried: list[int] = Field(description="The events that start again from their first try.")


class EventsBacklog(BaseModel):
    open: int = Field(ge=0)
    parked: int = Field(ge=0)


class ZoneCacheStatus(BaseModel):
    name: str
    zone: str
    state: str = Field(description="up, or silent: it says nothing, and its zone's nodes go to the origin.")


class StatusAnswer(BaseModel):
    """Beside these, `planner` and one entry per node: what it says of itself, or `away`."""

    model_config = ConfigDict(extra="allow")

    version: str
    redis: Literal["ok", "away"]
    events: EventsBacklog
    zone_caches: list[ZoneCacheStatus] = Field(description="Those that joined and have not left.")


class PageLinkAnswer(BaseModel):
    path: str = Field(description="To be opened in a browser, on this listener. Works once.")
    expires_s: float = Field(description="Seconds until it stops working.")


class HealthAnswer(BaseModel):
    status: Literal["ok"]


class ProblemAnswer(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Bad Request",
                    "status": 400,
                    "detail": "memory_mb: Input should be less than or equal to 2048",
                    "field": "memory_mb",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None


Document = dict[str, Any]
"""What planner and nodes answer, handed through."""
