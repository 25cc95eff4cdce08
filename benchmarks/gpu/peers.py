"""What the same heatmaps cost in PyTorch, and the matrix products that they are made of."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.report import CheckFailed, CheckSkipped

SIZE = (224, 224)


def check_peers() -> dict[str, Any]:
    """Times PyTorch's heatmaps, plain and compiled, and cuBLAS's products of the CAMs alone."""
    try:
        import torch
        from triton.testing import do_bench
    except ImportError as exc:
        raise CheckSkipped(f"torch with triton isn't installed ({exc})") from exc
    if not torch.cuda.is_available():
        raise CheckFailed("torch sees no GPU")
    features = torch.randn(1, 2048, 14, 14, device="cuda").clamp_(min=0)
    weights = torch.randn(1, 5, 2048, device="cuda")

    def microseconds(work: Any) -> float:
        return round(1e3 * float(do_bench(work, return_mode="median")), 2)

    def heatmaps() -> Any:
        cams = torch.einsum("bkn,bnp->bkp", weights.clamp(min=0), features.flatten(2))
        cams = cams.clamp(min=0).view(1, 5, 14, 14)
        large = torch.nn.functional.interpolate(cams, size=SIZE, mode="bilinear")
        low, high = large.amin((2, 3), keepdim=True), large.amax((2, 3), keepdim=True)
        return (large - low) / (high - low)

    rows = [{"what": "torch, plain", "us": microseconds(heatmaps)}]
    compiled = torch.compile(heatmaps, mode="max-autotune-no-cudagraphs")
    rows.append({"what": "torch, compiled", "us": microseconds(compiled)})
    for batch in (1, 32):
        for classes in (1, 5, 100, 1000):
            for kind in (torch.float32, torch.float16):
                a = torch.randn(batch, classes, 2048, device="cuda", dtype=kind)
                b = torch.randn(batch, 2048, 196, device="cuda", dtype=kind)
                what = f"cuBLAS, {batch} x [{classes}, 2048] x [2048, 196], {str(kind)[6:]}"
                rows.append({"what": what, "us": microseconds(lambda a=a, b=b: torch.bmm(a, b))})
    return {"rows": rows}
