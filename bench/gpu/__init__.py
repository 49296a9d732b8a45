"""Measurements of `bench/gpu_acceptance.sh` on a GPU."""
