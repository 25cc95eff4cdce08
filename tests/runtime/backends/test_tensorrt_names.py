"""What the runtime and the builder ask TensorRT for is there under that name in the real package.

Engines run on a GPU only, so their calls are seen on a stand-in, which knows any name.
"""

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")

USED = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed", "get_engine_validity"),
    "ICudaEngine": (
        "create_execution_context", "create_runtime_config", "device_memory_size_v2",
        "get_tensor_mode", "get_tensor_name", "get_tensor_profile_shape", "num_io_tensors",
    ),
    "IRuntimeConfig": (
        "create_runtime_cache", "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy", "set_runtime_cache",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
    "IExecutionContext": (
        "execute_async_v3", "infer_shapes", "is_stream_capturable", "set_device_memory",
        "set_input_shape", "set_tensor_address",
    ),
    "IBuilderConfig": ("hardware_compatibility_level", "progress_monitor", "set_flag"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(USED))
def test_methods(kind):
    missing = [name for name in USED[kind] if not hasattr(getattr(trt, kind), name)]
    assert missing == []


def test_values():
    assert {"USER_MANAGED"} <= set(trt.ExecutionContextAllocationStrategy.__members__)
    assert {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"} <= set(
        trt.HardwareCompatibilityLevel.__members__
    )
    assert {"VERSION_COMPATIBLE", "TF32"} <= set(trt.BuilderFlag.__members__)
    assert {"EAGER"} <= set(trt.DynamicShapesKernelSpecializationStrategy.__members__)


def test_a_context_takes_a_strategy_or_a_configuration_first():
    """They are passed by place, as the two packages call them differently."""
    text = trt.ICudaEngine.create_execution_context.__doc__
    assert "strategy: tensorrt_rtx" in text.replace("tensorrt_rtx_bindings.", "")
    assert "runtime_config: tensorrt_rtx" in text.replace("tensorrt_rtx_bindings.", "")


def test_every_gpu_is_in_the_list_by_its_capability():
    from sigcam.runtime.backends.tensorrt.package import choose

    found = choose("tensorrt_rtx").capabilities
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(found)
    assert "9.0" not in found
