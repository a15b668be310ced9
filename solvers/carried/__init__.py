"""Densities that are carried along while samples are drawn, and what weights make of them."""
