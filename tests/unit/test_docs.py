"""What the documents name exists."""

import importlib
import re
from pathlib import Path

import pytest

from orchestrator.settings import Settings

ROOT = Path(__file__).parents[2]
PACKAGES = ("graph", "tracing", "workers", "orchestrator")
DOTTED = re.compile(r"`((?:graph|tracing|workers|orchestrator)(?:\.[A-Za-z_]\w*)+)`")
LINK = re.compile(r"\]\(([^)#:]+)\)")
TOLD_AS_A_WHOLE = (
    "tracing/formats",
    "orchestrator/catalog/migrations",
    "orchestrator/cli",
    "orchestrator/control/schemas",
    "orchestrator/page/views",
)
"""Folders of which the house's map names no rooms: one like the other, or a module per subject."""


def named() -> list[str]:
    return sorted(set(DOTTED.findall((ROOT / "docs" / "journeys.md").read_text())))


@pytest.mark.parametrize("name", named())
def test_every_step_of_the_journeys_names_something_that_is_there(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            assert hasattr(found, part) or part in getattr(found, "__annotations__", {}), f"{name}: no {part}"
            found = getattr(found, part)
        return
    pytest.fail(f"{name}: no such module")


@pytest.mark.parametrize(
    "document",
    sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]),
    ids=lambda p: p.name,
)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    broken = [link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()]
    assert broken == []


def test_every_setting_is_in_the_table_of_settings_and_nothing_else_is() -> None:
    table = (ROOT / "docs" / "operating.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE)
    fields = Settings.model_fields.items()
    assert sorted(told) == sorted(str(field.validation_alias or f"FOREGLOW_{name.upper()}") for name, field in fields)


def test_the_journeys_name_enough_to_be_followed() -> None:
    assert len(named()) > 25


def rooms() -> dict[str, set[str]]:
    """The words that the house's map says of each folder."""
    house = (ROOT / "docs" / "design.md").read_text().partition("\n## The rooms")[2].partition("```\n")[2].partition("```")[0]
    told: dict[str, set[str]] = {}
    within: list[tuple[int, str]] = []  # folders, with their indent
    for line in house.splitlines():
        indent, first = len(line) - len(line.lstrip()), line.split()[0]
        while within and within[-1][0] >= indent:
            within.pop()
        if first.endswith("/"):
            within.append((indent, "/".join([*(folder for _, folder in within[-1:]), first[:-1]])))
        told.setdefault(within[-1][1], set()).update(re.findall(r"\w+", line))
    return told


def test_every_module_has_its_place_in_the_map_of_the_house() -> None:
    told = rooms()
    missing = []
    for module in sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        folder = module.parent
        if module.stem == "__init__" or str(folder).startswith(TOLD_AS_A_WHOLE):
            continue
        while str(folder) not in told:
            folder = folder.parent
        if module.stem not in told[str(folder)]:
            missing.append(str(module))
    assert missing == [], "the rooms in docs/design.md name them with their folder"
