"""Decides and routes: control API, control-flow modules, gateway, planner, CLI."""

__version__ = "0.1.0"
