"""Diffusion sampling as the numerical integration of reverse-time SDEs and ODEs."""

__version__ = "0.1.0"
