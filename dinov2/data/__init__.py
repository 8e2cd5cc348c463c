"""Samples, shards, the stream and views."""
