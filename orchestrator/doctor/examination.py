"""All probes in turn. One that breaks is a finding like any other and stops none of the others."""

from collections.abc import Iterable, Iterator

from orchestrator.doctor import host, installation, microvm, services
from orchestrator.doctor.findings import Finding, fail
from orchestrator.settings import Settings


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings as they come: the machine, what it stands on, the installation."""
    yield from _kept("host", host.look(settings.state, settings.python))
    yield from _kept("microvm", microvm.look(settings))
    yield from _kept("services", services.look(settings, installation.is_running(settings)))
    yield from _kept("installation", installation.look(settings))


def _kept(part: str, found: Iterable[Finding]) -> Iterator[Finding]:
    try:
        yield from found
    except Exception as error:
        yield fail(
            part, f"a probe broke: {type(error).__name__}: {str(error)[:200]}", "tell us; the probes after it were left out"
        )
