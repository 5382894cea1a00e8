"""Counting in the text of compiled programs: `make check-accelerators` needs compilers that are not here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.accelerators import counting, tables, targets
from jacreg_jax import collectives, sharding

TEXT = """HloModule jit_step

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %dot = f32[4]{0} dot(%p, %p)
}

ENTRY %main (a: f32[4], b: f32[2,3]) -> (f32[4], f32[2,3]) {
  %a = f32[4]{0} parameter(0)
  %fusion.1 = f32[4]{0} fusion(%a), kind=kCustom, calls=%fused, metadata={op_name="jit(step)/Dense_0/dot_general"}
  %conv = (f32[2,3]{1,0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$convForward"
  %all-reduce-start = f32[4]{0} all-reduce-start(%fusion.1), to_apply=%add
  %all-reduce-done = f32[4]{0} all-reduce-done(%all-reduce-start)
  %part = f32[2,3]{1,0} get-tuple-element(%conv), index=0
  %fusion.2 = f32[] fusion(%a), kind=kInput, calls=%g, metadata={op_name="jit(<lambda>)/shard_map/reduce_sum"}
  ROOT %tuple = (f32[4]{0}, f32[2,3]{1,0}) tuple(%all-reduce-done, %part)
}
"""


class Program:
    """As jax gives one, of an account that says nothing of arithmetic."""

    def as_text(self):
        return TEXT

    def cost_analysis(self):
        return None

    def memory_analysis(self):
        return None


def test_what_stands_in_a_program_is_counted():
    """Kernels of the program itself, not of what they are made of."""
    found = counting.counts(Program())
    assert found["kernels"] == 3
    assert found["library_calls"] == 1
    assert found["collectives"] == {"all-reduce": [1, 16]}
    assert found["purposes"] == {"convolutions of the library": 1, "matrix products": 1, "gradient norm": 1}
    assert found["flops"] is None
    assert found["temporary_bytes"] is None


def test_a_program_of_this_machine_is_counted():
    devices = targets.cpu(4)
    mesh = sharding.data_mesh(devices)
    mapped = jax.shard_map(lambda x: jax.lax.psum(x @ x.T, "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    found = counting.counts(jax.jit(mapped).lower(jnp.zeros((8, 3))).compile())
    assert found["collectives"] == {"all-reduce": [1, 16]}
    assert found["flops"] > 2 * 2 * 2 * 3 - 1
    assert found["temporary_bytes"] >= 0


def test_tables_say_what_did_not_run(monkeypatch):
    monkeypatch.setattr(tables.results, "read", lambda name: None)
    assert tables.accelerators().count("not run") == 3
    assert tables.purposes() == "not run"


def test_tables_compare_with_one_chip(monkeypatch):
    row = {"network": "DDNet", "variant": "plain", "chips": 1, "backend": "jit", "kernels": 7, "library_calls": 0}
    row |= {"flops": 2e9, "temporary_bytes": 3e6, "collectives": {}, "purposes": {"other": 7}}
    other = row | {"chips": 8, "flops": 2.1e9, "collectives": {"all-reduce": [1, 5e6]}}
    result = {"config": {"share": 4}, "rows": [other | {"backend": "shard_map"}, row, other]}
    monkeypatch.setattr(tables.results, "read", lambda name: result)
    last = [cell.strip() for cell in tables.table("v5e").splitlines()[-1].split("|")[1:-1]]
    assert last == ["DDNet plain", "8", "jit, shard_map", "1 all-reduce of 5.00 MB", "2.10", "1.05", "7", "3.0"]


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    def nothing(chips):
        raise RuntimeError("no such platform")

    monkeypatch.setitem(targets.TARGETS, "v5e", targets.Target(nothing, {}))
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    with pytest.raises(ImportError, match=r"v5e cannot be used \(no such platform\); run `make check-accelerators`"):
        targets.prepare("v5e")


@pytest.mark.parametrize("devices", [1, 4])
def test_a_sum_by_vectors_is_a_sum_by_leaves(devices):
    """What a GPU is given, on CPU: every bit, for leaves of several shapes and types."""
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(4, 3, 2)), "b": rng.normal(size=4), "half": rng.normal(size=(4, 5))}
    tree = {name: jnp.asarray(leaf, jnp.bfloat16 if name == "half" else jnp.float32) for name, leaf in tree.items()}
    mesh = sharding.data_mesh(jax.devices()[:devices])

    def mapped(summed):
        body = lambda tree: summed(jax.tree.map(lambda leaf: leaf[0], tree), "data")
        return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("data"), out_specs=P()))

    by_vectors, by_leaves = mapped(collectives._sum_of_vectors), mapped(collectives.sum_over_devices)
    jax.tree.map(np.testing.assert_array_equal, by_vectors(tree), by_leaves(tree))
