"""From a command line to jobs of a SLURM cluster (docs/cluster.md)."""
