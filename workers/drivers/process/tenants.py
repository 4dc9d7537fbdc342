"""Which template process serves which tenant: started at need, replaced when used up, retired when not wanted."""

import asyncio
import contextlib
from collections import deque

import structlog

from workers.drivers.limits import Cgroups
from workers.drivers.process.interpreter import Interpreter
from workers.drivers.process.templates import Template, start_template
from workers.drivers.process.tiers import Tier
from workers.drivers.users import host_users
from workers.ports import DriverError

CLONES_PER_TEMPLATE = 500  # then a fresh one: clones of a template share its address layout and its hash seed
STOP_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)


class TenantTemplates:
    """One template a tenant, never shared. All methods run on the event loop of the driver."""

    def __init__(self, interpreter: Interpreter, tier: Tier, cgroups: Cgroups) -> None:
        self._interpreter = interpreter
        self._tier = tier
        self._cgroups = cgroups
        self._loop = asyncio.get_running_loop()
        self._starting: dict[str, asyncio.Task[Template]] = {}
        self._serving: dict[str, Template] = {}
        self._replacing: set[str] = set()
        self._ending: set[Template] = set()
        self._spare: Template | None = None
        self._users, self.unlocked = host_users(*tier.users)
        self._taken: deque[int] = deque()
        self._stopped = False
        self._background: set[asyncio.Future[None]] = set()

    async def get(self, tenant: str) -> Template:
        """The tenant's template, started if need be. A used-up one is replaced behind its back. Raises DriverError."""
        template = self._serving.get(tenant)
        if template is None or template.gone:
            template = await self._start(tenant)
        if template.made >= CLONES_PER_TEMPLATE and tenant not in self._replacing:
            self._replacing.add(tenant)
            self._keep(self._loop.create_task(self._replace(tenant, template)))
        return template

    async def _start(self, tenant: str) -> Template:
        if not self._tier.sandboxed and (self._serving.keys() | self._starting.keys()) - {tenant}:
            raise DriverError("without isolation a node serves one tenant only")
        task = self._starting.get(tenant)
        if task is None:
            task = self._starting[tenant] = self._loop.create_task(self._make_for(tenant))
            task.add_done_callback(lambda _: self._starting.pop(tenant, None))
        return await asyncio.shield(task)

    async def _make_for(self, tenant: str) -> Template:
        template = self._serving[tenant] = await self._make()
        return template

    async def _replace(self, tenant: str, old: Template) -> None:
        try:
            fresh = await self._make()
        except DriverError as error:
            log.warning("template.not_replaced", tenant=tenant, error=str(error))
            old.made = 0  # it goes on; tried again after as many clones
            return
        finally:
            self._replacing.discard(tenant)
        if self._serving.get(tenant) is old:
            self._serving[tenant] = fresh
            self._end_later(old)
        else:
            self._end_later(fresh)

    async def _make(self) -> Template:
        if self._stopped:
            raise DriverError("the driver has stopped")
        if self._spare is not None and not self._spare.gone:
            template, self._spare = self._spare, None
            return template
        user = self._user()
        template = await start_template(self._interpreter, user, self._tier.sandboxed, self._gone)
        try:
            await self._loop.run_in_executor(None, self._cgroups.adopt, template.pid, user)
        except OSError as error:
            template.end()
            raise DriverError(f"control group of the template: {error}") from error
        return template

    def _user(self) -> int:
        """Of the next template; 0: the node's own. Never given back while there are others: what it made may live on as it."""
        if not self._tier.users[1]:
            return 0
        try:
            user = self._users.take()
        except DriverError:
            if not self._taken:
                raise
            user = self._taken.popleft()
        self._taken.append(user)
        return user

    def _gone(self, template: Template) -> None:
        self._ending.discard(template)
        self._keep(self._loop.run_in_executor(None, self._cgroups.abandon, template.pid, template.uid))

    def _end_later(self, template: Template) -> None:
        if not template.ended:
            self._ending.add(template)
            template.retire()

    def hand_over(self, tenant: str) -> None:
        """The template of `tenant` (a probe, that ran nothing of anybody's) becomes the one of the next new tenant."""
        self._spare = self._serving.pop(tenant, None)

    async def retire(self, tenant: str) -> None:
        """Its template goes once its clones have."""
        task = self._starting.get(tenant)
        if task is not None:
            with contextlib.suppress(DriverError):
                await asyncio.shield(task)
        template = self._serving.pop(tenant, None)
        if template is not None:
            self._end_later(template)

    async def stop(self) -> None:
        """Ends every template, and with each its clones; none is made any more."""
        self._stopped = True
        await self._settle()
        for tenant in [*self._starting, *self._serving]:
            await self.retire(tenant)
        if self._spare is not None:
            self._end_later(self._spare)
            self._spare = None
        for template in list(self._ending):
            template.end()
        await asyncio.gather(*(template.wait() for template in list(self._ending)), return_exceptions=True)
        await self._settle()
        self._users.close()

    async def _settle(self) -> None:
        if self._background:
            await asyncio.wait(self._background, timeout=STOP_TIMEOUT_S)

    def _keep(self, future: asyncio.Future[None]) -> None:
        self._background.add(future)
        future.add_done_callback(self._background.discard)
