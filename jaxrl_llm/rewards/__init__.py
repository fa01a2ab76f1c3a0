"""Text to number, on the host: verifiers and a timeout-safe pool."""
