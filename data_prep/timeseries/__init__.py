"""Tile folders of pixel time series: regions, catalogues, cubes, imports; ``command`` is the command line."""
