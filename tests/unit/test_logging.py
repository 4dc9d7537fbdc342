"""Log lines: JSON with the process and what belongs to a run; secrets do not get through, however they are said."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from orchestrator.logging import configure, scrub

TOKEN = "fg_" + "Abc-123_" * 5


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    root, level = logging.getLogger(), logging.getLogger().level
    before = list(root.handlers)
    yield
    root.handlers, root.level = before, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def written(capfd: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


@pytest.mark.usefixtures("lines")
def test_a_line_is_an_object_with_its_process_and_fields(capfd: pytest.CaptureFixture[str]) -> None:
    configure("gateway")
    structlog.get_logger("here").warning("invocation.failed", trace_id="ab", invocation_id="cd")
    logging.getLogger("there").warning("of a %s", "library")
    structlog.get_logger("here").debug("too quiet")
    ours, theirs = written(capfd)
    assert {ours["process"], ours["level"], ours["event"]} == {"gateway", "warning", "invocation.failed"}
    assert (ours["trace_id"], ours["invocation_id"]) == ("ab", "cd")
    assert (theirs["process"], theirs["event"]) == ("gateway", "of a library")


@pytest.mark.usefixtures("lines")
def test_the_level_is_a_setting(capfd: pytest.CaptureFixture[str]) -> None:
    configure("gateway", "error")
    structlog.get_logger("here").warning("unheard")
    assert written(capfd) == []
    with pytest.raises(ValueError, match="log_level"):
        configure("gateway", "loud")


@pytest.mark.usefixtures("lines")
def test_secrets_are_masked_by_name_and_by_look_in_tracebacks_too(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure("control")
    log = structlog.get_logger("here")
    log.warning("a", api_key="hunter2", password="hunter2", url="redis://user:hunter2@host/0")
    log.warning(f"cannot reach postgresql+psycopg://:hunter2@host with Bearer hunter2 or {TOKEN}")
    try:
        raise OSError("redis://:hunter2@host")
    except OSError:
        log.exception("b")
        logging.getLogger("there").exception("c")
    text = json.dumps(written(capfd))
    assert "hunter2" not in text
    assert TOKEN not in text
    assert "Traceback" in text


def test_what_is_no_secret_stays() -> None:
    line = "GET http://host:8701/v1/functions?a=b@c user@example.org redis://host:6379/0 unix:///run/x.sock"
    assert scrub(line) == line
