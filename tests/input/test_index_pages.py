"""Pages of package indexes, whoever wrote them: read or refused, and what is read comes out as it went in."""

import json
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.flow.index_pages import File, PageError, read_page, write_html, write_json

BASE = "https://index.example/simple/thing/"
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
KEYS = ("files", "filename", "url", "hashes", "x")
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)
files = st.lists(
    st.builds(
        File,
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.!+-]{0,40}", fullmatch=True),
        st.from_regex(r"https://files\.example/[a-z0-9/]{0,20}/[a-z0-9.]{1,20}\.whl", fullmatch=True),
        st.fixed_dictionaries({"sha256": digests}),
        st.fixed_dictionaries({}, optional={"requires-python": st.sampled_from([">=3.8", "<4,>=3", "~=3.11"])}),
    ),
    max_size=5,
)


@given(st.binary(max_size=400), st.sampled_from(["text/html", "application/json", "", "application/vnd.pypi.simple.v1+json"]))
def test_any_bytes_are_a_page_or_refused(content: bytes, kind: str) -> None:
    try:
        found = read_page(content, kind, BASE)
    except PageError as error:
        assert len(str(error)) <= 200
        return
    assert all(one.name and one.url for one in found)


@given(documents)
def test_any_document_is_a_page_or_refused(document: object) -> None:
    try:
        read_page(json.dumps(document).encode(), "application/json", BASE)
    except PageError:
        return


@given(files)
def test_a_page_that_is_written_is_read_again(listed: list[File]) -> None:
    assert read_page(write_json("thing", listed), "application/vnd.pypi.simple.v1+json", BASE) == listed
    assert [(one.url, one.hashes, one.facts) for one in read_page(write_html(listed), "text/html", BASE)] == [
        (one.url, one.hashes, one.facts) for one in listed
    ]


@pytest.mark.parametrize(
    ("href", "host"),
    [("a.whl", "index.example"), ("../../a.whl", "index.example"), ("//evil.example/a.whl", "evil.example"),
     ("https://u:p@evil.example/a.whl", "evil.example"), ("http:\\\\evil.example/a.whl", None), ("javascript:a.whl", None)],
)  # fmt: skip
def test_addresses_are_whole(href: str, host: str | None) -> None:
    found = read_page(f'<a href="{href}">x</a>'.encode(), "text/html", BASE)
    assert [urlsplit(one.url).hostname for one in found] in ([host], [])
