"""What is told of the host and its sandboxes: counters, usage over time, logs."""
