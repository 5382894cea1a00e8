"""The backbone: nothing here knows a table or a figure."""
