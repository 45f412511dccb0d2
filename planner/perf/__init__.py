"""How fast a deployment is: `estimate` one, or a table of them; `calibrate` on measured points.

model, format, layout -> `work` ┐
device -> `chip`                ├-> `roofline`: one step -> `serving`, `pools`: a load in equilibrium -> `spread`
`calibration` -> `coefficients` ┘
"""
