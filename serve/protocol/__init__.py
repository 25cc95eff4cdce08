"""The Open Inference Protocol, version 2: what requests and answers say, without a server."""
