"""What can run a model, one module an engine. A runtime imports the core, nothing else."""
