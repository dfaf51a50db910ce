"""Ways to be hostile: for each the error it must give, and how to make the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.attacks.craft import Craft, poke, poke_header
from tests.runtime import tiny

from svdqc.compiler.ir.intexpr import IntExpr, symbol
from svdqc.compiler.plan.encode import encode_plan
from svdqc.compiler.plan.records import Buffer, BufferArg, KernelEntry, Plan, TensorPort

Attack = Callable[[Craft], bytes]
CONST = IntExpr.of


# ---- ways to be hostile


def header(**fields: Any) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.header = fields
        return craft.build()

    return attack


def manifest(change: Callable[[dict[str, Any]], object]) -> Attack:
    def attack(craft: Craft) -> bytes:
        change(craft.manifest)
        return craft.build()

    return attack


def table(change: Callable[[list[dict[str, Any]]], object]) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.entries = lambda entries: void(change(entries))
        return craft.build()

    return attack


def void(_: object) -> None:
    return None


def text(change: Callable[[bytes], bytes]) -> Attack:
    """Changes the manifest's bytes."""

    def attack(craft: Craft) -> bytes:
        good = craft.build()
        size = struct.unpack_from("<Q", good, 0x18)[0]
        craft.raw_manifest = change(good[64 : 64 + size])
        return craft.build()

    return attack


def raw(change: Callable[[bytes], bytes]) -> Attack:
    return lambda craft: change(craft.build())


def plan(change: Callable[[Plan], Plan]) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.set_plan(encode_plan(change(tiny.make_plan())))
        return craft.build()

    return attack


def plan_bytes(change: Callable[[bytes], bytes]) -> Attack:
    def attack(craft: Craft) -> bytes:
        craft.set_plan(change(encode_plan(tiny.make_plan())))
        return craft.build()

    return attack


def kernels(*entries: KernelEntry) -> Attack:
    return plan(lambda good: replace(good, kernels=entries))


def argument(launch: int, index: int, **changes: Any) -> Attack:
    def change(good: Plan) -> Plan:
        args = list(good.launches[launch].args)
        args[index] = replace(args[index], **changes)
        return tiny.with_launch(good, launch, args=tuple(args))

    return plan(change)


def buffer(which: int, /, **changes: Any) -> Attack:
    def change(good: Plan) -> Plan:
        buffers = list(good.buffers)
        buffers[which] = replace(buffers[which], **changes)
        return replace(good, buffers=tuple(buffers))

    return plan(change)


def cut(where: Callable[[Craft, bytes], int]) -> Attack:
    def attack(craft: Craft) -> bytes:
        good = craft.build()
        return good[: where(craft, good)]

    return attack


