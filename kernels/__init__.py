"""Fused device code, each kernel beside its pure-PyTorch reference."""

if __name__ == "kernels":
    raise ImportError(
        "this folder is undiffuse.kernels; the bare name `kernels` belongs to another project. "
        "Use `import undiffuse.kernels`, or run Python with -P outside the repository root."
    )
