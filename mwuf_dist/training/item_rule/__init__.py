"""A new item's row from the item's own clicks: the rule of the daily job and of the stream protocol."""
