"""What is integrated: processes, read-outs of networks, exact targets."""

if __name__ == "models":
    raise ImportError(
        "this folder is undiffuse.models. "
        "Use `import undiffuse.models`, or run Python with -P outside the repository root."
    )
