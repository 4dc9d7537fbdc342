"""Watches calls: OpenTelemetry in and out, traces of any origin into Calls."""
