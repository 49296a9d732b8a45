"""Does untrusted work in a process that may hang, crash or run out of memory without harm.

`Helper` is dlf's side. ``serve.py`` is the process: it is run by its path and imports neither dlf nor torch. The other
modules are the rooms that it can open, one for each kind of work.
"""
