"""Replays on a virtual clock: recorded load, made packages, and what tier 1 would have held of them. Pure but for reading
files."""
