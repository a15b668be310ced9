"""`from_diffusers` on real networks of diffusers, small and with random weights.

Each is called by hand, as its pipeline does, and the data prediction worked out from its output in
float64; the denoiser must give the same. A flow's is D = x - sigma v, a noise network's
(x - sigma eps)/alpha. The bound is float32's rounding of the network itself.
"""

import pytest
import torch

import undiffuse as ud

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

adapt = ud.models.adapters.from_diffusers
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
LATENT = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT = {"encoder_hidden_states": numbers(2, 7, 16)}
POOLED = {**TEXT, "pooled_projections": numbers(2, 16, seed=2)}
IDS = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(7, 3)}
MASK = {"encoder_attention_mask": torch.ones(2, 7, dtype=torch.int64)}


def unet(**more):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4, **more,
    )  # fmt: skip


def sdxl():
    return unet(
        addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=64,
    )  # fmt: skip


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16,
        pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip


def flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip


def aura():
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip


def pixart():
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=24, sample_size=8, patch_size=2, caption_channels=16,
        use_additional_conditions=True,
    )  # fmt: skip


def dit():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip


def ltx():
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2,
        attention_head_dim=8, cross_attention_dim=16, num_layers=1, caption_channels=16,
    )  # fmt: skip


def cogvideox():
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=16, num_layers=1, sample_width=4, sample_height=4,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=7,
    )  # fmt: skip


def wan():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=64, ffn_dim=32, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip


def sana(**more):
    return diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
        cross_attention_dim=8, caption_channels=16, sample_size=8, **more,
    )  # fmt: skip


def sana_scaled():
    return sana(timestep_scale=0.001)


def lumina():
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
        num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=2,
        norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=[4, 4, 4], cap_feat_dim=16,
    )  # fmt: skip


def mochi():
    return diffusers.MochiTransformer3DModel(
        in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        pooled_projection_dim=16, text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip


def cosmos():
    pytest.importorskip("torchvision", reason="the network resizes its mask by torchvision")
    return diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 16, 16),
    )  # fmt: skip


def glm_image():
    return diffusers.GlmImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=8,
    )  # fmt: skip


def flux3():
    return diffusers.Flux3Transformer2DModel(
        in_channels=4, cond_in_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        timestep_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip


def z_image():
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[4, 4, 8], axes_lens=[64, 32, 32],
    )  # fmt: skip


def ace_step():
    return diffusers.AceStepTransformer1DModel(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, in_channels=12, audio_acoustic_hidden_dim=4,
    )  # fmt: skip


def prior():
    return diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=16,
        num_embeddings=7, additional_embeddings=4,
    )  # fmt: skip


ADDED = {"added_cond_kwargs": {"text_embeds": numbers(2, 16), "time_ids": numbers(2, 6).abs()}}
SIZES = {"added_cond_kwargs": {"resolution": torch.ones(2, 2), "aspect_ratio": torch.ones(2, 1)}}
IMAGE, FLAT, VIDEO = (2, 4, 8, 8), (2, 16, 4), (2, 4, 3, 4, 4)
FRAMES = {"num_frames": 1, "height": 4, "width": 4}
PLANE = {"target_size": torch.ones(2, 2), "crop_coords": torch.zeros(2, 2)}
MOCHI = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}
PLACE = {"rope_interpolation_scale": None}

