"""The reader against texts small enough to count by hand, and against what XLA writes here."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jspec.aot.hlo import Array, collectives, read
from jspec.aot.moved import PlacedArray, find_moved
from jspec.aot.moved import placed as placed_arrays
from jspec.sharding import make_mesh

LOOP = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %ar.2 = f32[8,4]{1,0:T(8,128)S(1)} all-reduce(%p), channel_id=2, to_apply=%add
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %called = f32[8,4]{1,0} call(%x), to_apply=%inner
  %ag-start = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%called), dimensions={0}
  %ag-done = f32[32,4]{1,0} all-gather-done(%ag-start), metadata={op_name="jit(f)/while/body/x"}
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%x, %called)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %always = pred[] constant(true)
}

%wrapped (w: bf16[64]) -> bf16[8] {
  %w = bf16[64]{0} parameter(0)
  ROOT %rs = bf16[8]{0} reduce-scatter(%w), dimensions={0}, to_apply=%add
}

ENTRY %main (q: f32[8,4], r: bf16[64]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0), metadata={op_name="params[\\'q\\']"}
  %r = bf16[64]{0} parameter(1)
  %cp = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%q)
  %cp.done = f32[8,4]{1,0} collective-permute-done(%cp)
  %rs-start = ((bf16[64]{0}), bf16[8]{0}) reduce-scatter-start(%r), calls=%wrapped
  %rs-done = bf16[8]{0} reduce-scatter-done(%rs-start)
  %two = (f32[2]{0}, /*index=1*/f32[6]{0}) all-reduce(%cp.done, %q), to_apply=%add
  %start = (s32[], f32[8,4]{1,0}) tuple(%q, %q)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %end = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def counts(text: str) -> dict[tuple[str, bool], tuple[int, int]]:
    return {(c.kind, c.is_in_loop): (c.count, c.n_bytes) for c in collectives(read(text))}


def test_every_collective_is_counted_once_with_the_bytes_of_its_result():
    assert counts(LOOP) == {
        ("all-reduce", False): (1, (2 + 6) * 4),
        ("collective-permute", False): (1, 8 * 4 * 4),
        ("reduce-scatter", False): (1, 8 * 2),
        ("all-reduce", True): (1, 8 * 4 * 4),
        ("all-gather", True): (1, 32 * 4 * 4),
    }


def test_a_collective_that_is_fused_part_by_part_is_one():
    """As a TPU's text has it: each computation that runs beside a part names the whole."""
    part = (
        "%part.{i} (p{i}: bf16[256,64]) -> bf16[256,256] {{\n"
        "  %p{i} = bf16[256,64]{{1,0}} parameter(0)\n"
        "  %ag.{i} = bf16[256,256]{{1,0}} all-gather(%p{i}), channel_id=82, dimensions={{1}}, "
        'frontend_attributes={{chain_id="{chain}"}}, backend_config={{"flag_configs":[]}}\n'
        "}}\n"
    )
    text = "".join(part.format(i=i, chain=chain) for i, chain in enumerate((58, 58, 58, 59)))
    assert counts(text) == {("all-gather", False): (2, 2 * 256 * 256 * 2)}


def test_a_loop_has_what_its_body_calls():
    looping = {i.computation for i in read(LOOP) if i.is_in_loop}
    assert looping == {"body", "condition", "inner", "add"}


def test_instructions_say_where_they_come_from():
    by_name = {i.name: i for i in read(LOOP)}
    assert by_name["q"].op_name == "params['q']"
    assert by_name["ag-done"].op_name == "jit(f)/while/body/x"
    assert by_name["cp"].operand == "q"
    assert by_name["ar.2"].arrays == (Array("f32", (8, 4), is_on_chip=True),)


@pytest.mark.parametrize(
    ("array", "n_bytes"),
    [
        (Array("bf16", (3, 5)), 30),
        (Array("pred", (7,)), 7),
        (Array("s4", (3,)), 2),
        (Array("f8e4m3fn", (6,)), 6),
        (Array("f32", ()), 4),
        (Array("token", ()), 0),
    ],
    ids=str,
)
def test_bytes_of_an_array(array, n_bytes):
    assert array.n_bytes == n_bytes


# --- programs that XLA compiles here -------------------------------------------------------------

WIDTH = 1024


def placed(spec: PartitionSpec, *shape: int) -> jax.ShapeDtypeStruct:
    mesh = make_mesh(tensor=8)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


def split_product(x, up, down):
    return jnp.tanh(x @ up) @ down


def shapes_of_product():
    over = ("layer", "tensor")
    return (
        placed(PartitionSpec(), 4, WIDTH),
        placed(PartitionSpec(None, over), WIDTH, 2 * WIDTH),
        placed(PartitionSpec(over, None), 2 * WIDTH, WIDTH),
    )


def test_a_product_split_over_devices_has_one_all_reduce_and_moves_no_weight():
    shapes = shapes_of_product()
    compiled = jax.jit(split_product).lower(*shapes).compile()
    text = compiled.as_text() or ""
    found = collectives(read(text))
    assert [(c.kind, c.count, c.n_bytes) for c in found] == [("all-reduce", 1, 4 * WIDTH * 4)]
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    assert not find_moved(read(text), placed_arrays("weight", {"up": shapes[1], "down": shapes[2]}))


