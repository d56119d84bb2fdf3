"""What is kept, and where: storage, record schemas, manifests, and the commit of a shard's rows."""
