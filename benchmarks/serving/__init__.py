"""Load on `sigcam serve`, and on other servers with the same model and answer."""
