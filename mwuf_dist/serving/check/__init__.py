"""`mwuf serve-check`: an export as a server sees it, compared with the run while deltas come."""
