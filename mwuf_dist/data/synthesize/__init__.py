"""`mwuf synthesize`: made-up raw files in the layout of a public data set."""
