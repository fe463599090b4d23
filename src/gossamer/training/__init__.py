"""Training: a configuration (`config`), one loop (`trainer`), checkpoints, several processes, and uses of a run."""
