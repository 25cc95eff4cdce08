"""What every part stands on: errors, the spec, files, threads and progress.

Nothing here imports another part.
"""
