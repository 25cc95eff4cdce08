"""What the tests share: the oracle, doubles of devices and backends, tiny models and data sets."""
