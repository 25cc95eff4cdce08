"""What every part stands on: errors, the spec, files, threads and progress. Imports nothing of ours."""
