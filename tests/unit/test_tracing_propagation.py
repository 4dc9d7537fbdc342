"""traceparent, as strict as the standard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracing.propagation import TraceContext, parse, traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def hex_ids(digits):
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


@given(hex_ids(32), hex_ids(16), st.booleans())
def test_what_is_written_is_read_back(trace_id, span_id, sampled):
    context = TraceContext(trace_id, span_id, sampled)
    assert parse(traceparent(context)) == context


@given(hex_ids(32), hex_ids(16), st.integers(0, 255))
def test_of_the_flags_only_the_lowest_is_known(trace_id, span_id, flags):
    assert parse(f"00-{trace_id}-{span_id}-{flags:02x}") == TraceContext(trace_id, span_id, flags % 2 == 1)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0G",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 1000}",
    ],
)
def test_what_the_standard_calls_invalid_is_no_context(header):
    assert parse(header) is None


@pytest.mark.parametrize(
    "header", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", f" 00-{TRACE}-{SPAN}-01\t"]
)
def test_later_versions_and_surrounding_space_are_taken(header):
    assert parse(header) == TraceContext(TRACE, SPAN, True)


@given(st.text(max_size=80))
def test_any_text_is_a_context_or_none(header):
    context = parse(header)
    if context is not None:
        assert parse(traceparent(context)) == context
