import sys

import mine

import undiffuse as ud

model = mine.model().denoiser
table = ud.solvers.tuning.read(sys.argv[1], model.process)
x = ud.sample(model, (16, 1, 8, 8), table)
print(table.nfe, "calls; standard deviation", float(x.std()))
