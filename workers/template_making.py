"""One attempt to make a version's function template: its code, its turn among inits, its init; and what came of it."""

from collections.abc import Callable

import msgspec
import structlog

from workers.function_templates import Candidate, init_limit_s
from workers.init_order import InitOrder
from workers.ports import (
    CodeTier,
    CodeUnavailable,
    Driver,
    DriverError,
    FunctionTemplate,
    InitFailed,
    Specialisation,
    TemplateRefused,
)
from workers.sealing import Sealer, SealError
from workers.versions import VersionSpec

log = structlog.get_logger(__name__)


class Attempt(msgspec.Struct, frozen=True):
    """A template, or why there is none and of which kind that is: `driver` for what may go better the next time, `init` or the
    driver's own word for what would fail again."""

    template: FunctionTemplate | None = None
    kind: str = ""
    why: str = ""

    @property
    def for_good(self) -> bool:
        return self.kind != "driver"


class TemplateMaker:
    """Holds nothing: memory, and the pin of the code, are the caller's."""

    def __init__(self, driver: Driver, code: CodeTier, sealer: Sealer, order: InitOrder) -> None:
        self._driver = driver
        self._code = code
        self._sealer = sealer
        self._order = order

    async def make(self, one: Candidate, spec: VersionSpec, alone: Callable[[], bool]) -> Attempt:
        """Whatever goes wrong is in the attempt. `alone`, asked when the init begins: no other template is in the making."""
        try:
            return Attempt(await self._init(one, spec, alone))
        except TemplateRefused as error:
            return Attempt(None, error.kind, str(error))
        except InitFailed as error:
            return Attempt(None, "init", f"its import failed there: {error}")
        except TimeoutError:
            return Attempt(None, "init", f"its import took over {init_limit_s(one):.0f} s")
        except (DriverError, CodeUnavailable, SealError, OSError) as error:
            return Attempt(None, "driver", str(error) or type(error).__name__)
        except Exception as error:  # else no other version would get one any more
            log.exception("function_template.making_broke", version=one.version)
            return Attempt(None, "driver", f"{type(error).__name__}: {error}")

    async def _init(self, one: Candidate, spec: VersionSpec, alone: Callable[[], bool]) -> FunctionTemplate:
        layers = (await self._code.fetch(spec)).folders
        names = tuple(self._sealer.open(spec.environment))
        work = Specialisation(spec.version, spec.handler, spec.kind, spec.concurrency, spec.memory_mb, layers, {}, withheld=names)
        await self._order.turn(one, float("inf"))
        self._order.began(one, _unread if alone() else _waiting)
        try:
            return await self._driver.template(spec.tenant, work, init_limit_s(one))
        finally:
            self._order.ended(one)


def _unread() -> tuple[float, bool] | None:
    return None


def _waiting() -> tuple[float, bool] | None:
    """Of a second one: it may burn too, and must not take the last core from the inits of instances made ahead."""
    return 0.0, False
