"""What a region's anchor adds to its kernel on a CPU: one file per anchor, `table.py` lists them."""
