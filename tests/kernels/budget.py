"""What each kernel may cost on a GPU, checked from machine code without one.

Instructions per element on the shortest path of an sm_90 kernel, 16 elements a thread where the
registers allow; Triton 3.9 needs two to ten per cent less than Triton 3.6, both are within. An H200
moves 4.3 TB/s and issues 7.8 instructions per byte moved: below that (93 for float32
Euler-Maruyama, 47 for bfloat16) memory sets the pace, not arithmetic.
"""

REGISTERS = 64
WIDE_REGISTERS = 96  # the last Runge-Kutta stage reads eight tensors, thresholding keeps counts

# case of machine_cases.py -> instructions per element; other targets get a fifth more
INSTRUCTIONS = {
    "noise float32 fast": 23,
    "noise float32 exact": 47,
    "em float32 fast": 30,
    "em float32 exact": 60,
    "em bfloat16 fast": 34,
    "em bfloat16 exact": 63,
    "ddpm clip float32 fast": 33,
    "ddpm clip float32 exact": 65,
    "ddpm clip bfloat16 fast": 36,
    "ddpm clip bfloat16 exact": 68,
    "langevin small float32 fast": 58,
    "langevin small float32 exact": 86,
    "langevin small bfloat16 fast": 61,
    "langevin small bfloat16 exact": 89,
    "langevin large float32 fast 0": 39,
    "langevin large float32 exact 0": 54,
    "langevin large bfloat16 fast 0": 40,
    "langevin large bfloat16 exact 0": 55,
    "langevin large float32 fast 1": 60,  # once a sample, from its partial sums
    "langevin large float32 fast 2": 31,
    "langevin large float32 exact 1": 60,
    "langevin large float32 exact 2": 55,
    "langevin large bfloat16 fast 1": 60,
    "langevin large bfloat16 fast 2": 35,
    "langevin large bfloat16 exact 1": 60,
    "langevin large bfloat16 exact 2": 58,
    "brownian float32 fast": 31,  # one term of the sum
    "brownian float32 exact": 58,
    "rk last stage float32": 91,
    "rk last stage bfloat16": 102,
    "threshold float32": 90,  # its longest pass of six
    "threshold bfloat16": 92,
    "guided 2m float32": 24,
    "guided 2m bfloat16": 30,
    "spectral 3 float32": 43,  # eight coefficients an element
    "spectral 3 bfloat16": 49,
    "guided next float32": 41,
    "guided next bfloat16": 45,
    "full float32 fast": 98,
    "full bfloat16 fast": 108,
}
# float16 has bfloat16's size, and as few conversions
INSTRUCTIONS |= {
    name.replace("bfloat16", "float16"): n for name, n in INSTRUCTIONS.items() if "bfloat16" in name
}
