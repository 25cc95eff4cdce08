"""What a deployed map is worth: metrics on arrays, readers of data sets, and the evaluation."""
