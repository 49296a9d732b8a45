"""A server of several engines on a Ray cluster: the application of `dlf.server` in replicas, behind one front."""
