"""Decoders as pure functions; the rest of the house imports only api."""
