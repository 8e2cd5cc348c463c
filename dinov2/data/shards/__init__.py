"""Shard sets: plain WebDataset tars with a checked sidecar each and one index per set (docs/data.md)."""

from dinov2.data.shards.cache import Cache
from dinov2.data.shards.reader import DamagedSample, ShardSet
from dinov2.data.shards.verify import Report, verify
from dinov2.data.shards.writer import ShardWriter, write_shards

__all__ = ["Cache", "DamagedSample", "Report", "ShardSet", "ShardWriter", "verify", "write_shards"]
