"""The only place that knows how a run lies on disk: immutable HDF5 shards and an append-only manifest."""

from orderscope.store.adding import add_if_possible
from orderscope.store.manifest import SCHEMA, ShardInfo
from orderscope.store.pack import pack
from orderscope.store.run import RunStore

__all__ = ["SCHEMA", "RunStore", "ShardInfo", "add_if_possible", "pack"]
