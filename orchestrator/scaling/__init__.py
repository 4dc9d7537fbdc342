"""How many instances of each version there should be. Pure: no I/O, no clock; the planner process and the simulation run it."""
