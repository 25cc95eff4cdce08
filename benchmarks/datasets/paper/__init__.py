"""The paper's tables on any data set: training and exporting what a table needs, and its layout."""
