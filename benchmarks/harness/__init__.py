"""What every part of the benchmark uses: measuring, engines, files, results, page, plots."""
