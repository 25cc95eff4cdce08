"""What the tests share: the oracle, doubles of devices and engines, tiny models and data sets."""
