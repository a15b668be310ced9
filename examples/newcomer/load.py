import sys

import mine

import undiffuse as ud

x = ud.sample(mine.model().denoiser, (16, 1, 8, 8), sys.argv[1])
print("standard deviation", float(x.std()))
