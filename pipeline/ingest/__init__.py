"""From a folder of images to shards."""
