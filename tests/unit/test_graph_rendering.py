"""Edges as text. Names come from anywhere and must never become syntax."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.calls import CallEdge
from graph.ids import function_id
from graph.rendering import render


def edge(caller, callee, source="learned", probability=0.5, fan_out=1.0):
    return CallEdge(function_id("t", caller), function_id("t", callee), probability, fan_out, 10.0, 10, source, 0.1)


def test_json_holds_every_field_with_plain_names():
    told = json.loads(render([edge("shop", "svc/GET /pay")], "json", deployed={function_id("t", "shop")}))
    assert told["functions"] == [{"name": "shop", "deployed": True}, {"name": "svc/GET /pay", "deployed": False}]
    assert told["edges"][0] == {
        "caller": "shop",
        "callee": "svc/GET /pay",
        "probability": 0.5,
        "fan_out": 1.0,
        "weight": 10.0,
        "traces": 10,
        "source": "learned",
        "offset_p50_s": 0.1,
    }


def test_dot_and_mermaid_show_probability_fan_out_and_what_is_only_declared():
    edges = [edge("a", "b", probability=0.96, fan_out=2.5), edge("a", "c", source="declared", probability=1.0)]
    deployed = {function_id("t", "a"), function_id("t", "alone")}
    dot = render(edges, "dot", deployed=deployed)
    assert '"a" -> "b" [label="96 % ×2.5"];' in dot
    assert '"a" -> "c" [label="100 %", style=dashed];' in dot
    assert '"alone" [label="alone"];' in dot
    assert '"c" [label="c", style="rounded,dashed"];' in dot
    mermaid = render(edges, "mermaid", deployed=deployed)
    assert 'f1 -->|"96 % ×2.5"| f3' in mermaid
    assert 'f1 -.->|"100 %"| f4' in mermaid
    assert "class f3,f4 absent" in mermaid


def test_an_unknown_format_is_refused_by_name():
    with pytest.raises(ValueError, match="format: 'svg' is not one of json, dot, mermaid"):
        render([], "svg")


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_no_name_breaks_out_of_its_place(caller, callee):
    edges = [edge(caller, callee)]
    assert json.loads(render(edges, "json"))["edges"][0]["caller"] == caller
    dot = render(edges, "dot")
    line = r'  "(?:[^"\\\n]|\\.)*"'
    nodes = 1 if caller == callee else 2
    assert len(re.findall(rf"^{line} \[label={line[2:]}\];$", dot, re.M)) == nodes
    assert len(re.findall(rf"^{line} -> {line[2:]} \[label=\"50 %\"\];$", dot, re.M)) == 1
    assert len(dot.splitlines()) == 5 + nodes
    mermaid = render(edges, "mermaid").split("\n")
    assert len(mermaid) == 3 + nodes
    for text in mermaid[1 : 1 + nodes]:
        assert re.fullmatch(r'  f\d\["[^"<>`\[\]{}|()]*"\]', text)
