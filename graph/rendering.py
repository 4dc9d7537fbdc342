"""Edges as text: JSON, Graphviz dot, Mermaid. Names of observed functions are free text and are escaped."""

import json
import re
from collections.abc import Collection, Iterable, Sequence

import msgspec

from graph.calls import CallEdge
from graph.ids import FunctionId, name_of

FORMATS = ("json", "dot", "mermaid")


def render(edges: Sequence[CallEdge], text_format: str, *, deployed: Collection[FunctionId] | None = None) -> str:
    """`text_format` is json, dot or mermaid; raises ValueError for another. `deployed`: what exists, None when unknown."""
    if text_format not in FORMATS:
        raise ValueError(f"format: {text_format!r} is not one of {', '.join(FORMATS)}")
    return {"json": to_json, "dot": to_dot, "mermaid": to_mermaid}[text_format](edges, deployed)


def to_json(edges: Sequence[CallEdge], deployed: Collection[FunctionId] | None = None) -> str:
    """{functions: [{name, deployed?}], edges: [{caller, callee, probability, fan_out, weight, traces, source, offset_p50_s}]}."""
    functions = [
        {"name": name_of(function)} | ({} if deployed is None else {"deployed": function in deployed})
        for function in _functions(edges, deployed or ())
    ]
    listed = [msgspec.to_builtins(edge) | {"caller": name_of(edge.caller), "callee": name_of(edge.callee)} for edge in edges]
    return json.dumps({"functions": functions, "edges": listed}, ensure_ascii=False)


def to_dot(edges: Sequence[CallEdge], deployed: Collection[FunctionId] | None = None) -> str:
    lines = ["digraph calls {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    for function in _functions(edges, deployed or ()):
        absent = ', style="rounded,dashed"' if deployed is not None and function not in deployed else ""
        lines.append(f"  {_quoted(name_of(function))} [label={_quoted(name_of(function))}{absent}];")
    for edge in edges:
        style = ", style=dashed" if edge.source == "declared" else ""
        ends = f"{_quoted(name_of(edge.caller))} -> {_quoted(name_of(edge.callee))}"
        lines.append(f"  {ends} [label={_quoted(_label(edge))}{style}];")
    return "\n".join([*lines, "}", ""])


def to_mermaid(edges: Sequence[CallEdge], deployed: Collection[FunctionId] | None = None) -> str:
    lines = ["flowchart LR"]
    numbers = {function: number for number, function in enumerate(_functions(edges, deployed or ()), start=1)}
    for function, number in numbers.items():
        lines.append(f'  f{number}["{_entities(name_of(function))}"]')
    for edge in edges:
        arrow = "-.->" if edge.source == "declared" else "-->"
        lines.append(f'  f{numbers[edge.caller]} {arrow}|"{_entities(_label(edge))}"| f{numbers[edge.callee]}')
    absent = [f"f{number}" for function, number in numbers.items() if deployed is not None and function not in deployed]
    if absent:
        lines += ["  classDef absent stroke-dasharray: 4 4", f"  class {','.join(absent)} absent"]
    return "\n".join([*lines, ""])


def _functions(edges: Iterable[CallEdge], more: Iterable[FunctionId]) -> list[FunctionId]:
    named = {function for edge in edges for function in (edge.caller, edge.callee)}
    return sorted(named | set(more))


def _label(edge: CallEdge) -> str:
    fan_out = f" ×{edge.fan_out:.1f}" if edge.fan_out >= 1.05 else ""
    return f"{edge.probability * 100:.0f} %{fan_out}"


def _quoted(text: str) -> str:
    """A dot string. A backslash starts an escape there, a raw line break or quote ends the string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{_printable(escaped)}"'


def _entities(text: str) -> str:
    """A Mermaid label: everything that could end it, be markup or be markdown becomes a numeric entity."""
    return re.sub(r"[^A-Za-z0-9 %×._/-]", lambda match: f"#{ord(match.group())};", text)


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "�" for each in text)
