"""What to say where memory is too small."""

GPU_IS_FULL = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
MEMORY_IS_FULL = ("can't allocate memory", "bad_alloc")
LESS_MEMORY = {name: f"lower {name}.batch_size or network.width" for name in ("pretrain", "finetune")}


def full(name: str, error: Exception) -> str | None:
    """What to say if an error is that memory is full; None if it is another one.

    The text decides: the class that PyTorch has for it may not be loaded.
    """
    remedy = LESS_MEMORY.get(name, "free some")
    if any(sign in str(error) for sign in GPU_IS_FULL):
        return f"{name} does not fit into the GPU's memory; {remedy}, or set device: cpu"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in MEMORY_IS_FULL):
        return f"{name} does not fit into memory; {remedy}"
    return None
