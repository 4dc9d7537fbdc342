"""foreglow.toml: which functions a folder holds, checked whole before anything is sent.

[defaults]                      # anything but handler; environment is merged
memory_mb = 256
[functions.pay]
handler = "payment:handle"      # module:function
path = "payment"                # folder of its code, below the manifest's
calls = ["notify"]
vpc = "database"                # the private network it reaches, made by `foreglow vpc create`
egress = "internet"             # none (default): nothing else; internet: by a forward proxy
initial_instances = 1           # started before a new version gets traffic
min_instances = 1               # so many stay; also max_instances, provisioned_instances, reserved_instances, target_concurrency
build = true                    # requirements without a wheel are built from source, in a sandbox
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graph.ids import NAME_PATTERN
from workers.versions import SHAPES_MB, Kind

HANDLER_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")
VPC_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
MAX_TIMEOUT_S = 900
MAX_CONCURRENCY = 1000
MAX_INITIAL_INSTANCES = 20
MAX_INSTANCES = 1000
MAX_HANDLER = 255
MAX_LINE = 400
MANIFEST_FILE = "foreglow.toml"


class ManifestError(ValueError):
    """The message names the file, the field, and what is accepted."""


@dataclass(frozen=True)
class FunctionEntry:
    """One function as the manifest says it. `folder` holds its code; `requirements` is a file, or None."""

    name: str
    handler: str
    folder: Path
    requirements: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # what PUT /v1/functions/{name} takes beside code and handler


def read_manifest(folder: Path, file: str = MANIFEST_FILE) -> list[FunctionEntry]:
    """The functions of `folder`, in the order of the file. Raises ManifestError."""
    path = folder / file
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8") from error
    except ValueError as error:  # TOMLDecodeError, and a number of too many digits
        raise ManifestError(f"{path} is not TOML: {_cut(str(error))}") from error
    except RecursionError as error:
        raise ManifestError(f"{path} is not TOML: nested too deeply") from error
    try:
        return _functions(document, folder)
    except ManifestError as error:
        raise ManifestError(f"{path.name}: {_cut(str(error))}") from None


def _functions(document: Mapping[str, Any], folder: Path) -> list[FunctionEntry]:
    _known(document, ("functions", "defaults"), "")
    defaults = _table(document.get("defaults", {}), "defaults")
    _known(defaults, tuple(name for name in FIELDS if name not in ("handler", "calls")), "defaults")
    for name, value in defaults.items():
        FIELDS[name](value, f"defaults.{name}")
    functions = _table(document.get("functions", {}), "functions")
    if not functions:
        raise ManifestError("functions: none; add a table [functions.NAME] with a handler")
    return [_function(name, _table(given, f"functions.{name}"), defaults, folder) for name, given in functions.items()]


def _function(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path) -> FunctionEntry:
    where = f"functions.{name}"
    if not NAME_PATTERN.match(name):
        raise ManifestError(f"{where}: a name is 1 to 63 letters, digits, - and _, and starts with a letter or digit")
    _known(given, tuple(FIELDS), where)
    if "handler" not in given:
        raise ManifestError(f'{where}.handler: missing; write handler = "module:function"')
    for key, value in given.items():
        FIELDS[key](value, f"{where}.{key}")
    merged = {**defaults, **given}
    environment = {**defaults.get("environment", {}), **given.get("environment", {})}
    if environment:
        merged["environment"] = environment
    source = _below(folder, merged.pop("path", "."), f"{where}.path")
    if not source.is_dir():
        raise ManifestError(f"{where}.path: there is no folder {source}")
    requirements = None
    if "requirements" in merged:
        requirements = _below(folder, merged.pop("requirements"), f"{where}.requirements")
        if not requirements.is_file():
            raise ManifestError(f"{where}.requirements: there is no file {requirements}")
    handler = merged.pop("handler")
    module = source.joinpath(*handler.partition(":")[0].split("."))
    if not (module.with_suffix(".py").is_file() or module.is_dir() or any(module.parent.glob(f"{module.name}.*.so"))):
        raise ManifestError(f"{where}.handler: there is no {module.relative_to(source)}.py in {source}")
    return FunctionEntry(name, handler, source, requirements, merged)


def _known(table: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise ManifestError(f"{where + '.' if where else ''}{key}: unknown key; {hint}")


def _cut(line: str) -> str:
    """What was given is shown, but a line stays one that can be read."""
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: must be a table")
    return value


def _below(folder: Path, value: str, where: str) -> Path:
    root = folder.resolve()
    try:
        path = (root / value).resolve()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero character, links in a circle
        raise ManifestError(
            f"{where}: {value[:80]!r} cannot be used as a path: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not path.is_relative_to(root):
        raise ManifestError(f"{where}: {value!r} leads out of {folder}")
    return path


# -- what each field accepts: (value, where), raising ManifestError


def _text(value: object, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise ManifestError(f"{where}: must be a text")


def _handler(value: object, where: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_HANDLER or not HANDLER_PATTERN.match(value):
        raise ManifestError(f'{where}: must be "module:function", is {value!r}')


def _one_of(*accepted: str) -> Callable[[object, str], None]:
    def check(value: object, where: str) -> None:
        if value not in accepted:
            raise ManifestError(f"{where}: {value!r} is not one of {', '.join(accepted)}")

    return check


def _number(low: float, high: float, unit: str = "", whole: bool = True) -> Callable[[object, str], None]:
    def check(value: object, where: str) -> None:
        accepted = isinstance(value, int) or (isinstance(value, float) and not whole)
        if isinstance(value, bool) or not accepted or not low <= value <= high:  # type: ignore[operator]
            raise ManifestError(f"{where}: must be {'a whole number' if whole else 'a number'} from {low} to {high}{unit}")

    return check


def _vpc(value: object, where: str) -> None:
    if not isinstance(value, str) or not VPC_PATTERN.match(value):
        raise ManifestError(f"{where}: must be the name of a private network, in quotes; `foreglow vpc list` shows them")


def _yes_or_no(value: object, where: str) -> None:
    if not isinstance(value, bool):
        raise ManifestError(f"{where}: must be true or false")


def _environment(value: object, where: str) -> None:
    for key, content in _table(value, where).items():
        if not VARIABLE_PATTERN.match(key):
            raise ManifestError(f"{where}.{key}: a variable is letters, digits and _, and starts with no digit")
        if not isinstance(content, str):
            raise ManifestError(f"{where}.{key}: must be a text")


def _calls(value: object, where: str) -> None:
    if not isinstance(value, list):
        raise ManifestError(f"{where}: must be a list of function names")
    for name in value:
        if not isinstance(name, str) or not NAME_PATTERN.match(name):
            raise ManifestError(f"{where}: {name!r} is no function name")


FIELDS: Mapping[str, Callable[[object, str], None]] = {
    "handler": _handler,
    "kind": _one_of(*Kind),
    "runtime": _text,
    "memory_mb": _number(1, SHAPES_MB[-1], " MB"),
    "timeout_s": _number(0.001, MAX_TIMEOUT_S, " s", whole=False),
    "concurrency": _number(1, MAX_CONCURRENCY),
    "environment": _environment,
    "calls": _calls,
    "egress": _one_of("none", "internet"),
    "vpc": _vpc,
    "initial_instances": _number(0, MAX_INITIAL_INSTANCES),
    "min_instances": _number(0, MAX_INSTANCES),
    "max_instances": _number(0, MAX_INSTANCES),
    "provisioned_instances": _number(0, MAX_INSTANCES),
    "reserved_instances": _number(0, MAX_INSTANCES),
    "target_concurrency": _number(0, MAX_CONCURRENCY, whole=False),
    "build": _yes_or_no,
    "path": _text,
    "requirements": _text,
}
