"""Files and texts that people hand in: whatever they hold, they are taken or refused with the place and the way out."""

import io
import string
from pathlib import Path

import pytest
from doubles.archives import archives
from doubles.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from graph.ids import TenantId
from orchestrator.cli.manifest import FIELDS, ManifestError, read_manifest
from tracing import propagation
from tracing.assembly import traces_of
from tracing.formats import FormatError, trainticket
from workers.code.archive import unpack_archive, verify_old_layer
from workers.code.layers import Limits
from workers.code.manifest import check_path
from workers.code.package import PackageError, build_package
from workers.code.requirements import RequirementsError, parse_requirements

TINY = Limits(size=100_000, files=20)

# -- foreglow.toml

keys = st.sampled_from(["functions", "defaults", "a", '"a b"', '""', "handler", "x.y", '"\\u0000"', *FIELDS])
values = st.sampled_from(
    [
        '"app:f"',
        '"a.b:c"',
        '":"',
        '"..:f"',
        f'"{"a." * 2000}b:f"',
        f'"{"a" * 300}:f"',
        '"app\\u0000:f"',
        '"é:f"',
        '"\\ud83d\\ude00:f"',
        '"."',
        '"../.."',
        '"/etc"',
        '"app.py"',
        '"a\\u0000b"',
        f'"{"x/" * 3000}"',
        '"~"',
        '"loop"',
        "1",
        "-1",
        "0x10",
        "1e400",
        "nan",
        "inf",
        "9" * 60,
        "true",
        "1979-05-27",
        "07:32:00",
        "[]",
        "[[]]",
        '["b", 1]',
        "{}",
        '{A="1"}',
        '{"1A"=""}',
        "'''\n'''",
        '""',
    ]
)
lines = st.one_of(
    st.builds("{} = {}".format, keys, values),
    st.builds("[{}]".format, keys),
    st.builds("[functions.{}]".format, keys),
    st.builds("[[functions.{}]]".format, keys),
    st.text(string.printable, max_size=12),
    st.sampled_from(
        ["\ufeff", "a=" + "[" * 3000, "a=" + "{b=" * 3000, ".".join(["a"] * 300) + "=1", "[" + ".".join(["a"] * 300) + "]"]
    ),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "app.py").write_text("def f(e, c): return e\n")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


