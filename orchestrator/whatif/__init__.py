"""What prewarming would have done: recorded runs replayed under a virtual clock, one policy after the other.

The planner in it is the platform's own (`graph`). Nothing here reads a clock, and nothing but `load` and `traces` a file.
"""
