"""What a region's anchor adds to its kernel on a GPU: one file per anchor, `table.py` lists them."""