@examples(200)
@given(
    data=st.lists(lines, max_size=8).map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=60)
)
def test_any_manifest_is_read_or_refused_by_file_and_field(project: Path, data: bytes) -> None:
    (project / "foreglow.toml").write_bytes(data)
    try:
        entries = read_manifest(project)
    except ManifestError as error:
        assert "foreglow.toml" in str(error)
        assert len(str(error)) < 1000
    else:
        assert entries
        assert all(entry.folder.is_relative_to(project) for entry in entries)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[functions.a]\nhandler = "app:f"\npath = "a\\u0000b"', "foreglow.toml: functions.a.path: "),
        ('[functions.a]\nhandler = "app:f"\npath = "loop"', "foreglow.toml: functions.a.path: "),
        ('[functions.a]\nhandler = "app:f"\nrequirements = "a\\u0000b"', "foreglow.toml: functions.a.requirements: "),
        (f'[functions.a]\nhandler = "app:f"\npath = "{"x" * 5000}"', "foreglow.toml: functions.a.path: "),
        (f'[functions.a]\nhandler = "{"a" * 300}:f"', "foreglow.toml: functions.a.handler: "),
        (f'[functions.a]\nhandler = "app:f"\nkind = ["{"k" * 5000}"]', "foreglow.toml: functions.a.kind: "),
        ("a = " + "[" * 3000, "is not TOML: nested too deeply"),
        ("a = " + "9" * 5000, "is not TOML"),
    ],
)
def test_a_manifest_no_file_system_takes_is_refused_too(project: Path, text: str, said: str) -> None:
    (project / "foreglow.toml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(project)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


# -- packages


@examples(150)
@given(data=archives())
def test_any_zip_is_refused_or_becomes_a_layer_that_stays_inside(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    layer = io.BytesIO()
    try:
        package = build_package(io.BytesIO(data), layer, TINY)
    except PackageError as error:
        assert 0 < len(str(error)) < 1000
        return
    assert all(check_path(file.path) for file in package.listing.files)
    assert package.listing.size <= TINY.size
    above = tmp_path_factory.mktemp("layer")
    folder = above / "inside"
    folder.mkdir()
    layer.seek(0)
    assert unpack_archive(layer, folder, TINY).digest == package.digest
    assert verify_old_layer(folder, package.digest, TINY)
    assert list(above.iterdir()) == [folder]
    assert not any(path.is_symlink() for path in folder.rglob("*"))


# -- requirements.txt

wanted = st.sampled_from(
    [
        "numpy",
        "numpy==1.0",
        "a[b,c]>=1,<2",
        "x;python_version>'3'",
        "x @ http://h/x.whl",
        "x@file:///etc/passwd",
        "-r up.txt",
        "--index-url=http://h",
        "-e .",
        "./x.whl",
        "git+https://h/x",
        "numpy --hash=sha256:00",
        "\\",
        "\\\n",
        "#",
        "\x0c-r x",
        "\x85-r x",
        "\u2028-r x",
        "x # -r",
        "a\0b",
        "${HOME}",
        "numpy==" + "1." * 2000,
        "x;" + "(" * 3000,
        "x[" + "a," * 3000 + "]",
        "--hash=sha256:00",
        "\ufeffx",
        "x;extra=='" + "a" * 3000 + "'",
    ]
)


@examples(150)
@given(
    data=st.lists(wanted | st.text(max_size=12), max_size=6)
    .map("\n".join)
    .map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_requirements_are_refused_or_name_only_packages(data: bytes) -> None:
    try:
        accepted = parse_requirements(data)
    except RequirementsError as error:
        assert len(str(error)) < 1000
        return
    for line in accepted:
        name = line.partition(" --hash=")[0]
        assert line.splitlines() == [line]
        assert not line.startswith("-")
        assert "@" not in name.partition(";")[0]
        assert "/" not in name.partition(";")[0]


@pytest.mark.parametrize("line", ["x; " + "(" * 3000, "x; " + "(" * 3000 + "python_version > '3'" + ")" * 3000])
def test_a_marker_nested_without_end_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(RequirementsError, match=r"requirements\.txt line 1.*nested too deeply"):
        parse_requirements(line.encode())


# -- traces

HEADER = "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration\n"
ids = st.sampled_from(["a", "b", "c", "d", "root", "", "zz", "A", "0" * 32, "f" * 33])
moments = st.sampled_from(["0", "1000", "2000", "9" * 20, "9" * 21, "-1", "1e3", "\u0661", ""])
words = st.sampled_from(
    ["a-1-2", "/x", "HTTP GET", "q send", "q process", '"', "\0", "\u202e", "x" * 2000, "a,b", "/", "/a/b", "\u2028"]
)
rows = st.builds(lambda *row: ",".join(row) + "\n", ids, ids, ids, words, words, moments, moments, st.just("1"))


@examples(200)
@given(text=st.lists(rows | st.text(max_size=20), max_size=12).map("".join), named=st.dictionaries(words, words, max_size=3))
def test_any_csv_is_traces_or_names_the_line(text: str, named: dict[str, str]) -> None:
    try:
        spans = trainticket.read(io.StringIO(HEADER + text, newline=""))
    except FormatError as error:
        assert str(error).startswith("line ")
        assert len(str(error)) < 1000
        return
    traces, _ = traces_of(TenantId("default"), spans, named)
    for trace in traces:
        assert trace.duration_s >= 0
        assert all(-1 <= call.caller_index < index for index, call in enumerate(trace.calls))


# -- traceparent and baggage


@examples(150)
@given(
    header=st.text(st.characters(max_codepoint=255), max_size=80)
    | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True)
)
def test_any_traceparent_is_a_context_or_none(header: str) -> None:
    found = propagation.parse(header)
    if found is not None:
        assert propagation.parse(propagation.traceparent(found)) == found
