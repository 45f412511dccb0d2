"""A load with faults in it: what is done to the deployment and when, and what became of the streams.

`timeline`, `slowness`, `phases`, `texts` and `report` decide and are pure; `hands` does things to the deployment,
`relay` makes the network to it slow, and `conductor` does all that on time.
"""
