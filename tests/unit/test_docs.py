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
