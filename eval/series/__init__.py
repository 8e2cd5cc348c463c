"""Embedding maps of pixel time series: models, tiles, the queue over devices, mosaics."""
