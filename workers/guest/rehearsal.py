"""The harmless function a guest rehearses with before it is anybody's."""

from typing import Any


def handler(event: Any, context: Any) -> Any:
    print(event)
    return event
