"""Spectral patch embedding, vision transformers, heads and released encoders."""
