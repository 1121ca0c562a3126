"""What a run is worth: exact metrics, significance over seeds, tables, plots and the report page.

This room knows NumPy arrays and result dictionaries, never models or tensors.
"""
