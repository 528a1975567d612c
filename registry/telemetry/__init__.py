"""What operators see of a server: health, metrics, logs, traces, and how it stops."""
