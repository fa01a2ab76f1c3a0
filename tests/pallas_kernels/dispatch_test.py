"""Which implementation runs: argument, environment, platform, devices."""

import warnings

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, blocks, dispatch

P = jax.sharding.PartitionSpec
# What stands in a lowered program for each implementation of `demo`.
_MARKS = {
  "xla": "stablehlo.sine",
  "reference": "stablehlo.cosine",
  "pallas": "stablehlo.tanh",
  "interpret": "stablehlo.exponential",
}
_needs_libtpu = pytest.mark.skipif(
  not aot.available(), reason="libtpu is not installed"
)


def kernel(x, *, interpret):
  return jnp.exp(x) if interpret else jnp.tanh(x)


def refusing(x, *, interpret):
  raise blocks.Unsupported(f"demo: no {x.ndim}-D arrays; use impl='xla'.")


def demo(x, impl=None, op="demo", pallas=kernel, **options):
  return dispatch.call(
    *(op, impl, x), xla=jnp.sin, reference=jnp.cos, pallas=pallas, **options
  )


def taken(function, platform="cpu", shape=(8, 4)):
  """Names of the implementations in the program for a platform.

  A function that was traced stays as it was: the environment is read then.
  """
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  traced = jax.jit(lambda x: function(x)).trace(x)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return [name for name, mark in _MARKS.items() if mark in text]


def mesh_of(count, *names):
  shape = (count,) if len(names) == 1 else (2, count // 2)
  devices = np.array(jax.devices()[:count]).reshape(shape)
  return jax.sharding.Mesh(devices, names)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
  monkeypatch.delenv(dispatch.VARIABLE, raising=False)
  monkeypatch.setattr(dispatch, "_warned", set())


@pytest.mark.parametrize("impl", sorted(_MARKS))
def test_the_argument_decides(impl, monkeypatch):
  for said in ("xla", "reference", "demo=interpret"):
    monkeypatch.setenv(dispatch.VARIABLE, said)
    assert taken(lambda x: demo(x, impl)) == [impl]


@pytest.mark.parametrize("impl", sorted(_MARKS))
def test_without_one_the_environment_decides(impl, monkeypatch):
  monkeypatch.setenv(dispatch.VARIABLE, impl)
  assert taken(demo) == [impl]


def test_without_either_it_is_auto(monkeypatch):
  assert dispatch.choose("demo", None, kernel=True) == "auto"
  monkeypatch.setenv(dispatch.VARIABLE, "")
  assert taken(demo) == ["xla"]


def test_the_argument_auto_overrides_the_environment(monkeypatch):
  monkeypatch.setenv(dispatch.VARIABLE, "reference")
  assert taken(lambda x: demo(x, "auto")) == ["xla"]


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    ("demo=reference,other=xla", ["reference"]),
    ("other=reference", ["xla"]),
    ("reference,demo=interpret", ["interpret"]),
    (" demo=interpret , reference", ["interpret"]),
    ("xla,other=interpret,", ["xla"]),
  ],
)
def test_words_for_single_ops_come_before_the_word_for_all(
  words, expected, monkeypatch
):
  monkeypatch.setenv(dispatch.VARIABLE, words)
  assert taken(demo) == expected


@pytest.mark.parametrize("words", ["magic", "demo=magic", "demo", "xla demo"])
def test_wrong_words_of_the_environment_are_one_line(words, monkeypatch):
  monkeypatch.setenv(dispatch.VARIABLE, words)
  with pytest.raises(ValueError, match="JAXRL_KERNELS has") as caught:
    taken(demo)
  assert repr(words) in str(caught.value)
  assert "'interpret'" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_wrong_argument_is_one_line():
  with pytest.raises(ValueError, match="demo: impl is one of") as caught:
    taken(lambda x: demo(x, "magic"))
  assert "got 'magic'" in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["pallas", "interpret"])
def test_an_op_without_a_kernel(word, monkeypatch):
  with pytest.raises(ValueError, match=f"got '{word}'"):
    taken(lambda x: demo(x, word, pallas=None))
  monkeypatch.setenv(dispatch.VARIABLE, word)
  assert taken(lambda x: demo(x, pallas=None)) == ["xla"]


