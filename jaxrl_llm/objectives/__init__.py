"""Credit to scalar: ratios, surrogates, penalties, weighting, policy."""
