"""Latency of dlf beside its peers: one process for each engine, which take turns of a few tokens."""