def in_section(kind: str) -> Callable[[Craft, bytes], int]:
    def where(craft: Craft, good: bytes) -> int:
        at = 64 + (1 << 14)
        for entry, data in zip(craft.manifest["sections"], craft.sections, strict=True):
            at = -(-at // 4096) * 4096
            if entry["kind"] == kind:
                return at + len(data) // 2
            at += len(data)
        raise KeyError(kind)

    return where


def flip(where: Callable[[Craft, bytes], int]) -> Attack:
    def attack(craft: Craft) -> bytes:
        good = bytearray(craft.build())
        good[where(craft, bytes(good))] ^= 1
        return bytes(good)

    return attack


def two_live_buffers(good: Plan) -> Plan:
    """A second arena buffer on top of the first, written by launch 0 and read by launch 1."""
    size = good.buffers[2].num_bytes
    grown = replace(good, buffers=(*good.buffers, Buffer("arena", size, 0, 128)))
    grown = tiny.with_launch(
        grown, 0, args=(*grown.launches[0].args, BufferArg(6, CONST(0), size, "write"))
    )
    return tiny.with_launch(
        grown, 1, args=(*grown.launches[1].args, BufferArg(6, CONST(0), size, "read"))
    )


def unreadable_dim(good: Plan) -> Plan:
    x = TensorPort("x", "f32", (CONST(8), CONST(64)))
    gate = TensorPort("gate.0", "i64", (CONST(8),))
    return replace(good, inputs=(x, gate))


def deep_json(good: bytes) -> bytes:
    return good.replace(b'"meta":{', b'"meta":{"deep":' + b"[" * 5000 + b"]" * 5000 + b",", 1)


B, R = symbol("batch", 1, 8), symbol("rows", 4, 64)
BLOCK = KernelEntry("scale", 128)

ATTACKS: dict[str, tuple[str, Attack]] = {
    # the header
    "empty_file": ("NOT_AN_ARTIFACT", raw(lambda _: b"")),
    "text_file": ("NOT_AN_ARTIFACT", raw(lambda _: b"hello, world\n" * 100)),
    "magic_prefix_only": ("TRUNCATED", raw(lambda g: g[:7])),
    "half_a_header": ("TRUNCATED", raw(lambda g: g[:40])),
    "wrong_magic": ("NOT_AN_ARTIFACT", header(magic=b"\x89SVDQ\n\n\x1a")),
    "major_newer": ("NEWER_VERSION", header(major=2)),
    "major_zero": ("MALFORMED", header(major=0)),
    "header_size_huge": ("MALFORMED", header(header_size=0xFFFFFFFF)),
    "file_size_larger": ("TRUNCATED", header(file_size=1 << 40)),
    "file_size_smaller": ("ALTERED", header(file_size=4096)),
    "manifest_size_zero": ("MALFORMED", header(manifest_size=0)),
    "manifest_size_huge": ("MALFORMED", header(manifest_size=(1 << 64) - 64)),
    "manifest_size_over_cap": ("MALFORMED", header(manifest_size=(16 << 20) + 1)),
    "manifest_size_one_less": ("ALTERED", header(manifest_size=1000)),
    "manifest_hash": ("ALTERED", header(sha256=bytes(32))),
    "trailing_bytes": ("ALTERED", raw(lambda g: g + b"\0")),
    # cut or changed inside each section
    **{
        f"cut_in_{kind}": ("TRUNCATED", cut(in_section(kind)))
        for kind in ("weights", "code", "plan", "graph")
    },
    "cut_last_byte": ("TRUNCATED", raw(lambda g: g[:-1])),
    **{
        f"flip_in_{kind}": ("ALTERED", flip(in_section(kind)))
        for kind in ("weights", "code", "plan", "graph")
    },
    "flip_in_manifest": ("ALTERED", flip(lambda c, g: 100)),
    "flip_in_manifest_padding": ("ALTERED", flip(lambda c, g: 64 + (1 << 14) - 1)),
    "flip_in_padding": ("ALTERED", flip(lambda c, g: 64 + (1 << 14) + 4096 + 100)),
    # JSON
    "json_not_an_object": ("MALFORMED", text(lambda _: b"[]")),
    "json_garbage": ("MALFORMED", text(lambda _: b"\0\0\0")),
    "json_white_space": ("MALFORMED", text(lambda m: m.replace(b":", b": ", 1))),
    "json_trailing": ("MALFORMED", text(lambda m: m + b"{}")),
    "json_cut": ("MALFORMED", text(lambda m: m[:-1])),
    "json_deep": ("MALFORMED", text(deep_json)),
    "json_deep_only": ("MALFORMED", text(lambda _: b"[" * 100_000)),
    "json_many_values": ("MALFORMED", text(lambda _: b"[" + b"0," * 1_100_000 + b"0]")),
    "json_duplicate_key": ("MALFORMED", text(lambda m: m.replace(b'"name"', b'"meta"', 1))),
    "json_keys_out_of_order": ("MALFORMED", text(lambda m: b'{"zzz":0,' + m[1:])),
    "json_nan": ("MALFORMED", text(lambda m: m.replace(b'"scale":0.5', b'"scale":NaN', 1))),
    "json_infinity": (
        "MALFORMED",
        text(lambda m: m.replace(b'"scale":0.5', b'"scale":-Infinity', 1)),
    ),
    "json_number_overflow": ("MALFORMED", text(lambda m: m.replace(b"0.5", b"9" * 30, 1))),
    "json_leading_zero": ("MALFORMED", text(lambda m: m.replace(b'"lo":1', b'"lo":01', 1))),
    "json_bad_utf8": ("MALFORMED", text(lambda m: m.replace("ü".encode(), b"\xff\xfe", 1))),
    "json_overlong_utf8": ("MALFORMED", text(lambda m: m.replace("ü".encode(), b"\xc0\xaf", 1))),
    "json_surrogate": ("MALFORMED", text(lambda m: m.replace("ü".encode(), b"\xed\xa0\x80", 1))),
    "json_needless_escape": ("MALFORMED", text(lambda m: m.replace(b"tiny", b"\\u0074iny", 1))),
    "json_raw_control": ("MALFORMED", text(lambda m: m.replace(b"tiny", b"ti\ny", 1))),
    # the manifest
    "feature_unknown": (
        "UNKNOWN_FEATURE",
        manifest(lambda m: m["required_features"].append("teleport")),
    ),
    "plan_version_newer": ("NEWER_VERSION", manifest(lambda m: m["versions"].update(plan=99))),
    "quantization_newer": (
        "NEWER_VERSION",
        manifest(lambda m: m["versions"].update(quantization=99)),
    ),
    "version_negative": ("MALFORMED", manifest(lambda m: m["versions"].update(plan=-1))),
    **{
        f"missing_{key}": ("MALFORMED", manifest(lambda m, key=key: m.pop(key)))  # type: ignore[misc]
        for key in ("name", "versions", "tensors", "variants", "dims", "inputs", "outputs", "meta")
    },
    "name_is_a_number": ("MALFORMED", manifest(lambda m: m.update(name=3))),
    "name_with_nul": ("MALFORMED", manifest(lambda m: m.update(name="a\0b"))),
    "name_too_long": ("MALFORMED", manifest(lambda m: m.update(name="x" * 5000))),
    "tensors_not_a_list": ("MALFORMED", manifest(lambda m: m.update(tensors={}))),
    "tensor_duplicate": ("MALFORMED", manifest(lambda m: m["tensors"].append(m["tensors"][0]))),
    "tensor_unnamed": ("MALFORMED", manifest(lambda m: m["tensors"][0].update(name=""))),
    "tensor_section_missing": ("MALFORMED", manifest(lambda m: m["tensors"][0].update(section=99))),
    "tensor_in_code": ("MALFORMED", manifest(lambda m: m["tensors"][0].update(section=2))),
    "tensor_negative_offset": (
        "MALFORMED",
        manifest(lambda m: m["tensors"][0].update(offset=-256)),
    ),
    "tensor_unaligned": ("MALFORMED", manifest(lambda m: m["tensors"][0].update(offset=1))),
    "tensor_beyond_section": ("MALFORMED", manifest(lambda m: m["tensors"][0].update(offset=4096))),
    "tensor_size_overflow": (
        "MALFORMED",
        manifest(lambda m: m["tensors"][0].update(layout="x", size=2**63 - 1, offset=2**62)),
    ),
    "tensor_negative_shape": ("MALFORMED", manifest(lambda m: m["tensors"][0].update(shape=[-4]))),
    "no_variants": ("MALFORMED", manifest(lambda m: m.update(variants=[]))),
    "variant_code_is_plan": ("MALFORMED", manifest(lambda m: m["variants"][0].update(code=3))),
    "variant_plan_negative": ("MALFORMED", manifest(lambda m: m["variants"][0].update(plan=-1))),
    "variant_features_not_names": (
        "MALFORMED",
        manifest(lambda m: m["variants"][0].update(isa_features=[1])),
    ),
    "port_duplicate": ("MALFORMED", manifest(lambda m: m["inputs"][1].update(name="x"))),
    "dims_duplicate": ("MALFORMED", manifest(lambda m: m["dims"][1].update(name="batch"))),
    # the section table
    "section_overlap": ("MALFORMED", table(lambda s: s[1].update(offset=s[0]["offset"]))),
    "section_on_header": ("MALFORMED", table(lambda s: s[0].update(offset=0))),
    "section_on_manifest": ("MALFORMED", table(lambda s: s[0].update(offset=4096 * 0 + 0))),
    "section_unaligned": ("MALFORMED", table(lambda s: s[1].update(offset=s[1]["offset"] + 8))),
    "section_gap": ("MALFORMED", table(lambda s: s[1].update(offset=s[1]["offset"] + 4096))),
    "section_out_of_order": ("MALFORMED", table(lambda s: s.reverse())),
    "section_beyond_file": ("MALFORMED", table(lambda s: s[-1].update(size=1 << 40))),
    "section_size_overflow": ("MALFORMED", table(lambda s: s[-1].update(size=2**63 - 1))),
    "section_empty": ("MALFORMED", table(lambda s: s[0].update(size=0))),
    "section_negative": ("MALFORMED", table(lambda s: s[0].update(offset=-4096))),
    "section_unknown_kind": ("MALFORMED", table(lambda s: s[0].update(kind="script"))),
    "section_hash_short": ("MALFORMED", table(lambda s: s[0].update(sha256="ab"))),
    "section_hash_upper": (
        "MALFORMED",
        table(lambda s: s[0].update(sha256=s[0]["sha256"].upper().replace("0", "A"))),
    ),
    "section_hash_wrong": ("ALTERED", table(lambda s: s[0].update(sha256="0" * 64))),
    "section_short_of_end": ("MALFORMED", table(lambda s: s[-1].update(size=1))),
    "sections_none": ("MALFORMED", table(lambda s: s.clear())),
    # the plan's bytes
    "plan_empty_header": ("BAD_PLAN", plan_bytes(lambda _: b"SVDQPLAN")),
    "plan_magic": ("BAD_PLAN", plan_bytes(lambda p: b"X" + p[1:])),
    "plan_abi_newer": ("NEWER_VERSION", plan_bytes(lambda p: poke_header(p, 8, 3))),
    "plan_abi_of_other_tables": ("BAD_PLAN", plan_bytes(lambda p: poke_header(p, 8, 2))),
    "plan_abi_zero": ("BAD_PLAN", plan_bytes(lambda p: poke_header(p, 8, 0))),
    "plan_header_size": ("BAD_PLAN", plan_bytes(lambda p: poke_header(p, 12, 8))),
    "plan_total_size": ("BAD_PLAN", plan_bytes(lambda p: poke_header(p, 16, 1 << 60, "<Q"))),
    "plan_arena_huge": ("BAD_PLAN", plan_bytes(lambda p: poke_header(p, 24, 1 << 63, "<Q"))),
    **{
        f"plan_count_{i}_{name}": (
            "BAD_PLAN",
            plan_bytes(lambda p, at=0x20 + 4 * i, n=value: poke_header(p, at, n)),  # type: ignore[misc]
        )
        for i in range(12)
        for name, value in (("huge", 0xFFFFFFFF), ("more", 60))
    },
    "plan_cut": ("BAD_PLAN", plan_bytes(lambda p: p[:-8])),
    "plan_longer": ("BAD_PLAN", plan_bytes(lambda p: p + bytes(8))),
    "plan_unknown_op": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "instructions", 0, 0, 77))),
    "plan_op_reserved": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "instructions", 0, 4, 1))),
    "plan_unknown_dim": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "instructions", 0, 8, 9, "<q"))),
    "plan_dim_minus_one": (
        "BAD_PLAN",
        plan_bytes(lambda p: poke(p, "instructions", 0, 8, -1, "<q")),
    ),
    "plan_stack_underflow": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "instructions", 0, 0, 2))),
    "plan_neg_underflow": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "instructions", 0, 0, 8))),
    "plan_expr_overlaps": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "exprs", 1, 0, 0))),
    "plan_expr_beyond": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "exprs", 0, 4, 0xFFFFFFFF))),
    "plan_expr_empty": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "exprs", 0, 4, 0))),
    "plan_shape_expr": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "shapes", 0, 0, 10_000))),
    "plan_port_dtype": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "inputs", 0, 8, 10))),
    "plan_port_rank": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "inputs", 0, 16, 0xFFFFFFF0))),
    "plan_port_name_beyond": (
        "BAD_PLAN",
        plan_bytes(lambda p: poke(p, "inputs", 0, 0, 0xFFFFFFFF)),
    ),
    "plan_port_name_empty": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "inputs", 0, 4, 0))),
    "plan_name_not_utf8": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "strings", 0, 0, 0xFF, "<B"))),
    "plan_name_nul": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "strings", 0, 0, 0, "<B"))),
    "plan_dim_lo_negative": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "dims", 0, 8, -1, "<q"))),
    "plan_dim_empty": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "dims", 0, 16, 0, "<q"))),
    "plan_dim_nan": (
        "BAD_PLAN",
        plan_bytes(lambda p: poke(p, "dims", 0, 16, float("nan"), "<d")),  # type: ignore[arg-type]
    ),
    "plan_dim_multiple_zero": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "dims", 1, 24, 0, "<q"))),
    "plan_dim_no_multiple": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "dims", 1, 24, 100, "<q"))),
    "plan_dims_wider": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "dims", 0, 16, 9, "<q"))),
    "plan_buffer_kind": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "buffers", 0, 0, 4))),
    "plan_buffer_expr": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "buffers", 0, 8, 1 << 30))),
    "plan_arg_buffer": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "args", 0, 0, 99))),
    "plan_arg_access": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "args", 0, 12, 3))),
    "plan_scalar_expr": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "scalars", 0, 0, 1 << 31))),
    "plan_launch_kernel": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "launches", 0, 0, 2))),
    "plan_launch_args_beyond": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "launches", 1, 8, 100))),
    "plan_launch_args_shared": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "launches", 1, 4, 0))),
    "plan_launch_reserved": ("BAD_PLAN", plan_bytes(lambda p: poke(p, "launches", 0, 36, 1))),
    "plan_kernel_path": ("BAD_PLAN", kernels(KernelEntry("../sh"), KernelEntry("b"))),
    "plan_kernel_twice": ("BAD_PLAN", kernels(KernelEntry("scale"), KernelEntry("scale"))),
    "plan_block_mixed": ("BAD_PLAN", kernels(BLOCK, KernelEntry("shift_sum"))),
    "plan_block_not_warps": ("BAD_PLAN", kernels(BLOCK, KernelEntry("shift_sum", 33))),
    "plan_block_threads_huge": ("BAD_PLAN", kernels(BLOCK, KernelEntry("shift_sum", 1 << 31))),
    "plan_block_shared_huge": ("BAD_PLAN", kernels(BLOCK, KernelEntry("shift_sum", 32, 1 << 31))),
    "plan_block_shared_on_cpu": (
        "BAD_PLAN",
        kernels(KernelEntry("scale"), KernelEntry("shift_sum", 0, 64)),
    ),
    "plan_of_a_gpu_for_cpus": ("BAD_PLAN", kernels(BLOCK, KernelEntry("shift_sum", 1024, 1024))),
    # the plan's meaning
    "launch_reads_beyond": ("BAD_PLAN", argument(0, 0, num_bytes=B * R * 4 + 4)),
    "launch_offset_beyond": ("BAD_PLAN", argument(0, 0, byte_offset=B * R * 4 + 64)),
    "launch_offset_negative": ("BAD_PLAN", argument(0, 0, byte_offset=CONST(-64))),
    "launch_size_negative": ("BAD_PLAN", argument(0, 0, num_bytes=CONST(-1))),
    "launch_offset_overflow": (
        "BAD_PLAN",
        argument(0, 0, byte_offset=CONST(2**63 - 1), num_bytes=CONST(2**63 - 1)),
    ),
    "launch_wrong_for_small_dims": ("BAD_PLAN", argument(0, 0, num_bytes=CONST(8 * 64 * 4))),
    "launch_reads_unwritten": ("BAD_PLAN", argument(0, 2, access="update")),
    "launch_writes_input": ("BAD_PLAN", argument(0, 0, access="write")),
    "launch_writes_weight": ("BAD_PLAN", argument(0, 1, access="update")),
    "output_never_written": ("BAD_PLAN", argument(1, 3, buffer=4, num_bytes=CONST(4))),
    "tasks_negative": (
        "BAD_PLAN",
        plan(lambda p: tiny.with_launch(p, 0, num_tasks=B - 8)),
    ),
    "tasks_huge": ("BAD_PLAN", plan(lambda p: tiny.with_launch(p, 0, num_tasks=B * 2**41))),
    "scratch_huge": ("BAD_PLAN", plan(lambda p: tiny.with_launch(p, 0, scratch_bytes=B * 2**37))),
    "scratch_negative": ("BAD_PLAN", plan(lambda p: tiny.with_launch(p, 0, scratch_bytes=-B))),
    "division_by_zero": (
        "BAD_PLAN",
        plan(lambda p: tiny.with_launch(p, 0, num_tasks=R // (B - 1))),
    ),
    "modulo_by_negative": (
        "BAD_PLAN",
        plan(lambda p: tiny.with_launch(p, 0, num_tasks=R % (B - 9))),
    ),
    "expression_overflow": (
        "BAD_PLAN",
        plan(lambda p: tiny.with_launch(p, 0, scalars=(B * 2**62,))),
    ),
    "weight_missing": ("BAD_PLAN", buffer(1, index=7)),
    "weight_too_small": ("BAD_PLAN", buffer(1, num_bytes=CONST(4096))),
    "input_missing": ("BAD_PLAN", buffer(0, index=9)),
    "input_larger_than_port": ("BAD_PLAN", buffer(0, num_bytes=B * R * 8)),
    "output_smaller_than_port": ("BAD_PLAN", buffer(4, num_bytes=B * R * 2)),
    "arena_too_small": ("BAD_PLAN", plan(lambda p: replace(p, arena_bytes=1024))),
    "arena_offset_unaligned": ("BAD_PLAN", buffer(2, arena_offset=8)),
    "arena_offset_overflow": ("BAD_PLAN", buffer(2, arena_offset=2**64 - 64)),
    "arena_buffers_overlap": ("BAD_PLAN", plan(two_live_buffers)),
    "dim_not_in_inputs": ("BAD_PLAN", plan(unreadable_dim)),
    "ports_not_in_manifest": (
        "BAD_PLAN",
        plan(lambda p: replace(p, inputs=(replace(p.inputs[0], name="y"), p.inputs[1]))),
    ),
}

# The Python reader leaves the match of plan and manifest to the runtime.
RUNTIME_ONLY = {
    "ports_not_in_manifest",
    "plan_dims_wider",
    "plan_kernel_path",
    "plan_kernel_twice",
    "plan_of_a_gpu_for_cpus",
}
