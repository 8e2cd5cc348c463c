"""Offline evaluation engine. Always import as 'from eval.x import y'."""
