"""Batches: a file of prompts in, a folder of results out, resumable and the same on any number of workers."""

from dlf.batch.cluster import Cluster
from dlf.batch.run import BatchReport, run

__all__ = ["BatchReport", "Cluster", "run"]