def test_a_weight_that_is_gathered_is_named():
    x, up, down = shapes_of_product()

    def gathers(x, up, down):
        whole = jax.lax.with_sharding_constraint(
            up, NamedSharding(make_mesh(tensor=8), PartitionSpec())
        )
        return split_product(x, whole, down)

    compiled = jax.jit(gathers).lower(x, up, down).compile()
    arrays = placed_arrays("weight", {"up": up, "down": down})
    moved = find_moved(read(compiled.as_text() or ""), arrays)
    gathered = [m for m in moved if m.operation == "all-gather"]
    assert [(m.array, m.is_in_loop) for m in gathered] == [(f"f32[{WIDTH},{2 * WIDTH}]", False)]
    assert "up" in gathered[0].what
    name = gathered[0].op_name  # compilers since jaxlib 0.11 or so name the argument alone
    assert name == "up" or "jit(gathers)" in name


def test_a_collective_in_a_loop_is_told_apart():
    shapes = shapes_of_product()

    def repeated(x, up, down):
        return jax.lax.fori_loop(0, 3, lambda _, x: split_product(x, up, down), x)

    text = jax.jit(repeated).lower(*shapes).compile().as_text() or ""
    assert {(c.kind, c.is_in_loop): c.count for c in collectives(read(text))} == {
        ("all-reduce", True): 1
    }


def test_reading_agrees_with_a_count_of_the_text():
    """Whatever the program: as many as lines that begin one."""
    shapes = shapes_of_product()

    def mixed(x, up, down):
        y = split_product(x, up, down)
        return y, jax.lax.with_sharding_constraint(
            jnp.sin(down).T, NamedSharding(make_mesh(tensor=8), PartitionSpec("tensor", None))
        )

    text = jax.jit(mixed).lower(*shapes).compile().as_text() or ""
    kinds = {"all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"}
    for kind in kinds:
        started = len(re.findall(rf" {kind}(?:-start)?\(", text))
        assert sum(c.count for c in collectives(read(text)) if c.kind == kind) == started


def test_a_copy_to_the_chips_own_memory_is_none():
    line = (
        "ENTRY %main (w: bf16[1024,1024]) -> bf16[1024,1024] {{\n"
        "  %w = bf16[1024,1024]{{1,0}} parameter(0), metadata={{op_name=\"params['w']\"}}\n"
        '  ROOT %c = {type} {operation}(%w), metadata={{op_name="jit(f)/x"}}\n'
        "}}\n"
    )
    weight = placed(PartitionSpec(), 1024, 1024)

    def kinds(type_: str, operation: str) -> list[tuple[str, str]]:
        text = line.format(type=type_, operation=operation)
        return [
            (m.operation, m.what) for m in find_moved(read(text), placed_arrays("weight", [weight]))
        ]

    plain, on_chip = "bf16[1024,1024]{0,1}", "bf16[1024,1024]{1,0:T(8,128)S(1)}"
    assert kinds(plain, "copy") == [("copy", "params['w']")]
    assert kinds(on_chip, "copy") == []
    assert kinds(f"({on_chip}, {plain}, u32[])", "copy-start") == []
    assert kinds(f"({plain}, {on_chip}, u32[])", "copy-start") == [("write-back", "params['w']")]


def test_an_activation_of_a_weights_shape_is_no_weight():
    text = LOOP.replace("f32[8,4]", "f32[1024,512]").replace(
        "%x = f32",
        "%made = f32[1024,512]{1,0} sine(%state)\n  %again = f32[1024,512]{1,0} "
        "copy(%made)\n  %x = f32",
    )
    shape = placed(PartitionSpec(), 1024, 512)
    assert not find_moved(read(text), placed_arrays("weight", [shape]))
    found = find_moved(read(text), placed_arrays("cache", [shape], is_argument=False))
    assert [(m.operation, m.is_in_loop) for m in found] == [("copy", True)]


def test_a_fusion_that_gives_its_operand_back_copies_nothing():
    """A TPU writes so that an array of bytes may be fetched beside computations."""
    inside = (
        "%copies (input: s8[1024,1024]) -> s8[1024,1024] {\n"
        "  %input = s8[1024,1024]{1,0} parameter(0)\n"
        "  ROOT %again = s8[1024,1024]{1,0} copy(%input)\n}\n\n"
        "ENTRY %main (w: s8[1024,1024]) -> s8[1024,1024] {\n"
        "  %w = s8[1024,1024]{1,0} parameter(0)\n"
        "  ROOT %same = s8[1024,1024]{1,0} fusion(%w), kind=kLoop, ALIAS calls=%copies\n}\n"
    )
    weights = [PlacedArray("w", (1024, 8192), (1024, 1024), True)]
    for alias, count in (("", 1), ("output_to_operand_aliasing={{}: (0, {})},", 0)):
        assert len(find_moved(read(inside.replace("ALIAS", alias)), weights)) == count
