"""From images to numbers: one record for each image, metrics of records, and their intervals."""
