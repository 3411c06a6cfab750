"""What fits and what does not, known shapes, and the mesh that is taken."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from jspec.aot.steps import ProgramMemory, StepReport, out_of_memory, text_of, work_of
from jspec.aot.topology import GIB, check_name, default_mesh, gib
from jspec.checkpoints.known import KNOWN
from jspec.models.model import abstract_params, build

MEMORY = ProgramMemory(arguments=10 * GIB, outputs=4 * GIB, aliased=3 * GIB, temporaries=2 * GIB)


def report(memory: ProgramMemory | None, available: int | None) -> StepReport:
    return StepReport(
        name="round",
        note="",
        available=available,
        needed=None,
        memory=memory,
        trace_s=0.0,
        compile_s=0.0,
    )


class OfANewerCompiler:
    """A program that jaxlib cannot read back."""

    def as_text(self) -> str:
        raise jax.errors.JaxRuntimeError("INTERNAL: arity\n*** Begin stack trace ***")

    def cost_analysis(self) -> dict:
        raise jax.errors.JaxRuntimeError("INTERNAL: arity")


def test_a_program_that_cannot_be_read_has_no_text_and_says_why():
    program: Any = OfANewerCompiler()
    assert text_of(program) == ("", "INTERNAL: arity")
    assert work_of(program) == (None, None)


def test_what_is_aliased_is_counted_once():
    assert MEMORY.total == 13 * GIB


def test_it_fits_up_to_the_last_byte():
    assert report(MEMORY, 13 * GIB).fits
    assert not report(MEMORY, 13 * GIB - 1).fits
    assert not report(dataclasses.replace(MEMORY, code=1), 13 * GIB).fits
    assert report(MEMORY, None).fits
    assert not report(None, 16 * GIB).fits


def test_the_compilers_refusal_is_understood():
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (31.28G) exceeds available HBM (15.75G). HLO module: jit_f."
    )
    assert out_of_memory(RuntimeError(said)) == int(31.28 * GIB)
    assert out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: no numbers")) == 0
    assert out_of_memory(RuntimeError("INTERNAL: something else")) is None


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [(16 * GIB, "16.0 GB"), (GIB // 2, "0.50 GB"), (3 * 2**20, "3.0 MB"), (320, "0.3 kB")],
)
def test_bytes_as_a_person_reads_them(n_bytes, said):
    assert gib(n_bytes) == said


@pytest.mark.parametrize(
    ("devices", "heads", "data", "tensor"),
    [(8, 32, 1, 8), (8, 28, 2, 4), (32, 64, 1, 32), (1024, 32, 32, 32), (8, 7, 8, 1)],
)
def test_heads_decide_how_many_devices_share_a_row(devices, heads, data, tensor):
    assert default_mesh(devices, heads) == {"data": data, "layer": 1, "tensor": tensor}


def test_other_names_of_a_chip():
    assert check_name("v5litepod:2x4") == "v5e"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("lmsys/vicuna-7b-v1.5", 6.74),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.24),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.21),
        ("meta-llama/Llama-3.1-70B-Instruct", 70.55),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.25),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.49),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-32B-Instruct", 32.76),
        ("Qwen/Qwen2.5-72B-Instruct", 72.71),
        ("Dream-org/Dream-v0-Instruct-7B", 7.616),
        ("GSAI-ML/LLaDA-8B-Instruct", 8.016),
    ],
)
def test_known_shapes_have_the_published_number_of_weights(name, billions):
    shapes = jax.tree.leaves(abstract_params(build(KNOWN[name]), "bfloat16"))
    assert sum(leaf.size for leaf in shapes) / 1e9 == pytest.approx(billions, abs=0.006)
