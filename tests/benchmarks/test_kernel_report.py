"""docs/kernels.md is what its generator writes, and the roofline's arithmetic."""

from __future__ import annotations

import pytest

from benchmarks.kernels import machine_code, report, roofline
from sigcam.kernels.arguments import whole
from sigcam.kernels.compile import Compiled
from sigcam.kernels.plan import plan
from sigcam.kernels.shapes import Cams, Heatmaps


def test_the_roofline_of_the_page():
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.replaced(page, "roofline", roofline.page()) == page, f"run {report.COMMAND}"


def test_bytes_by_hand():
    gpu = roofline.Gpu("one", 1e9, 1, 90, 1e9)
    case = roofline.planned((512, 7, 7), 5, True, (224, 224), gpu)
    moved = roofline.work(case)
    chunks = case.fields["chunks"]
    assert moved.inputs == 2 * (2 * 512 * 49 + 5 * 512)  # the features for two tiles of classes
    assert moved.between == 2 * 4 * 5 * 49 * (chunks + 1)
    assert moved.heatmaps == 4 * 5 * 224 * 224
    assert moved.total == moved.inputs + moved.between + moved.heatmaps
    assert moved.operations == 2 * 5 * 512 * 49 + 5 * 224 * 224 * 2
    pixels, cells, weights, features = 5 * 224 * 224, 5 * 49, 5 * 512, 512 * 49
    single = 2 * (2 * weights) + 2 * (features + weights) + 4 * (cells + 2 * cells + cells)
    assert roofline.single_operators(case) == single + 4 * pixels * (1 + 1 + 1 + 2 + 2)


LISTING = """
.text.{name}:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P1 BRA `(.L_x_1) ;
        /*0020*/                   MOV R2, R3 ;
.L_x_1:
        /*0030*/                   FADD R0, R1, R2 ;
.L_x_2:
        /*0040*/                   FFMA R4, R0, R1, R2 ;
        /*0050*/               @P0 BRA `(.L_x_3) ;
        /*0060*/                   LDG.E R5, desc[UR4][R2.64] ;
        /*0070*/                   LDG.E R6, desc[UR4][R2.64+0x4] ;
        /*0080*/                   FADD R7, -R5, R6 ;
.L_x_3:
        /*0090*/                   FFMA.SAT R8, R7, R4, R5 ;
        /*00a0*/                   FFMA.SAT R9, R7, R4, R5 ;
        /*00b0*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*00c0*/                   IADD3 R2, P1, R2, 0x10, RZ ;
        /*00d0*/                   FADD R0, R0, 1 ;
        /*00e0*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*00f0*/              @!P0 BRA `(.L_x_2) ;
        /*0100*/                   EXIT ;
.L_x_4:
        /*0110*/                   BRA `(.L_x_4);
        /*0120*/                   NOP;
"""


def codes():
    """Of each architecture's kernels, as the listing has them."""
    kernels = [f"enlarge_{way}_{kind}" for way in ("bilinear", "bicubic") for kind in ("f32", "u8")]
    found = {name: machine_code.parsed(LISTING.format(name=name)) for name in kernels}
    return {**found, "combine_f32_v4_k1": machine_code.parsed("")}


def test_counts_by_hand():
    code = codes()["enlarge_bilinear_f32"]
    assert code.size == 17
    rows = machine_code.rows_of(code)
    # FFMA, BRA; then from the first FFMA.SAT to the BRA at the end.
    assert rows.row == 2 + 7
    assert rows.line == 3
    # LDC, BRA, FADD, and what the first row reads; EXIT.
    assert rows.once == 3 + 3 + 1


def test_a_loop_without_a_short_way_round_counts_as_a_whole():
    every = LISTING.replace("        /*0050*/               @P0 BRA `(.L_x_3) ;\n", "")
    rows = machine_code.rows_of(machine_code.parsed(every))
    assert (rows.row, rows.line) == (11, 0)


def test_vectors_by_hand():
    listing = """
.L_x_1:
        /*0040*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0050*/                   LDS.128 R8, [R0] ;
        /*0060*/              @!P0 CALL.REL.NOINC `(.L_x_2) ;
        /*0070*/                   FFMA R4, R0, R1, R2 ;
        /*0080*/                   FFMA R5, R0, R1, R2 ;
        /*0090*/                   CALL.REL.NOINC `($__slowpath) ;
        /*00a0*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*00b0*/                   EXIT ;
"""
    found = machine_code.vectors_of(machine_code.parsed(listing))
    assert (found.total, found.loads) == (7, 1)
    assert (found.operations["FFMA"], found.operations["LDS"]) == (2, 1)


def test_times_by_hand():
    """One multiprocessor with a clock of 1 GHz begins 4 instructions in a nanosecond."""
    gpu = roofline.Gpu("one", 1e9, 1, 90, 1e9)
    axes = whole(32, 2), whole(256, 2)
    case = plan(Cams(1, 1, 2, 2), Heatmaps(*axes), processors=1)
    rows = machine_code.Rows(row=10, line=7, once=100)
    moving, computing = roofline.enlarge_times(case, rows, gpu)
    assert moving == pytest.approx(4 * 32 * 256 / 1e9 * 1e6)
    # Two tiles of columns, two warps of a block, 16 rows each, in which there is a new line.
    assert computing == pytest.approx(2 * 2 * (100 + 16 * 10 + 1 * 7) / 4 / 1e9 * 1e6)


def test_the_page_is_written_between_its_markers(monkeypatch, tmp_path, capsys):
    log = (
        "Compiling entry function 'f' for 'sm_80'\n"
        " 0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\n Used 30 registers\n"
    )
    monkeypatch.setattr(report, "compile_source", lambda *a, **k: Compiled(b"", log))
    monkeypatch.setattr(report, "supported", lambda: (75, 86, 87, 90))
    monkeypatch.setattr(report, "source", lambda: "")
    monkeypatch.setattr(report, "disassembled", lambda cubin: codes())
    monkeypatch.setattr(report, "nvrtc_version", lambda: (13, 0))
    page = tmp_path / "kernels.md"
    parts = [
        f"<!-- {name}: written by `{report.COMMAND}` -->\nold\n<!-- end of {name} -->\n"
        for name in ("resources", "roofline", "enlarge", "instructions")
    ]
    page.write_text("before\n" + "between\n".join(parts) + "after\n")
    monkeypatch.setattr(report, "PAGE", page)
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    text = page.read_text()
    assert "| `f` | 30, 16 B spilled | 30, 16 B spilled |" in text
    assert "enlarge_bilinear_f32              17 instructions; a thread's row 9" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert report.main(["--check"]) == 0
    page.write_text("nothing to replace")
    with pytest.raises(ValueError, match="must have the lines"):
        report.main([])


def test_all_architectures_of_the_page_are_those_of_the_list():
    from sigcam.kernels.compile import ARCHITECTURES

    page = report.PAGE.read_text(encoding="utf-8")
    names = [f"{number / 10:.1f}" for number in ARCHITECTURES]
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    assert listed in " ".join(page.split())
