"""Training: a configuration (`config`), one loop (`trainer`), checkpoints, several processes, and what uses a finished run."""
