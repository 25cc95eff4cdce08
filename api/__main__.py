"""`python -m sigcam`: the command line, for torchrun and where no script is installed."""

from sigcam.cli import main

main(prog_name="sigcam")
