"""Packages of known sizes, brought to the point where a function may start, tier by tier."""
