"""Adapters for released weights; each loads its published key layout strictly."""
