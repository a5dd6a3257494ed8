"""The laboratory: tasks, experiments, reports and the command line; it needs the extra `lab`."""
