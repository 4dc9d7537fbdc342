"""foreglow.toml: what it means, and that each mistake names its field and the way out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.manifest import FIELDS, ManifestError, read_manifest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("pay", "shop"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.py").write_text("def handle(event, context): return event\n")
    (tmp_path / "app.py").write_text("")
    (tmp_path / "pinned.txt").write_text("numpy==2.3.0\n")
    return tmp_path


def read(project: Path, text: str) -> list:
    (project / "foreglow.toml").write_text(text)
    return read_manifest(project)


def test_defaults_hold_unless_a_function_says_otherwise(project: Path) -> None:
    pay, shop = read(
        project,
        """
        [defaults]
        memory_mb = 256
        environment = {REGION = "eu", LEVEL = "low"}
        [functions.pay]
        handler = "main:handle"
        path = "pay"
        requirements = "pinned.txt"
        timeout_s = 2.5
        environment = {LEVEL = "high"}
        [functions.shop]
        handler = "main:handle"
        path = "shop"
        memory_mb = 512
        calls = ["pay", "not-there-yet"]
        """,
    )
    assert (pay.name, pay.folder, pay.requirements) == ("pay", project / "pay", project / "pinned.txt")
    assert pay.settings == {"memory_mb": 256, "timeout_s": 2.5, "environment": {"REGION": "eu", "LEVEL": "high"}}
    assert shop.settings["memory_mb"] == 512
    assert shop.settings["calls"] == ["pay", "not-there-yet"]
    assert shop.requirements is None


def test_without_a_path_the_code_lies_beside_the_manifest(project: Path) -> None:
    (only,) = read(project, '[functions.one]\nhandler = "app:run"')
    assert only.folder == project


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "functions: none; add a table [functions.NAME] with a handler"),
        ("functions = 3", "functions: must be a table"),
        ("[functions.a]", 'functions.a.handler: missing; write handler = "module:function"'),
        ('[function.a]\nhandler="app:f"', "function: unknown key; did you mean functions?"),
        ('[functions.a]\nhandler="app:f"\nmemroy_mb=1', "functions.a.memroy_mb: unknown key; did you mean memory_mb?"),
        ('[functions.a]\nhandler="app"', "functions.a.handler: must be \"module:function\", is 'app'"),
        ('[functions.a]\nhandler="gone:f"', "functions.a.handler: there is no gone.py in "),
        ('[functions."a b"]\nhandler="app:f"', "functions.a b: a name is 1 to 63 letters"),
        ('[functions.a]\nhandler="app:f"\nkind="batch"', "functions.a.kind: 'batch' is not one of event, http, web"),
        ('[functions.a]\nhandler="app:f"\nmemory_mb=4096', "functions.a.memory_mb: must be a whole number from 1 to 2048 MB"),
        ('[functions.a]\nhandler="app:f"\nmemory_mb=true', "functions.a.memory_mb: must be a whole number"),
        ('[functions.a]\nhandler="app:f"\ntimeout_s=0', "functions.a.timeout_s: must be a number from 0.001 to 900 s"),
        ('[functions.a]\nhandler="app:f"\ntimeout_s=nan', "functions.a.timeout_s: must be a number"),
        ('[functions.a]\nhandler="app:f"\nconcurrency=1.5', "functions.a.concurrency: must be a whole number"),
        ('[functions.a]\nhandler="app:f"\ncalls="b"', "functions.a.calls: must be a list of function names"),
        ('[functions.a]\nhandler="app:f"\ncalls=["b/c"]', "functions.a.calls: 'b/c' is no function name"),
        ('[functions.a]\nhandler="app:f"\nenvironment={A=1}', "functions.a.environment.A: must be a text"),
        ('[functions.a]\nhandler="app:f"\nenvironment={"1A"="x"}', "functions.a.environment.1A: a variable is"),
        ('[functions.a]\nhandler="app:f"\npath="../.."', "functions.a.path: '../..' leads out of "),
        ('[functions.a]\nhandler="app:f"\npath="nowhere"', "functions.a.path: there is no folder "),
        ('[functions.a]\nhandler="app:f"\nrequirements="no.txt"', "functions.a.requirements: there is no file "),
        ('[defaults]\nhandler="app:f"\n[functions.a]', "defaults.handler: unknown key; known are "),
        ('[defaults]\nmemory_mb="big"\n[functions.a]\nhandler="app:f"', "defaults.memory_mb: must be a whole number"),
    ],
)
def test_each_mistake_names_its_field(project: Path, text: str, line: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read(project, text)
    assert str(caught.value).startswith(f"foreglow.toml: {line}")
    assert "\n" not in str(caught.value)


def test_no_file_and_no_toml_are_said(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read .*foreglow\.toml: No such file"):
        read_manifest(tmp_path)
    (tmp_path / "foreglow.toml").write_text("[functions")
    with pytest.raises(ManifestError, match="is not TOML"):
        read_manifest(tmp_path)
    (tmp_path / "foreglow.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="is not UTF-8"):
        read_manifest(tmp_path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(FIELDS)), value=JUNK)
def test_a_field_accepts_or_says_why_not(field: str, value: object) -> None:
    try:
        FIELDS[field](value, "functions.a.x")
        said = "functions.a.x"
    except ManifestError as error:
        said = str(error)
    assert said.startswith("functions.a.x")


def test_build_is_yes_or_no(project: Path) -> None:
    (entry,) = read(project, '[defaults]\nbuild = true\n[functions.a]\nhandler = "app:handle"\n')
    assert entry.settings["build"] is True
    for wrong in ("1", '"yes"'):
        with pytest.raises(ManifestError, match=r"functions\.a\.build: must be true or false"):
            read(project, f'[functions.a]\nhandler = "app:handle"\nbuild = {wrong}\n')


def test_how_many_instances_is_whole_and_bounded(project: Path) -> None:
    told = '[functions.a]\nhandler = "app:handle"\nmin_instances = 1\nmax_instances = 5\ntarget_concurrency = 0.5\n'
    (entry,) = read(project, told)
    assert entry.settings["max_instances"] == 5
    for name in ("min_instances", "max_instances", "provisioned_instances", "reserved_instances"):
        with pytest.raises(ManifestError, match=rf"functions\.a\.{name}: must be a whole number from 0 to 1000"):
            read(project, f'[functions.a]\nhandler = "app:handle"\n{name} = 1001\n')


def test_initial_instances_are_a_small_whole_number(project: Path) -> None:
    (entry,) = read(project, '[defaults]\ninitial_instances = 2\n[functions.a]\nhandler = "app:handle"\n')
    assert entry.settings["initial_instances"] == 2
    for wrong in ("21", "-1", "1.5", "true", '"1"'):
        with pytest.raises(ManifestError, match=r"functions\.a\.initial_instances: must be a whole number from 0 to 20"):
            read(project, f'[functions.a]\nhandler = "app:handle"\ninitial_instances = {wrong}\n')
