"""What docs/specification.md promises, measured: `python -m benchmarks TOPIC`. Load goes to the loopback only."""
