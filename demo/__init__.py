"""The demo: real photographs through a real network, on one self-contained page."""
