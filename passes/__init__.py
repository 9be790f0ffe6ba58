"""The rewrites, one folder a family. A pass imports the core and its own family, nothing else."""