NETWORKS = [
    # network, scheduler, shape of x, conditions, what its pipeline tells it at t, sign
    (unet, LATENT, IMAGE, TEXT, lambda t: 1000 * t - 1, 1),
    (sdxl, LATENT, IMAGE, {**TEXT, **ADDED}, lambda t: 1000 * t - 1, 1),
    (pixart, LATENT, IMAGE, {**TEXT, **SIZES}, lambda t: 1000 * t - 1, 1),
    (dit, LATENT, IMAGE, {"class_labels": torch.tensor([1, 2])}, lambda t: 1000 * t - 1, 1),
    (sd3, FLOW, IMAGE, POOLED, lambda t: 1000 * t, 1),
    (flux, FLOW, FLAT, {**POOLED, **IDS, "guidance": torch.tensor([3.5])}, lambda t: t, 1),
    (aura, FLOW, IMAGE, TEXT, lambda t: t, 1),
    (ltx, FLOW, (2, 16, 8), {**TEXT, **MASK, **FRAMES}, lambda t: 1000 * t, 1),
    (cogvideox, {**LATENT, "_class_name": "CogVideoXDDIMScheduler"}, (2, 3, 4, 4, 4), TEXT,
     lambda t: 1000 * t - 1, 1),
    (wan, FLOW, VIDEO, TEXT, lambda t: 1000 * t, 1),
    (sana, FLOW, IMAGE, TEXT, lambda t: 1000 * t, 1),
    (sana_scaled, FLOW, IMAGE, TEXT, lambda t: t, 1),
    (lumina, FLOW, IMAGE, {**TEXT, "encoder_attention_mask": torch.ones(2, 7, dtype=torch.bool)},
     lambda t: 1 - t, -1),
    (mochi, MOCHI, VIDEO, {**TEXT, "encoder_attention_mask": torch.ones(2, 7, dtype=torch.bool)},
     lambda t: 1000 * (1 - t), -1),
    (cosmos, FLOW, (2, 4, 1, 8, 8), {**TEXT, "padding_mask": torch.zeros(1, 1, 8, 8)},
     lambda t: t, 1),
    (glm_image, FLOW, IMAGE, {**TEXT, **PLANE, "prior_token_id": torch.ones(2, 16).long(),
     "prior_token_drop": torch.zeros(2, 16).bool()}, lambda t: 1000 * t - 1, 1),
    (flux3, FLOW, FLAT, {**TEXT, "img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(7, 4)},
     lambda t: t, 1),
]  # fmt: skip


def made(make):
    torch.manual_seed(0)
    net = make().eval()
    return net.requires_grad_(False)


def shared(cond):
    """Positions have no rows of samples."""
    return {k: ud.shared(v) if k in ("img_ids", "txt_ids") else v for k, v in cond.items()}


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row[0].__name__)
def test_a_network_by_its_own_signature(row):
    make, scheduler, shape, cond, told, sign = row
    net, x = made(make), numbers(*shape, seed=7)
    model = adapt(net, scheduler)
    for t in (0.25, 0.8):
        at = torch.full((2,), told(t), dtype=torch.float32)
        called = {
            "hidden_states" if not make.__name__.startswith(("unet", "sdxl")) else "sample": x
        }
        out = net(**called, timestep=at, **cond, return_dict=False)[0].double()
        out = sign * (out.chunk(2, 1)[0] if out.shape[1] == 2 * shape[1] else out)
        process = model.process
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        if isinstance(process, ud.Flow):
            want = x.double() - sigma * out
        else:
            want = (x.double() - sigma * out) / alpha
        got = model(x, t, **shared(cond)).double()
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5


def test_a_network_that_takes_a_list_of_samples():
    """Z-Image: lists go in and come out, told 1 - sigma, with the velocity towards the data."""
    net, x, t = made(z_image), numbers(2, 4, 1, 8, 8, seed=7), 0.3
    texts = [numbers(7, 16), numbers(5, 16)]
    out = torch.stack(net(list(x), torch.full((2,), 1 - t), texts, return_dict=False)[0])
    got = adapt(net, FLOW)(x, t, cap_feats=ud.shared(texts))
    assert torch.allclose(got, x + t * out, rtol=0, atol=1e-5)


def test_a_network_of_two_times():
    """ACE-Step is told the same time twice, as its pipeline does."""
    net, x, t = made(ace_step), numbers(2, 8, 4), 0.3
    cond = {**TEXT, "context_latents": numbers(2, 8, 8)}
    at = torch.full((2,), t)
    out = net(hidden_states=x, timestep=at, timestep_r=at, **cond, return_dict=False)[0]
    got = adapt(net, {**FLOW, "shift": 1.0, "num_train_timesteps": 1})(x, t, **cond)
    assert torch.allclose(got, x - t * out, rtol=0, atol=1e-5)


def test_an_output_of_another_name():
    """unCLIP's prior returns `predicted_image_embedding`, which is the data."""
    net, x = made(prior), numbers(2, 16)
    cond = {"proj_embedding": numbers(2, 16, seed=2), **TEXT}
    out = net(x, torch.full((2,), 299.0), **cond).predicted_image_embedding
    own = diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample")
    assert torch.allclose(adapt(net, own)(x, 0.3, **cond), out, rtol=0, atol=1e-5)


def test_dictionaries_and_tuples():
    """Outputs with .sample, as dicts and as tuples are the same prediction."""
    net, x = made(unet), numbers(*IMAGE)

    class Other(torch.nn.Module):
        def __init__(self, form):
            super().__init__()
            self.form = form

        def forward(self, sample, timestep, **cond):
            return self.form(net(sample, timestep, **cond).sample)

    want = adapt(net, LATENT)(x, 0.5, **TEXT)
    for form in (lambda v: v, lambda v: (v, None), lambda v: {"sample": v}):
        assert torch.equal(adapt(Other(form), LATENT)(x, 0.5, **TEXT), want)


def test_guidance_runs_on_joined_conditions():
    """cfg on nested conditions: one call of 2 B rows, the same as two calls by hand."""
    net, x = made(sdxl), numbers(*IMAGE)
    model = adapt(net, LATENT)
    cond = {**TEXT, **ADDED}
    empty = {"encoder_hidden_states": numbers(2, 7, 16, seed=9)}
    seen = []
    handle = net.register_forward_pre_hook(lambda m, a, k: seen.append(len(a[0])), with_kwargs=True)
    got = ud.guidance.cfg(model, 3.0, uncond=empty)(x, 0.5, **cond)
    handle.remove()
    apart = ud.guidance.cfg(model, 3.0, uncond=empty, batched=False)(x, 0.5, **cond)
    assert seen == [4]
    assert torch.allclose(got, apart, rtol=1e-4, atol=1e-4)
