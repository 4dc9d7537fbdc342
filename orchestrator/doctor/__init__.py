"""Looks at a machine and an installation and says what is wrong and what to do. Changes nothing."""
