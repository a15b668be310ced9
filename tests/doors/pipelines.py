"""Whole pipelines of diffusers, small, with random weights, made on the spot.

Each function returns a pipeline and the arguments of its call: embeddings stand in the place of
prompts, so no tokenizer or text encoder is needed, and what comes back are latents.
"""

import diffusers
import torch
import transformers

from .looping import LATENT


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(seed=5):
    """A picture in [-1, 1], as img2img pipelines take tensors."""
    return numbers(1, 3, 32, 32, seed=seed).tanh()


def mask():
    found = torch.zeros(1, 1, 32, 32)
    found[..., :16] = 1.0
    return found


def vae(channels=4):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
    )


def unet(in_channels=4, **more):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    )


EMBEDS = {"prompt_embeds": numbers(1, 7, 16), "negative_prompt_embeds": numbers(1, 7, 16, seed=2)}


def stable(kind, in_channels=4, **given):
    pipe = kind(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(in_channels),
        scheduler=diffusers.DPMSolverMultistepScheduler(**LATENT),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, {**EMBEDS, "guidance_scale": 5.0, "output_type": "latent", **given}


def ddpm():
    net = diffusers.UNet2DModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()), {"output_type": "np"}


def sd():
    return stable(diffusers.StableDiffusionPipeline, height=32, width=32)


def img2img():
    return stable(diffusers.StableDiffusionImg2ImgPipeline, image=image(), strength=0.6)


def inpaint():
    given = {"image": image(), "mask_image": mask(), "height": 32, "width": 32, "strength": 1.0}
    return stable(diffusers.StableDiffusionInpaintPipeline, **given)


def inpaint_part():
    given = {"image": image(), "mask_image": mask(), "height": 32, "width": 32, "strength": 0.7}
    return stable(diffusers.StableDiffusionInpaintPipeline, **given)


def inpaint_nine():
    given = {"image": image(), "mask_image": mask(), "height": 32, "width": 32}
    return stable(diffusers.StableDiffusionInpaintPipeline, in_channels=9, **given)


def sdxl(kind=None, **more):
    pipe = (kind or diffusers.StableDiffusionXLPipeline)(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=64,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(
            **LATENT, timestep_spacing="leading", steps_offset=1
        ),
    )
    pooled = {
        "pooled_prompt_embeds": numbers(1, 16, seed=3),
        "negative_pooled_prompt_embeds": numbers(1, 16, seed=4),
    }
    size = {} if kind else {"height": 32, "width": 32}
    given = {**EMBEDS, **pooled, **size, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe, {**given, **more}


def sdxl_ended():
    return sdxl(denoising_end=0.6)


def sdxl_started():
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    return sdxl(kind, image=numbers(1, 4, 16, 16, seed=6), denoising_start=0.4, strength=1.0)


def sd3():
    net = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pooled = {
        "pooled_prompt_embeds": numbers(1, 16, seed=3),
        "negative_pooled_prompt_embeds": numbers(1, 16, seed=4),
    }
    size = {"height": 32, "width": 32, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe, {**EMBEDS, **pooled, **size}


def flux():
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    pipe = diffusers.FluxPipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    given = {"prompt_embeds": numbers(1, 7, 16), "pooled_prompt_embeds": numbers(1, 16)}
    return pipe, {**given, "height": 32, "width": 32, "output_type": "latent"}


def wan():
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=64,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    coder = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    own = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=coder, scheduler=own, transformer=net
    )
    given = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 4.0}
    return pipe, {**EMBEDS, **given, "output_type": "latent"}


def ltx():
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    coder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=coder,
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    told = torch.ones(1, 7, dtype=torch.bool)
    masks = {"prompt_attention_mask": told, "negative_prompt_attention_mask": told}
    given = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0}
    return pipe, {**EMBEDS, **masks, **given, "output_type": "latent"}


def cogvideox():
    net = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=7,
    )
    coder = diffusers.AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    own = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=coder, transformer=net, scheduler=own
    )
    given = {"height": 16, "width": 16, "num_frames": 8, "guidance_scale": 4.0}
    return pipe, {**EMBEDS, **given, "max_sequence_length": 7, "output_type": "latent"}


def svd():
    net = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=4,
        projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )
    coder = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
    )
    seer = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            intermediate_size=16,
            patch_size=8,
        )
    )
    own = diffusers.EulerDiscreteScheduler(
        **LATENT,
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=coder,
        image_encoder=seer,
        unet=net,
        scheduler=own,
        feature_extractor=transformers.CLIPImageProcessor(crop_size=32, size=32),
    )
    given = {"num_frames": 2, "height": 32, "width": 32, "min_guidance_scale": 1.0}
    shown = image().clamp(0, 1)
    return pipe, {**given, "image": shown, "max_guidance_scale": 2.5, "output_type": "latent"}


def stable_audio():
    net = diffusers.StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=1,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    coder = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    told = diffusers.StableAudioProjectionModel(
        text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32
    )
    own = diffusers.CosineDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0
    )
    pipe = diffusers.StableAudioPipeline(
        vae=coder,
        text_encoder=None,
        tokenizer=None,
        projection_model=told,
        transformer=net,
        scheduler=own,
    )
    embeds = {"prompt_embeds": numbers(1, 7, 4), "negative_prompt_embeds": numbers(1, 7, 4, seed=2)}
    return pipe, {**embeds, "guidance_scale": 4.0, "output_type": "latent"}


MADE = {
    "ddpm": (ddpm, "ddpm"),
    "sd": (sd, "dpmpp-2m"),
    "sdxl": (sdxl, "euler"),
    "sdxl_ended": (sdxl_ended, "euler"),
    "sdxl_started": (sdxl_started, "euler"),
    "img2img": (img2img, "dpmpp-2m"),
    "inpaint": (inpaint, "dpmpp-2m"),
    "inpaint_part": (inpaint_part, "dpmpp-2m"),
    "inpaint_nine": (inpaint_nine, "dpmpp-2m"),
    "sd3": (sd3, "euler"),
    "flux": (flux, "euler"),
    "wan": (wan, "unipc-2"),
    "ltx": (ltx, "euler"),
    "cogvideox": (cogvideox, "ddim"),
    "svd": (svd, "euler"),
    "stable_audio": (stable_audio, "dpmpp-2m-sde"),
}
"""Each pipeline, and our name for the method of its own scheduler."""
