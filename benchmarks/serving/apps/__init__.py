"""The same answer from other servers, each a program that runs in an environment of its own."""
