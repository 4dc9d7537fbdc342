"""Variables and arguments of any kind: one line that names what is wrong, exit code 1 or 2, never a traceback."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from doubles.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.failure import Failure
from orchestrator.cli.main import app, main
from orchestrator.cli.options import settings_with
from orchestrator.settings import Settings

VARIABLES = sorted(f"FOREGLOW_{name.upper()}" for name in Settings.model_fields if name != "otel_endpoint")
OTHERS = [
    "FOREGLOW_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "FOREGLOW_KEY",
    "FOREGLOW_CONTROL_URL",
    "FOREGLOW_FUNCTIONS_URL",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
]
words = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "65536",
        "8.5",
        "nan",
        "inf",
        "1e400",
        "9" * 5000,
        "true",
        "none",
        "/",
        "~",
        "~nobody-here",
        "..",
        "/dev/null",
        "/proc/self/mem",
        "x" * 300,
        "é",
        "\udcff",
        "http://",
        "http://[",
        "http://x:99999999",
        "unix://",
        "redis://:pw@h:x/1",
        "sqlite:///",
        "sqlite:////dev/null",
        "postgresql://u:pw@h:x/d",
        "mysql://h/d",
        "://",
        "a\nb",
        "a,b,,c",
        "{}",
        "[]",
        "--help",
        "--",
        "-",
        "--state",
        "--json",
        "\x1b[31m",
        "%s",
        "[bold]",
        "$(id)",
    ]
)
COMMANDS = sorted(command.name or "" for command in app.registered_commands)
QUIET = [
    name for name in COMMANDS if name not in ("up", "control", "flow", "gateway", "planner", "node", "doctor", "page", "join")
]
SECRET = "pw"


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FOREGLOW_", "XDG_", "OTEL_"))}
    with mock.patch.dict(os.environ, {**kept, **variables}, clear=True):
        yield


@examples(200)
@given(variables=st.dictionaries(st.sampled_from([*VARIABLES, *OTHERS]), words, max_size=4))
def test_any_variables_make_settings_or_one_line_that_names_one(variables: dict[str, str]) -> None:
    with environment(**variables):
        try:
            settings = settings_with()
        except Failure as failure:
            line = str(failure)
            assert "\n" not in line
            assert len(line) < 500
            assert any(name in line for name in variables), line
            return
        for derived in ("runtime_folder", "node_addresses", "gateway_addresses", "effective_redis_url", "effective_origin_url"):
            getattr(settings, derived)


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command line; another exception than its own ends the test."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape"),
        io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"),
    )
    code = 0
    with mock.patch("sys.argv", ["foreglow", *arguments]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="replace"))  # type: ignore[attr-defined]
    return code, texts[0], texts[1]


@examples(150)
@given(
    command=st.sampled_from([*QUIET, "traces", "nothing"]),
    arguments=st.lists(
        words | st.sampled_from(["--limit", "--data", "--file", "--map", "--format", "--follow", "import", "shop"]), max_size=4
    ),
    variables=st.dictionaries(st.sampled_from(OTHERS), words, max_size=2),
)
def test_any_arguments_end_with_a_line_and_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, command: str, arguments: list[str], variables: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("words")
    (folder / "key").write_text("k")
    (folder / "addresses.json").write_text('{"control": "http://127.0.0.1:9", "functions": "http://127.0.0.1:9", "otlp": ""}')
    with (
        environment(**{"FOREGLOW_STATE": str(folder), **variables}),
        contextlib.chdir(folder),
        mock.patch("sys.stdin", io.StringIO("")),
    ):
        code, _, err = run(command, *arguments)
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert code == 0 or err.strip() or command == "traces"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FOREGLOW_CONTROL_PORT", "eighty"),
        ("FOREGLOW_STATE", "~nobody-here/x"),
        ("FOREGLOW_STATE", "a\0b"),
        ("FOREGLOW_IDLE_S", "nan"),
        ("FOREGLOW_MAX_WAIT_S", "inf"),
        ("FOREGLOW_PREWARM", "sometimes"),
        ("FOREGLOW_LOG_LEVEL", "loud"),
        ("FOREGLOW_DATABASE_URL", "nonsense"),
        ("FOREGLOW_DATABASE_URL", "mysql://u:pw@h/d"),
        ("FOREGLOW_REDIS_URL", "http://:pw@h"),
        ("FOREGLOW_REDIS_URL", "redis://:pw@h:x"),
        ("FOREGLOW_ORIGIN_URL", "nonsense"),
        ("FOREGLOW_HOST", ""),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(variable: str, value: str) -> None:
    if "\0" in value:
        with pytest.raises(Failure) as caught:  # a variable cannot hold it, an option can
            settings_with(state=Path(value))
    else:
        with environment(**{variable: value}), pytest.raises(Failure) as caught:
            settings_with()
    assert variable in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
