"""What an operator asks of a process: does it turn, is it ready, what has it counted. Knows no process's insides."""
