"""What was measured of each image: records, their store, metrics and intervals."""
