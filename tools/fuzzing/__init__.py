"""What `tools/fuzz.py` and the tests hand in: a module for each subject, with the table `KINDS`."""
