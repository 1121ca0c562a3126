"""`mwuf init`: looks at logs and writes a config for them."""
