"""A load with faults in it: what is done to the deployment and when, and what became of the streams.

`timeline`, `phases`, `texts` and `report` decide and are pure; `hands` does things to the deployment and `conductor`
does them on time.
"""
