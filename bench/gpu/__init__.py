"""What `bench/gpu_acceptance.sh` measures on a GPU."""
