"""Drivers: ways to make templates and clones, and to talk to one instance."""
