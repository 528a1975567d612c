"""`khub engine bench` and `compare`: one workload, several engines, each in a process of its own.

A contestant is a program (`peers/`) that reads a plan, generates, and writes down when each token came; all that
is said about it (`metrics.py`) is computed from those times, the same way for each. Peers run in whatever
interpreter has them.
"""
