"""The model sizes as rows of one table. Sources: OFA paper (arXiv 2202.03052) table 1 and the released architectures."""

from __future__ import annotations

from ofa_jax.config.schema import ModelConfig, ResNetConfig

RESNET50 = ResNetConfig(blocks=(3, 4, 6))
RESNET101 = ResNetConfig(blocks=(3, 4, 23))
RESNET152 = ResNetConfig(blocks=(3, 8, 36))

SIZES: dict[str, ModelConfig] = {
    # `nano` is ours: every part of OFA at a width that learns on two CPU cores. A narrow ResNet at OFA's stride of 16 makes a
    # 4x4 grid of a 64 px picture; 8x8 image codes cover its central 32 px.
    "nano": ModelConfig(
        width=128, ffn_width=512, num_heads=4, encoder_layers=2, decoder_layers=2,
        resnet=ResNetConfig(blocks=(1, 1, 1), base_width=32, expansion=2, strides=(2, 2, 2), stem_kernel=3, stem_pool=False),
        token_bucket_size=64, image_bucket_size=16, max_positions=256, num_source_positions=258, num_target_positions=258,
        code_image_px=32, code_stride=4, code_filler_id=256,
        dropout=0.0, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0,
    ),
    "tiny": ModelConfig(width=256, ffn_width=1024, num_heads=4, encoder_layers=4, decoder_layers=4, resnet=RESNET50),
    "medium": ModelConfig(width=512, ffn_width=2048, num_heads=8, encoder_layers=4, decoder_layers=4, resnet=RESNET101),
    "base": ModelConfig(width=768, ffn_width=3072, num_heads=12, encoder_layers=6, decoder_layers=6, resnet=RESNET101),
    "large": ModelConfig(width=1024, ffn_width=4096, num_heads=16, encoder_layers=12, decoder_layers=12, resnet=RESNET152),
    "huge": ModelConfig(width=1280, ffn_width=5120, num_heads=16, encoder_layers=24, decoder_layers=12, resnet=RESNET152),
}  # fmt: skip
