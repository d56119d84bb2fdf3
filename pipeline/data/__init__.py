"""What is stored, and where: storage, record schemas, manifests, and the commit of the rows of a shard."""
