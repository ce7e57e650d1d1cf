"""A longer context: the published rules, their stages, and that nothing but rotary positions changes."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from sh2.checkpoint import save_model
from sh2.config import DEFAULT_WINDOW, PUBLISHED_WINDOW, RotaryFrequencies
from sh2.errors import Sh2Error
from sh2.extension import Extension, extend
from sh2.model import StripedHyena2
from sh2.presets import preset
from sh2.train.start import begin_from
from tests.sh2.models import TINY, tiny

SHORT = replace(TINY, context=8192)
IDS = torch.randint(0, 256, (1, 60), generator=torch.Generator().manual_seed(0))
# evo2_training, section 5: the factor L / 8,192 and, for the 7B, the base 1e4 * 10^log2(L / 8,192)
STAGES = {32_768: (4.0, 1e6), 65_536: (8.0, 1e7), 131_072: (16.0, 1e8), 262_144: (32.0, 1e9), 1_048_576: (128.0, 1e11)}


@pytest.mark.parametrize(("context", "numbers"), STAGES.items())
def test_each_stage_has_the_published_factor_and_base(context, numbers):
    factor, base = numbers
    positions = extend(SHORT, context, Extension.INTERPOLATION)
    angles = extend(SHORT, context, Extension.BASE)
    both = extend(SHORT, context, Extension.BOTH)

    assert (positions.rotary_interpolation, positions.rotary_base) == (factor, 1e4)
    assert (angles.rotary_interpolation, angles.rotary_base) == (1.0, pytest.approx(base))
    assert (both.rotary_interpolation, both.rotary_base) == (factor, pytest.approx(base))
    assert {positions.context, angles.context, both.context} == {context}


@pytest.mark.parametrize("by", Extension)
def test_stages_add_up_to_one_step(by):
    config = SHORT
    for context in STAGES:
        config = extend(config, context, by)

    once = extend(SHORT, 1_048_576, by)

    assert config == replace(once, rotary_base=config.rotary_base)
    assert config.rotary_base == pytest.approx(once.rotary_base, rel=1e-12)


def test_the_published_long_models_are_the_short_ones_interpolated():
    short, long = preset("evo2_7b_base"), preset("evo2_7b_262k")

    assert extend(short, 262_144, Extension.INTERPOLATION) == long


@pytest.mark.parametrize("by", Extension)
def test_nothing_but_rotary_positions_changes(by):
    published = replace(SHORT, mr_window=PUBLISHED_WINDOW)

    before, after = asdict(published), asdict(extend(published, 65_536, by))

    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"context", "rotary_interpolation", "rotary_base"}


@pytest.mark.parametrize("by", Extension)
def test_the_window_of_hyena_mr_does_not_change_with_the_context(by):
    """Neither the published rates nor ours: taps count tokens."""
    for window in (PUBLISHED_WINDOW, DEFAULT_WINDOW):
        config = replace(SHORT, mr_window=window)

        short, long = (StripedHyena2(one, seed=4) for one in (config, extend(config, 1_048_576, by)))

        assert torch.equal(short.blocks[1].mixer.inner_filter(), long.blocks[1].mixer.inner_filter())


@torch.no_grad()
@pytest.mark.parametrize("by", Extension)
def test_the_same_length_is_the_same_model_to_the_bit(by, tmp_path):
    save_model(tiny(seed=3), tmp_path / "model")
    model = StripedHyena2(extend(TINY, TINY.context, by), seed=9).eval()

    begin_from(model, tmp_path / "model")

    assert torch.equal(model(IDS)[0], tiny(seed=3)(IDS)[0])


class Ones(nn.Module):
    def forward(self, x):
        return torch.ones(1, 1, 3 * TINY.width)


def turned_ones(attention, position):
    """Attention's own turn of a query of ones: cos - sin in the first half of its channels, cos + sin in the other."""
    attention.input = Ones()
    queries, _ = attention.project(torch.zeros(1, 1, TINY.width), torch.tensor([[position]]))
    return queries[0, 0, 0].double()


@torch.no_grad()
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("by", Extension)
def test_a_model_begun_from_a_shorter_one_turns_by_the_formula(by, stored, tmp_path):
    short = replace(TINY, rotary_frequencies=RotaryFrequencies.STORED if stored else RotaryFrequencies.BASE)
    begun = StripedHyena2(short, seed=3)
    save_model(begun, tmp_path / "model")
    long = extend(short, 32_768, by)
    model = StripedHyena2(long, seed=9)

    begin_from(model, tmp_path / "model")

    attention, position = model.blocks[3].mixer, 20_000
    channels = TINY.width // TINY.num_heads
    base = 1e4 if by is Extension.INTERPOLATION else 1e6
    factor = 1 if by is Extension.BASE else 4
    pair = torch.arange(channels // 2, dtype=torch.float64)
    angle = position / factor * base ** (-2 * pair / channels)
    wanted = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()])
    torch.testing.assert_close(turned_ones(attention, position), wanted, atol=5e-3, rtol=0)
    assert torch.equal(model.blocks[0].mixer.input.weight, begun.blocks[0].mixer.input.weight)


def test_a_file_s_own_frequencies_stay_unless_the_base_changes():
    stored = replace(SHORT, rotary_frequencies=RotaryFrequencies.STORED)

    assert extend(stored, 65_536, Extension.INTERPOLATION).rotary_frequencies is RotaryFrequencies.STORED
    assert extend(stored, 65_536, Extension.BOTH).rotary_frequencies is RotaryFrequencies.BASE


def test_a_file_s_own_frequencies_are_begun_from(tmp_path):
    stored = replace(TINY, rotary_frequencies=RotaryFrequencies.STORED)
    source = StripedHyena2(stored, seed=1)
    source.blocks[3].mixer.inv_freq.mul_(1.01)
    save_model(source, tmp_path / "model")
    model = StripedHyena2(stored, seed=2)

    begin_from(model, tmp_path / "model")

    assert torch.equal(model.blocks[3].mixer.inv_freq, source.blocks[3].mixer.inv_freq)


def test_a_shorter_context_is_refused():
    with pytest.raises(Sh2Error, match=r"a context of 4,096 extends nothing: the model's own is 8,192"):
        extend(SHORT, 4096, Extension.BOTH)


def test_a_model_of_another_shape_is_refused(tmp_path):
    save_model(tiny(), tmp_path / "model")

    with pytest.raises(Sh2Error, match=r"model does not fit its configuration: .*`blocks\.0\.mixer\.taps` has shape"):
        begin_from(StripedHyena2(replace(TINY, se_groups=8)), tmp_path / "model")
