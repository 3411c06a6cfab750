"""Bytes of a round, counted from texts in which every number is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jspec.aot.hlo import read
from jspec.aot.moved import PlacedArray
from jspec.aot.traffic import REGIONS, RoundShape, count_traffic

WEIGHT, CACHE, SMALL = 256 * 1024 * 2, 2 * 4 * 96 * 64 * 2, 8 * 64 * 2

ARRAYS = (
    PlacedArray("weight layers.0.mlp.up", (256, 1024), (256, 1024), True),
    PlacedArray("weight head_weight", (256, 5000), (256, 5000), True),
    PlacedArray("drafter's weight layers.0.mlp.up", (32, 1024), (32, 1024), True),
    PlacedArray("cache keys.0", (2, 4, 96, 64), (2, 4, 96, 64), False),
)


def shape(*, n_layers: int = 1, of_layers: int = 1) -> RoundShape:
    return RoundShape(
        arrays=ARRAYS,
        slots=96,
        vocabularies=(5000,),
        batch_size=2,
        n_layers=n_layers,
        of_layers=of_layers,
        weights=1000,
        kv=200,
        rows=30,
    )


CARRY = "(bf16[256,1024], bf16[2,4,96,64], bf16[256,5000], bf16[32,1024])"

TEXT = """HloModule test
%product (a: bf16[256,1024], b: bf16[8,256]) -> bf16[8,1024] {
  %a = bf16[256,1024]{1,0} parameter(0)
  %b = bf16[8,256]{1,0} parameter(1)
  ROOT %dot = bf16[8,1024]{1,0} dot(%b, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%update (c: bf16[2,4,96,64], new: bf16[1,4,2,64], at: s32[]) -> bf16[2,4,96,64] {
  %c = bf16[2,4,96,64]{3,2,1,0} parameter(0)
  %new = bf16[1,4,2,64]{3,2,1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %dus = bf16[2,4,96,64]{3,2,1,0} dynamic-update-slice(%c, %new, %at, %at, %at, %at)
}
%take (t: bf16[256,1024], at: s32[]) -> bf16[1,1024] {
  %t = bf16[256,1024]{1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %ds = bf16[1,1024]{1,0} dynamic-slice(%t, %at, %at), dynamic_slice_sizes={1,1024}
}
%pad (p: bf16[2,4,96,64]) -> bf16[2,4,128,64] {
  %p = bf16[2,4,96,64]{3,2,1,0} parameter(0)
  %zero = bf16[] constant(0)
  ROOT %padded = bf16[2,4,128,64]{3,2,1,0} pad(%p, %zero), padding=0_0x0_0x0_32x0_0
}
%inner (i: (f32[100])) -> (f32[100]) {
  %i = (f32[100]{0}) parameter(0)
  %x = f32[100]{0} get-tuple-element(%i), index=0
  %y = f32[100]{0} sine(%x)
  ROOT %t = (f32[100]{0}) tuple(%y)
}
%never (i: (f32[100])) -> pred[] {
  %i = (f32[100]{0}) parameter(0)
  ROOT %no = pred[] constant(false)
}
%body (state: CARRY) -> CARRY {
  %state = CARRY parameter(0)
  %w = bf16[256,1024]{1,0} get-tuple-element(%state), index=0
  %k = bf16[2,4,96,64]{3,2,1,0} get-tuple-element(%state), index=1
  %h = bf16[256,5000]{1,0} get-tuple-element(%state), index=2
  %d = bf16[32,1024]{1,0} get-tuple-element(%state), index=3
LINES
  ROOT %out = CARRY tuple(%w, %k, %h, %d)
}
%always (state: CARRY) -> pred[] {
  %state = CARRY parameter(0)
  ROOT %yes = pred[] constant(true)
}
ENTRY %main (a: CARRY) -> CARRY {
  %a = CARRY parameter(0)
  ROOT %loop = CARRY while(%a), condition=%always, body=%body
}
"""


def regions(*lines: str, **layers) -> dict[str, int]:
    body = "\n".join(f"  {line}" for line in lines)
    text = TEXT.replace("LINES", body).replace("CARRY", CARRY)
    traffic = count_traffic(read(text), shape(**layers))
    assert traffic is not None and set(traffic.regions) == set(REGIONS)
    return {name: n for name, n in traffic.regions.items() if n}


ROWS = '%x = bf16[8,256]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"'
PRODUCT = "%f = bf16[8,1024]{1,0} fusion(%w, %x), kind=kLoop, calls=%product"
AT = "%at = s32[]{:S(1)} constant(3)"
NEW = '%new = bf16[1,4,2,64]{3,2,1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"'


def test_a_weight_is_read_whole_and_what_is_on_the_chip_is_free():
    assert regions(ROWS, PRODUCT) == {"weights": WEIGHT, "other": 8 * 1024 * 2}
    assert regions(ROWS, PRODUCT.replace("{1,0}", "{1,0:S(1)}", 1)) == {"weights": WEIGHT}


def test_a_weight_is_known_through_views():
    view = "%v = bf16[8,32,1024]{2,1,0} bitcast(%w)"
    line = '%e = bf16[8,4]{1,0:S(1)} custom-call(%v), custom_call_target="product"'
    assert regions(view, line) == {"weights": WEIGHT}


def test_a_table_that_is_looked_up_is_read_in_part():
    line = "%r = bf16[1,1024]{1,0:S(1)} fusion(%w, %at), kind=kLoop, calls=%take"
    assert regions(AT, line) == {"weights": 1024 * 2}


def test_an_update_in_place_is_what_is_new():
    line = "%u = bf16[2,4,96,64]{3,2,1,0} fusion(%k, %new, %at), kind=kLoop, calls=%update"
    again = line.replace("%u =", "%u2 =").replace("%k", "%u")
    assert regions(AT, NEW, line) == {"kv": 4 * 2 * 64 * 2}
    assert regions(AT, NEW, line, again) == {"kv": 2 * 4 * 2 * 64 * 2}


def test_a_kernel_reads_the_whole_cache_through_its_updates():
    update = "%u = bf16[2,4,96,64]{3,2,1,0} fusion(%k, %new, %at), kind=kLoop, calls=%update"
    kernel = '%o = f32[8,64]{1,0:S(1)} custom-call(%u), custom_call_target="tpu_custom_call"'
    assert regions(AT, NEW, update, kernel) == {"kv": CACHE + 4 * 2 * 64 * 2}


def test_scores_and_logits_are_known_by_their_length():
    scores = '%s = f32[8,96]{1,0} sine(%q), metadata={op_name="jit(f)/verify/attention/x"}'
    source = '%q = f32[8,96]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"'
    logits = "%l = f32[8,5000]{1,0} broadcast(%at), dimensions={}"
    assert regions(source, scores) == {"scores": 8 * 96 * 4}
    assert regions(AT, logits) == {"logits": 8 * 5000 * 4}


@pytest.mark.parametrize(
    "line",
    [
        "%c = bf16[2,4,96,64]{2,3,1,0} copy(%k)",
        "%c = bf16[2,4,96,64]{3,2,1,0} fusion(%k), kind=kLoop, calls=%pad",
    ],
)
def test_a_cache_that_is_made_again_is_copied(line):
    """A padded one as well: reading and writing count."""
    larger = line.replace("bf16[2,4,96,64]{3,2,1,0} fusion", "bf16[2,4,128,64]{3,2,1,0} fusion")
    n_bytes = CACHE + (CACHE * 128 // 96 if "fusion" in line else CACHE)
    assert regions(larger) == {"copies": n_bytes}


def test_what_is_fetched_to_the_chip_is_read_once():
    types = "(bf16[256,1024]{1,0:S(1)}, bf16[256,1024]{1,0}, u32[]{:S(2)})"
    start, done = f"%s = {types} copy-start(%w)", "%e = bf16[256,1024]{1,0:S(1)} copy-done(%s)"
    assert regions(ROWS, start, done, PRODUCT.replace("%w", "%e")) == {
        "weights": WEIGHT,
        "other": 8 * 1024 * 2,
    }
    part = "((bf16[256,1024]{1,0}), bf16[64,1024]{1,0:S(1)}, s32[]{:S(2)})"
    assert regions(f"%s = {part} slice-start(%w), slice={{[0:64], [0:1024]}}") == {
        "weights": WEIGHT // 4
    }


def test_a_cache_that_stays_on_the_chip_counts_as_read():
    body = TEXT.replace("{3,2,1,0} get-tuple-element", "{3,2,1,0:S(1)} get-tuple-element")
    line = '  %o = f32[8,64]{1,0:S(1)} custom-call(%k), custom_call_target="tpu_custom_call"'
    text = body.replace("LINES", line).replace("CARRY", CARRY)
    traffic = count_traffic(read(text), shape())
    assert traffic is not None and traffic.regions["kv"] == CACHE == traffic.total


def test_inner_loops_count_as_often_as_they_run():
    source = "%z = (f32[100]{0}) tuple(%zz)"
    first = '%zz = f32[100]{0} custom-call(), custom_call_target="AllocateBuffer"'
    loop = "%n = (f32[100]{0}) while(%z), condition=%never, body=%inner"
    known = loop + ', backend_config={"known_trip_count":{"n":"5"}}'
    assert regions(first, source, loop) == {"other": 2 * 100 * 4}
    assert regions(first, source, known) == {"other": 5 * 2 * 100 * 4}


def test_the_drafters_own_is_apart():
    line = '%e = bf16[8,4]{1,0:S(1)} custom-call(%d), custom_call_target="product"'
    assert regions(line) == {"drafter": 32 * 1024 * 2}


def test_bytes_of_layers_are_scaled_to_all():
    head = '%e = bf16[8,4]{1,0:S(1)} custom-call(%h), custom_call_target="product"'
    scaled = regions(ROWS, PRODUCT, head, n_layers=1, of_layers=10)
    assert scaled == {"weights": 10 * WEIGHT + 256 * 5000 * 2, "other": 8 * 1024 * 2}


def test_without_a_loop_nothing_is_counted():
    assert count_traffic(read("ENTRY %main (a: f32[2]) -> f32[2] {\n}\n"), shape()) is None


def test_a_program_that_xla_compiles_here_moves_its_weights_once():
    """A loop of products and an update, on CPU: by what its arrays are."""
    w = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 4, 96, 64), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)

    def run(w, k, x):
        def body(i, state):
            k, x = state
            new = jnp.tanh(x @ w)[:8, :256]
            at = (jnp.int32(0), jnp.int32(0), i, jnp.int32(0))
            return jax.lax.dynamic_update_slice(k, new.reshape(2, 4, 4, 64), at), new

        return jax.lax.fori_loop(0, 3, body, (k, x))

    text = jax.jit(run, donate_argnums=1).lower(w, k, x).compile().as_text()
    traffic = count_traffic(read(text or ""), shape())
    assert traffic is not None
    assert traffic.regions["weights"] == 256 * 1024 * 4
    assert traffic.regions["copies"] < 100  # of the loop's counter
    assert 0 < traffic.regions["kv"] <= 2 * 8 * 256 * 4
