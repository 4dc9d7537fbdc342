"""requirements.txt may name packages and versions, and nothing that reaches elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.code.requirements import RequirementsError, parse_requirements, requirements_digest


def test_accepts_names_versions_extras_markers_and_hashes() -> None:
    content = b"""\xef\xbb\xbf# comment
requests>=2.31,<3   # trailing
uvicorn[standard] ; python_version >= "3.11"

numpy == 2.2.1 \\
    --hash=sha256:aa --hash=sha512:bb
"""
    assert parse_requirements(content) == (
        "requests<3,>=2.31",
        'uvicorn[standard]; python_version >= "3.11"',
        "numpy==2.2.1 --hash=sha256:aa --hash=sha512:bb",
    )


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt", "--index-url http://10.0.0.1/", "-e .", "--extra-index-url=http://x/", "-c /etc/passwd",
        "--find-links /etc", "six @ file:///etc/passwd", "six @ http://169.254.169.254/x.whl", "http://x/y.whl",
        "six@git+https://example.org/x", "./local.whl", "/etc/passwd", "../up", "git+ssh://x/y", "six --config-settings=x",
        "six ; rm -rf /", "a b c", "\x00", "$HOME", "six==1.0 --hash=sha256:zz", "six --global-option=x",
    ],
)  # fmt: skip
def test_refuses_what_could_reach_elsewhere_and_names_the_line(line: str) -> None:
    with pytest.raises(RequirementsError, match="line 2"):
        parse_requirements(f"six\n{line}\n".encode())


def test_refuses_what_is_not_text_or_too_much() -> None:
    with pytest.raises(RequirementsError, match="UTF-8"):
        parse_requirements(b"\xff\xfe")
    with pytest.raises(RequirementsError, match="limit"):
        parse_requirements(b"six\n" * 501)


def test_comments_and_spacing_do_not_make_another_digest() -> None:
    first = parse_requirements(b"six==1.16.0\nrequests\n")
    second = parse_requirements(b"# why\n six == 1.16.0 # because\n\n\nrequests\n")
    assert requirements_digest(first) == requirements_digest(second)
    assert requirements_digest(first) != requirements_digest(first[::-1])


@given(st.text(max_size=80))
def test_any_text_is_refused_or_gives_no_option_and_no_address(text: str) -> None:
    try:
        accepted = parse_requirements(text.encode("utf-8", "surrogatepass"))
    except RequirementsError:
        return
    for line in accepted:
        assert not line.startswith("-")
        assert "://" not in line
        assert " @ " not in line
