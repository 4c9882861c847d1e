"""Worlds of reinforcement-learning agents whose difficulty is a point of a box (the extra `rl`)."""
