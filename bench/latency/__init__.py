"""Latency of dlf beside its peers: one process for each engine, tokens decoded in interleaved rounds."""
