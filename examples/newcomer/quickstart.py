import mine

import undiffuse as ud

x = ud.sample(mine.model().denoiser, (16, 1, 8, 8), nfe=10)
print(x.shape, "standard deviation", float(x.std()))
