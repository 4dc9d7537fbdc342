"""The original of a function template, whatever its sandbox is made of: the module is imported in it, with no value of the
environment there."""

from typing import Protocol

import msgspec

from workers.ports import InitFailed, InitReport, Specialisation, TemplateRefused


class Specialises(Protocol):
    async def specialise(self, work: Specialisation, timeout_s: float) -> InitReport: ...


async def import_once(original: Specialises, work: Specialisation, timeout_s: float) -> InitReport:
    """Raises TemplateRefused when the module asks for what is withheld, and what `specialise` raises."""
    try:
        report = await original.specialise(msgspec.structs.replace(work, environment={}), timeout_s)
    except InitFailed as error:  # most likely because the value was not there
        if not error.asked:
            raise
        raise _wants_environment(error.asked) from error
    if report.asked:
        raise _wants_environment(report.asked)
    return report


def _wants_environment(asked: tuple[str, ...]) -> TemplateRefused:
    return TemplateRefused(
        "environment",
        f"while it is imported it asks for environment values ({', '.join(asked)}), which only an instance has: "
        "read them in the handler, or in a function given to foreglow.on_restore",
    )
