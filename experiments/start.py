"""What the numbers of every run hang on besides its experiment: devices and precision, and the run's one key."""

import os

import jax

from superpose.worlds import prng


def prepare() -> None:
    """Sets up JAX: call it before anything is computed."""
    # one CPU device per core: populations of small models spread over devices, not inside one matrix product
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores or 1)
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:  # a GPU would round products to 10 bits, a TPU to 7
        jax.config.update("jax_default_matmul_precision", "highest")


def first_key(config):
    """The key of which all randomness of a run is made."""
    return prng.key(config.seed)
