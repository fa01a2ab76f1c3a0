"""Text to number, on the host: verifiers and a timeout-safe pool.

Nothing here imports jax, so that the processes that score start fast.
"""
