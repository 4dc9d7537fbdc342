"""One test, run over each driver it names."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from doubles.process_bench import Bench

Test = Callable[[Bench], Coroutine[Any, Any, None]]


def over(*drivers: str) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """`test(made, ...)` becomes a test of every driver named: process, microvm. `made` is its bench."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        def run(driven: Callable[[Test], None], **arguments: Any) -> None:
            driven(lambda made: test(made, **arguments))

        signature = inspect.signature(test)
        others = [one for one in signature.parameters.values() if one.name != "made"]
        driven = inspect.Parameter("driven", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = signature.replace(parameters=[driven, *others])  # type: ignore[attr-defined]
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        marked: Callable[..., None] = pytest.mark.parametrize("driven", drivers, indirect=True)(run)
        return marked

    return decorate