def test_a_refusal_is_raised_where_the_kernel_was_asked_for():
  for impl in ("pallas", "interpret"):
    with pytest.raises(blocks.Unsupported, match="no 2-D arrays"):
      taken(lambda x, impl=impl: demo(x, impl, pallas=refusing))


def test_tracing_for_the_cpu_warns_of_nothing():
  with jax.set_mesh(mesh_of(1, "one")), warnings.catch_warnings():
    warnings.simplefilter("error")
    for platform in ("cpu", "cuda", "tpu"):
      got = taken(lambda x: demo(x, pallas=refusing), platform)
      assert got == ["xla"]


@_needs_libtpu
def test_tracing_for_a_tpu_warns_of_each_refusal_once():
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8,), (8, 4))]
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for shape in shapes * 2:
      aot.lower_for("v5e", lambda x: demo(x, pallas=refusing), shape)
  messages = [str(w.message) for w in caught if "Falling back" in str(w)]
  assert [m.split("no ")[1][:3] for m in messages] == ["1-D", "2-D"]


def test_auto_looks_at_the_platform_of_the_lowering():
  with jax.set_mesh(mesh_of(1, "one")):
    assert taken(demo, "tpu") == ["pallas"]
    assert taken(demo, "cpu") == taken(demo, "cuda") == ["xla"]
    assert taken(lambda x: demo(x, on_tpu=False), "tpu") == ["xla"]
    asked = lambda x: demo(x, "pallas", on_tpu=False)  # noqa: E731
    assert taken(asked, "tpu") == ["pallas"]


def test_auto_takes_no_kernel_where_several_devices_might_run():
  assert jax.device_count() == 4  # conftest.py
  assert not dispatch.on_one_device()
  assert taken(demo, "tpu") == ["xla"]
  with jax.set_mesh(mesh_of(4, "data")):
    assert taken(demo, "tpu") == ["xla"]
  with jax.set_mesh(mesh_of(1, "one")):
    assert dispatch.on_one_device()


@pytest.mark.parametrize(
  ("axes", "expected"),
  [(("data", "model"), "pallas"), (("data",), "xla"), (("model",), "xla")],
)
def test_auto_takes_the_kernel_where_all_axes_are_manual(axes, expected):
  split = jax.shard_map(
    demo,
    mesh=mesh_of(4, "data", "model"),
    in_specs=P(axes),
    out_specs=P(axes),
    axis_names=set(axes),
  )
  assert taken(split, "tpu") == [expected]


def test_one_visible_device_is_one_device(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert taken(demo, "tpu") == ["pallas"]


def test_the_target_of_this_host_is_the_smallest_chip():
  assert dispatch.target() == blocks.chip(None)


@_needs_libtpu
@pytest.mark.parametrize("name", sorted(blocks.CHIPS))
def test_the_target_is_the_chip_of_the_mesh(name):
  seen = []

  def look(x):
    seen.append((dispatch.target().name, dispatch.on_one_device()))
    return x

  aot.lower_for(name, look, jax.ShapeDtypeStruct((1,), jnp.float32))
  assert seen == [(name, True)]


class ResultTest(parameterized.TestCase):
  def test_outside_of_shard_map_it_is_plain(self):
    out = dispatch.result((3,), jnp.float32, jnp.ones(2))
    self.assertEqual(out, jax.ShapeDtypeStruct((3,), jnp.float32))

  def test_in_shard_map_it_varies_as_any_operand_does(self):
    seen = []

    def look(x, y):
      out = dispatch.result((3,), jnp.float32, y, x)
      seen.append(out.manual_axis_type.varying)
      return x

    jax.eval_shape(
      jax.shard_map(
        look,
        mesh=mesh_of(4, "data"),
        in_specs=(P("data"), P()),
        out_specs=P("data"),
      ),
      *[jax.ShapeDtypeStruct((8,), jnp.float32)] * 2,
    )
    self.assertEqual(seen, [{"data"}])
