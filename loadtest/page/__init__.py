"""A run as one HTML file that needs nothing else: no network, no script, charts as inline SVG. Pure.

`scale` and `svg` draw, `charts` decides what is drawn of a run, `tables` and `page` put it together.
"""
