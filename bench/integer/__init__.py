"""What integer inference is worth: accuracy, latency and bytes of real files, side by side."""
