"""Reward to credit: group, segments, token, baselines."""
