"""What every part of the benchmark uses: measuring, backends, files, results, page, plots."""
