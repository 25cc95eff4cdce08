"""What a map is worth with many classes: sources of CAM weights against each other.

    python -m benchmarks.map_quality --caltech CALTECH --pets PETS --imagenet IMAGENET_SAMPLES

Features are computed once for each backbone (`features.py`) and shared by all runs; a run trains
heads on them (`heads.py`), makes their maps (`sources.py`) and measures these (`measure.py`).
`study.py` lists the runs. What a run found is a file in `--out`, so the study goes on where it was
interrupted, and `report.py` makes docs/results.md's tables of whatever is there.
"""
