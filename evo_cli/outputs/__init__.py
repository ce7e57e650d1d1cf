"""What commands write: tables that survive being killed, their formats, metadata and shards."""
